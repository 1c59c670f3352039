"""Parameters and multiply-adds against tests/data/models.csv, measured on the PyTorch models."""

import csv
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from robust_vit import models
from robust_vit.models import __main__ as command
from robust_vit.models import summary
from robust_vit.models.parts import convolution

ROWS = list(csv.DictReader((pathlib.Path(__file__).parent.parent / "data" / "models.csv").open()))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['name']}-{i}" for i, row in enumerate(ROWS)])
def test_parameters_are_exact_and_macs_within_one_percent(row):
    module = models.build(row["name"], **json.loads(row["overrides"]))
    assert summary.count_parameters(module) == int(row["parameters"])
    assert summary.count_macs(module) == pytest.approx(float(row["gmacs"]) * 1e9, rel=0.01)


def test_a_scanned_model_counts_like_the_unrolled_one():
    fields = dict(depth=3, width=32, heads=2, patch_size=4, image_size=16, num_classes=10)
    unrolled, scanned = models.build("vit", **fields), models.build("vit", **fields, scan=True, remat=True)
    assert summary.count_parameters(unrolled) == summary.count_parameters(scanned)
    assert summary.count_macs(unrolled) == summary.count_macs(scanned)


def test_macs_by_hand():
    def program(images, kernel, matrix):
        features = convolution.conv(images, kernel, stride=2, padding=1).sum((1, 2))
        return jax.lax.fori_loop(0, 5, lambda _, x: x @ matrix, features)

    shapes = [(1, 8, 8, 3), (3, 3, 3, 6), (6, 6)]
    jaxpr = jax.make_jaxpr(program)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert summary.traced_macs(jaxpr.jaxpr) == 4 * 4 * 6 * 27 + 5 * 36


def test_a_depthwise_convolution_counts_the_same_however_it_is_computed():
    images, kernel = jax.ShapeDtypeStruct((1, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 6), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x, k: convolution.conv(x, k, 1, 1, groups=6))(images, kernel)
    assert summary.traced_macs(jaxpr.jaxpr) == 8 * 8 * 6 * 9


def test_summarize_measures_the_memory_of_an_input_gradient():
    fields = dict(depth=1, width=32, heads=2, patch_size=4, image_size=16, num_classes=10)
    small, large = (summary.summarize("vit", batch=n, memory=True, **fields) for n in (2, 8))
    assert (small.image_size, small.tokens) == ("16x16", 17)
    assert 2 * 16 * 16 * 3 * 4 < small.gradient_bytes < large.gradient_bytes
    assert summary.summarize("vit", **fields).gradient_bytes is None


def test_the_command_prints_a_row_per_model_and_explains_a_wrong_name(capsys):
    assert command.main(["--names=deit_tiny_patch16_224,vit_tiny_patch1?_224", "--image_size=112"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [
        "deit_tiny_patch16_224",
        "vit_tiny_patch14_224",
        "vit_tiny_patch16_224",
    ]
    parameters = 5_717_416 - (14 * 14 - 7 * 7) * 192  # fewer position embeddings
    assert lines[2].split()[1:3] == ["112x112", f"{parameters:,}"]
    assert command.main(["--names=deit_tinny_patch16_224"]) == 2
    assert "deit_tiny_patch16_224" in capsys.readouterr().err
