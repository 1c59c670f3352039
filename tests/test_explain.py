"""`robust-vit explain`: what it writes, and in one line what is missing and which command makes it."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from test_front_door import make_run

from robust_vit import explain
from robust_vit.evaluation import intervals

OPTIONS = {"size": 8, "channels": 1, "classes": 4, "examples": 60}  # 12 of them to test
COMMAND = "robust-vit explain"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same data; their weights are the same as well."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", "synthetic", **OPTIONS)
    shutil.copytree(folder / "first", folder / "second")
    return folder / "first", folder / "second"


def call(*arguments):
    return explain.main([COMMAND, "--steps=2", "--examples=3", *arguments])


def test_runs_are_drawn_side_by_side_with_their_numbers(runs, tmp_path, capsys):
    workdirs = [f"--workdir={run}" for run in runs]
    files = call(*workdirs, "--what=perturbations", f"--out={tmp_path}", "--limit=10")["perturbations"]
    assert sorted(path.name for path in files) == sorted(
        f"{name}.{ending}" for name in ("perturbations", "spectra") for ending in ("json", "npz", "png")
    )
    assert all(f"written to {path}" in capsys.readouterr().out or path.is_file() for path in files)
    numbers = json.loads((tmp_path / "perturbations.json").read_text())
    arrays = np.load(tmp_path / "perturbations.npz")
    assert numbers["attack"] == "PGD-2, Linf 0.1" and set(numbers["runs"]) == {"first", "second"}
    assert len(arrays["images"]) == 10 and np.abs(arrays["first/adversarial"] - arrays["images"]).max() <= 0.1 + 1e-6
    right = arrays["first/adversarial_probabilities"].argmax(-1) == arrays["labels"]
    stated = numbers["runs"]["first"]["robust_accuracy"]
    assert stated["value"] == right.mean() and stated["examples"] == 10
    assert tuple(stated["interval"]) == intervals.wilson(int(right.sum()), 10)
    spectra = json.loads((tmp_path / "spectra.json").read_text())
    assert spectra["differences"]["first - second"]["value"] == 0  # the weights are the same
    with Image.open(tmp_path / "perturbations.png") as picture:
        assert min(picture.size) > 400


@pytest.mark.slow
def test_everything_is_drawn_that_a_run_has(runs, tmp_path):
    mine = ("perturbations", "attention", "positions", "semantics", "filmstrip")
    shutil.copytree(runs[0], tmp_path / "run")
    files = call(f"--workdir={tmp_path / 'run'}", f"--workdir={runs[1]}", f"--what={','.join(mine)}")
    assert set(files) == set(mine) and all(files.values())
    for path in sum(files.values(), []):
        assert path.parent == tmp_path / "run" / "explain" and path.stat().st_size > 100
    names = {path.stem for path in sum(files.values(), []) if path.suffix == ".png"}
    assert {"attention-run", "rollout", "shift", "positions-run", "shuffled-run", "gradients", "semantics"} <= names
    shift = json.loads((tmp_path / "run" / "explain" / "shift.json").read_text())
    values = np.load(tmp_path / "run" / "explain" / "shift.npz")
    assert "total variation" in shift["shift"]
    assert shift["runs"]["run"]["all"]["value"] == pytest.approx(values["run/blocks_0.attn"].mean())
    said = json.loads((tmp_path / "run" / "explain" / "semantics.json").read_text())
    hits = np.load(tmp_path / "run" / "explain" / "semantics.npz")["run/perturbation"]
    assert said["runs"]["run"]["perturbation"]["value"] == hits.mean() and said["chance"] == 0.25
    assert said["judge"].startswith("a support vector machine fitted to") and len(said["differences"]) == 1
    judged = call(f"--workdir={runs[0]}", "--what=semantics", f"--judge={runs[1]}", f"--out={tmp_path / 'judged'}")
    assert json.loads(judged["semantics"][-2].read_text())["judge"] == "the run second"


def test_without_a_choice_what_a_run_does_not_have_is_left_out(runs, tmp_path, monkeypatch):
    def draws(found, out):
        (out / "drawn").write_text(found[0].name)
        return [out / "drawn"]

    def refuses(found, out):
        raise ValueError("attention = 'ResNet': must be asked of a model that has attention maps")

    monkeypatch.setattr(explain, "KINDS", {"a": explain.Kind("a", ""), "b": explain.Kind("b", "")})
    monkeypatch.setattr(explain, "function", {"a": draws, "b": refuses}.__getitem__)
    said = []
    found = explain.subjects([runs[0]])
    assert explain.draw(found, tmp_path / "new", say=said.append) == {"a": [tmp_path / "new" / "drawn"]}
    assert said[1] == "b: left out: attention = 'ResNet': must be asked of a model that has attention maps"
    with pytest.raises(ValueError, match="must be asked of a model that has attention"):
        explain.draw(found, tmp_path / "new", ["b"])


def test_what_is_missing_is_one_line_with_the_command_that_makes_it(runs, tmp_path):
    empty, bare = tmp_path / "empty", tmp_path / "bare"
    empty.mkdir()
    bare.mkdir()
    config = json.loads((runs[0] / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config))
    for arguments, line in (
        ([], "workdir = .*must be given, a folder that training wrote"),
        ([f"--workdir={empty}"], f"holds no config.json, is no run; robust-vit train .*--workdir={empty} makes one"),
        ([f"--workdir={bare}"], f"holds no checkpoint yet; robust-vit train .*--workdir={bare} makes one"),
        ([f"--workdir={runs[0]}", f"--workdir={runs[0]}"], "must be different folders"),
        ([f"--workdir={runs[0]}", "--what=atention"], "what = 'atention': .*did you mean 'attention'"),
        ([f"--workdir={runs[0]}", "--threat=8/255"], "threat = '8/255': must be a norm, a dash and a radius"),
        ([f"--workdir={runs[0]}", "--limit=0"], "limit = 0: must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=line) as stop:
            explain.main([COMMAND, *arguments])
        assert "\n" not in str(stop.value)
    (bare / "environment.json").write_text(json.dumps({"command": "robust-vit train --config=digits --workdir=x"}))
    with pytest.raises(SystemExit, match="no checkpoint yet; robust-vit train --config=digits --workdir=x makes one"):
        explain.main([COMMAND, f"--workdir={bare}"])
    config["data"]["options"]["classes"] = 5
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=f"data of bare = .*'classes': 5.*those of first, .*--workdir={bare} draws it"):
        explain.main([COMMAND, f"--workdir={runs[0]}", f"--workdir={bare}"])


def test_subjects_are_told_apart_and_attacked_alike(runs, tmp_path):
    (tmp_path / "first").mkdir()
    config = json.loads((runs[1] / "config.json").read_text())
    config["attack"]["epsilon"] = 0.2
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    found = explain.subjects([runs[0], tmp_path / "first"])
    assert [one.name for one in found] == [str(runs[0]), str(tmp_path / "first")]
    assert [str(one.options.threat) for one in found] == ["linf-0.1", "linf-0.1"]
    images, labels, indices = explain.Subject(pathlib.Path(runs[0]), "x").examples
    assert images.shape == (12, 8, 8, 1) and images.dtype == np.float32 and images.max() <= 1
    assert len(labels) == len(set(indices.tolist())) == 12
