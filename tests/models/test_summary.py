"""Parameters and multiply-adds against tests/data/models.csv, measured on the PyTorch models."""

import csv
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from robust_vit import models
from robust_vit.models import __main__ as command
from robust_vit.models import summary
from robust_vit.models.parts import convolution

ROWS = list(csv.DictReader((pathlib.Path(__file__).parent.parent / "data" / "models.csv").read_text().splitlines()))


def figures_of(name, overrides):
    """From the shipped table where these are the model's own fields, counted otherwise."""
    own = models.fields(name)
    if all(own[key] == value for key, value in overrides.items()):
        return summary.figures()[name]
    return summary.summarize(name, **overrides)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['name']}-{i}" for i, row in enumerate(ROWS)])
def test_parameters_are_exact_and_macs_within_one_percent(row):
    found = figures_of(row["name"], json.loads(row["overrides"]))
    assert found.parameters == int(row["parameters"])
    assert found.macs == pytest.approx(float(row["gmacs"]) * 1e9, rel=0.01)


SAMPLE = ("vit_tiny_patch16_224", "xcit_nano_12_p16_224", "convnext_tiny")


def test_the_shipped_table_has_every_model():
    assert list(summary.figures()) == models.names()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in models.names()]
)
def test_the_shipped_table_is_what_is_counted(name):
    assert summary.figures()[name] == summary.summarize(name)


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


def test_the_command_counts_what_its_table_does_not_have(capsys):
    command.main(["models", "--names=deit_tiny_patch16_224,vit_tiny_patch1?_224", "--image_size=112"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [
        "deit_tiny_patch16_224",
        "vit_tiny_patch14_224",
        "vit_tiny_patch16_224",
    ]
    parameters = 5_717_416 - (14 * 14 - 7 * 7) * 192  # fewer position embeddings
    assert lines[2].split()[1:3] == ["112x112", f"{parameters:,}"]


def test_the_command_prints_the_table_at_once(capsys, monkeypatch):
    monkeypatch.setattr(summary, "summarize", None)  # nothing is traced
    command.main(["robust-vit models"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == models.names()
    assert max(map(len, lines[:-1])) <= 80
    command.main(["models", "xcit_nano*", "deit_tiny_patch16_224"])
    rows = capsys.readouterr().out.splitlines()[2:-1]
    assert rows[-1].split() == ["deit_tiny_patch16_224", "224x224", "5,717,416", "1.254", "197"]
    assert {row.split("_")[0] for row in rows[:-1]} == {"xcit"}


@pytest.mark.parametrize(
    "argument, said",
    [
        ("deit_tinny_patch16_224", "did you mean 'deit_tiny_patch16_224'"),
        ("vitt*", "model = 'vitt*'"),
        ("--num_classes=-1", "num_classes = -1"),
    ],
)
def test_the_command_explains_what_is_wrong_in_one_line(argument, said):
    with pytest.raises(SystemExit) as caught:
        command.main(["models", argument])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_is_written_without_what_is_of_one_machine(tmp_path, monkeypatch):
    before = summary.figures()
    monkeypatch.setattr(summary, "FIGURES", tmp_path / "figures.json")
    row = dataclasses.replace(before["vit"], gradient_bytes=7)
    summary.write_figures([row])
    assert summary.figures() == {"vit": before["vit"]}
    summary.write_figures([before["deit"]])
    assert list(summary.figures()) == ["deit", "vit"]


def test_a_model_in_one_line():
    fields = dict(depth=2, width=32, heads=2, patch_size=4, image_size=16, num_classes=10)
    module = models.build("vit", **fields)
    count = summary.count_parameters(module)
    said = f"ViT, {count / 1e3:.3g}k weights"
    assert models.describe(module) == models.describe(module, summary.shapes(module)) == said
    numbers = (7, 999, 1000, 9_994, 99_960, 201_384, 999_600, 5_717_416, 86_567_656, 2 * 10**9)
    assert [models.short(n) for n in numbers] == "7 999 1k 9.99k 100k 201k 1M 5.72M 86.6M 2B".split()
