"""Fields that make no model are refused by `build` in one line that names them, for every family."""

import dataclasses
import math
import pathlib
import runpy

import jax.numpy as jnp
import pytest

from robust_vit import models
from robust_vit.models import summary

TINY = runpy.run_path(str(pathlib.Path(__file__).parent / "tiny.py"))["TINY"]


def refused(name, **overrides):
    with pytest.raises(ValueError) as caught:
        models.build(name, **{**TINY[name], **overrides})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def integers(name):
    """(field, value) with an integer, or one integer of a list, at 0 and at -1."""
    module = models.build(name, **TINY[name])
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        for bad in (0, -1):
            if isinstance(value, int) and not isinstance(value, bool):
                yield field.name, bad
            elif isinstance(value, tuple) and value and isinstance(value[0], int):
                yield field.name, (*value[:-1], bad)


@pytest.mark.parametrize("name", sorted(TINY))
def test_no_integer_may_be_zero_or_negative(name):
    tried = set()
    for field, bad in integers(name):
        tried.add(field)
        if field == "num_classes" and bad == 0:
            assert models.build(name, **{**TINY[name], field: bad}).num_classes == 0
        else:
            assert field in refused(name, **{field: bad})
    assert {"image_size", "channels", "num_classes"} < tried and len(tried) > 5


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("number", [math.nan, math.inf, -0.5, "0.1"])
def test_no_number_may_be_nan_infinite_negative_or_a_word(name, number):
    module = models.build(name, **TINY[name])
    for field in dataclasses.fields(module):
        if isinstance(field.default, float) and (field.name != "layer_scale" or number != -0.5):
            assert field.name in refused(name, **{field.name: number})


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_statistics_of_the_pixels(name):
    good = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    for field, value, said in (
        ("mean", (123.7, 116.3, 103.5), "divide by 255"),
        ("std", (58.4, 57.1, 57.4), "divide by 255"),
        ("mean", (math.nan, 0.4, 0.3), "finite"),
        ("std", (0.2, math.inf, 0.2), "finite"),
        ("std", (0.2, 0.0, 0.2), "positive"),
        ("mean", (-0.5, 0.4, 0.3), "0 or more"),
        ("mean", (0.5, 0.4), "3 values"),
        ("std", (0.2,), "as long as mean"),
        ("mean", 0.5, "a list"),
        ("mean", "0.5", "a list"),
    ):
        line = refused(name, **{**good, field: value})
        assert line.startswith(f"{field} = ") and said in line
    assert models.build(name, **{**TINY[name], **good}).std == good["std"]


def test_what_does_not_fit_together():
    assert "width" in refused("vit", width=30) and "width" in refused("cait", width=30)
    assert "heads" in refused("swin", heads=(3, 4)) and "heads" in refused("mobilevit_xxs", heads=3)
    for name in ("vit", "swin", "cait", "xcit", "convnext_tiny"):
        assert "size" in refused(name, patch_size=1024)
    assert "scan" in refused("vit", scan="yes") and "dtype" in refused("vit", dtype="floaty")
    assert "dtype" in refused("vit", dtype=jnp.int32)
    for size in (0, -8, 7.5, (16,), (16, 0), "16"):
        assert "image_size" in refused("vit", image_size=size)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in sorted(TINY)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_tiny_image_makes_a_model_or_a_line(name, size):
    try:
        module = models.build(name, **{**TINY[name], "image_size": size})
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert summary.count_parameters(module) > 0
