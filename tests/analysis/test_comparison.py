"""Runs side by side: what the table and the picture say, from results that suites wrote."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from robust_vit import compare
from robust_vit.analysis import comparison
from robust_vit.evaluation import pairs, suites

SHAPE = (8, 8, 1)


def batches():
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (24, *SHAPE)).astype(np.uint8), draws.integers(0, 4, 24)
    return [{"image": images, "label": labels, "index": np.arange(24) + 7, "mask": np.ones(24, bool)}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two evaluated classifiers: the same function with two sets of weights."""
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        folder.mkdir()
        weights = np.random.default_rng(seed).standard_normal((64, 4)).astype(np.float32)
        logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
        context = suites.Context(logits_fn, batches, norm="linf", epsilon=0.1, steps=2, restarts=1)
        suites.evaluate("clean,pgd" if seed else "clean,fgsm,pgd", context, folder / "result.json")
        (folder / "config.json").write_text(json.dumps({"seed": seed, "data": {"name": "digits", "options": {}}}))
        found.append((str(folder), np.asarray(logits_fn(batches()[0]["image"] / np.float32(255))).argmax(-1)))
    return found


def test_the_difference_is_paired_by_example(runs):
    (first, a), (second, b) = runs
    rows = comparison.compare([first, second])
    assert [(row.suite, row.run) for row in rows] == [(s, r) for s in ("clean", "pgd") for r in ("seed0", "seed1")]
    labels = batches()[0]["label"]
    expected = pairs.paired(a == labels, b == labels)
    assert rows[0].difference is None and rows[1].difference == expected and expected.examples == 24


def test_the_table_and_the_picture_say_the_same(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "compare.png"
    rows = compare.main(["compare", *[folder for folder, _ in runs], f"--out={out}", "--suite=clean"])
    printed = capsys.readouterr().out
    assert "seed = 0 in seed0, 1" in printed and out.is_file()
    for row in rows:
        assert f"{100 * row.entry['accuracy']:.2f} %" in printed
    axes = comparison.plot(rows).axes[0]
    drawn = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert drawn == [row.entry["accuracy"] for row in rows]


def edited(folder, tmp_path, change):
    copy = tmp_path / "copy"
    copy.mkdir()
    result = json.loads(pathlib.Path(folder, "result.json").read_text())
    change(result)
    (copy / "result.json").write_text(json.dumps(result))
    return str(copy)


def test_another_threat_is_said_and_not_subtracted(runs, tmp_path):
    other = edited(runs[1][0], tmp_path, lambda result: result["pgd"].update(epsilon=0.2))
    row = comparison.compare([runs[0][0], other], ["pgd"])[1]
    assert row.difference is None and row.note == "other epsilon" and "other epsilon" in comparison.cells(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.update(split="validation"), "data of copy = .*must be those of seed0"),
        (lambda result: [result.pop(name) for name in ("clean", "pgd")], "evaluated: robust-vit evaluate"),
    ],
)
def test_what_cannot_be_compared_is_one_line(change, message, runs, tmp_path):
    with pytest.raises(SystemExit) as stop:
        compare.main(["compare", runs[0][0], edited(runs[1][0], tmp_path, change)])
    assert re.search(message, str(stop.value)) and "\n" not in str(stop.value)


def test_a_folder_that_is_no_run_names_the_command_that_makes_one(runs, tmp_path):
    with pytest.raises(ValueError, match="robust-vit evaluate --workdir=.*nothing"):
        comparison.compare([runs[0][0], tmp_path / "nothing"])
    with pytest.raises(ValueError, match="two run folders or more"):
        comparison.compare([runs[0][0]])
    with pytest.raises(ValueError, match="suite = 'fgsm': must be measured in seed0 and in another run"):
        comparison.compare([folder for folder, _ in runs], ["fgsm"])
