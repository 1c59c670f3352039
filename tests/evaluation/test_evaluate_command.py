"""The command on a run folder: figures, files and errors as a user meets them."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from robust_vit import config as config_lib
from robust_vit import data, evaluate
from robust_vit.evaluation import Measurer, suites
from robust_vit.training import checkpoint, loop, state

TEST_EXAMPLES = 12


def tiny_config():
    config = config_lib.base()
    config.data.name = "synthetic"
    config.data.options = config_lib.ConfigDict({"size": 8, "channels": 1, "classes": 4, "examples": 5 * TEST_EXAMPLES})
    config.data.batch_size = 8
    config.model.update({"name": "vit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4, "channels": 1})
    config.optimizer.ema_decay = 0.9
    config.attack.epsilon = 8 / 255
    config.evaluation.update({"batch_size": 8, "steps": 2, "restarts": 1})
    return config


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of one checkpoint with other averaged than raw weights, made without training."""
    workdir = tmp_path_factory.mktemp("run")
    experiment = loop.build(tiny_config())
    loop.claim(workdir, experiment.config)
    make = functools.partial(state.create, experiment.module, experiment.tx, experiment.dataset.image_shape, 0, True)
    made = jax.jit(make)()
    made = made.replace(average=jax.tree.map(lambda w: w + 0.1, made.average))
    kept = checkpoint.Checkpoints(workdir, select="ema_robust_accuracy")
    kept.save(7, made, {}, {"ema_robust_accuracy": 0.5, "robust_accuracy": 0.5})
    kept.close()
    return workdir


def run(*arguments):
    return evaluate.main(["evaluate", *arguments])


def error_of(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    text = str(caught.value)
    assert text.startswith("error: ") and "\n" not in text
    return text


def test_figures_are_written_shown_and_kept(run_folder, capsys):
    result = run(f"--workdir={run_folder}", "--suite=clean,pgd")
    printed = capsys.readouterr().out
    stored = json.loads((run_folder / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["clean"]["examples"] == stored["pgd"]["examples"] == TEST_EXAMPLES
    told = {k: stored["pgd"][k] for k in ("norm", "epsilon", "steps", "restarts", "step_size")}
    assert told == {"norm": "linf", "epsilon": 8 / 255, "steps": 2, "restarts": 1, "step_size": 2.5 * 8 / 255 / 2}
    assert stored["weights"]["step"] == 7 and stored["weights"]["hash"][:12] in printed
    assert f"{stored['pgd']['accuracy']:.2%}" in printed and "Linf 8/255, 2 steps" in printed
    again = run(
        f"--workdir={run_folder}", "--suite=pgd", "--steps=3", "--restarts=2", "--epsilon=16/255", "--batch_size=5"
    )
    assert again["clean"] == stored["clean"] and again["pgd"]["epsilon"] == 16 / 255
    assert (again["pgd"]["steps"], again["pgd"]["restarts"]) == (3, 2)
    assert again["previous"][0]["pgd"]["accuracy"] == stored["pgd"]["accuracy"]


def test_measures_the_weights_and_the_examples_that_were_asked_for(run_folder, tmp_path, monkeypatch):
    raw = run(f"--workdir={run_folder}", "--suite=clean", "--weights=raw")
    selected = run(f"--workdir={run_folder}", "--suite=clean")  # ema, by which this run selects
    assert raw["weights"]["hash"] != selected["weights"]["hash"]
    _, module, variables, _ = checkpoint.load(run_folder, "best", "raw")
    subject = evaluate.from_run(run_folder, weights="raw")
    dataset = data.build("synthetic", size=8, channels=1, classes=4, examples=5 * TEST_EXAMPLES)
    expected = Measurer().measure(subject.logits_fn, data.evaluate(dataset.validation, batch_size=8))
    validation = run(f"--workdir={run_folder}", "--suite=clean", "--weights=raw", "--split=validation")
    assert validation["clean"]["loss"] == pytest.approx(expected.loss) and validation["split"] == "validation"
    assert run(f"--workdir={run_folder}", "--suite=clean", "--limit=5")["split"] == "test, 5 examples"


def test_a_function_of_the_user_is_measured_on_a_configuration(tmp_path, monkeypatch):
    (tmp_path / "mymodule.py").write_text(
        "import jax.numpy as jnp\n\ndef make_logits_fn():\n    return lambda x: x[:, 0, 0] * 0 + jnp.eye(4)[0]\n"
    )
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))
    monkeypatch.syspath_prepend(tmp_path)
    result = run("--logits_fn=mymodule:make_logits_fn", f"--workdir={tmp_path}", "--suite=clean,fgsm")
    labels = [example["label"] for example in evaluate.split_batches(tiny_config(), "test")[1]]
    assert result["clean"]["correct"] == result["fgsm"]["correct"] == labels.count(0)
    assert "did you mean 'make_logits_fn'?" in error_of("--logits_fn=mymodule:make_logit_fn", f"--workdir={tmp_path}")
    assert "No module named 'nomodule'" in error_of("--logits_fn=nomodule:f", f"--workdir={tmp_path}")


def test_errors_are_one_line_that_helps(run_folder, tmp_path):
    here = f"--workdir={run_folder}"
    assert "suite = 'pgdd': must be one of" in error_of(here, "--suite=pgdd")
    assert "did you mean 'pgd'?" in error_of(here, "--suite=pgdd")
    assert "Did you mean: suite" in error_of(here, "--siute=pgd")
    assert "holds no config.json" in error_of(f"--workdir={tmp_path / 'nowhere'}")
    assert "workdir" in error_of("--suite=clean")
    assert "did you mean 'test'?" in error_of(here, "--split=tset")
    assert "epsilon = '8/0'" in error_of(here, "--epsilon=8/0")
    assert "epsilon = 2.0: must be at most 1" in error_of(here, "--epsilon=2")
    assert "given together with --epsilon" in error_of(here, "--norm=l2")
    assert "steps = 0: must be at least 1" in error_of(here, "--steps=0")
    assert "did you mean 'sweep_steps'?" in error_of(here, "--option=sweep_step=3")
    assert "cannot be read" in error_of(here, "--option=sweep_steps=many")
    assert "no such checkpoint" in error_of(here, "--checkpoint=8")
    assert "must be 'raw' or 'ema'" in error_of(here, "--weights=average")
    assert "is no flag" in error_of(here, "clean")


def test_a_damaged_result_file_is_told_before_anything_is_measured(run_folder, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    (tmp_path / "checkpoints").symlink_to(run_folder / "checkpoints")
    (tmp_path / "result.json").write_text('{"clean')
    monkeypatch.setattr(suites, "run_suites", lambda *_: pytest.fail("measured"))
    assert "is not JSON" in error_of(f"--workdir={tmp_path}")
    assert (tmp_path / "result.json").read_text() == '{"clean'


@pytest.mark.slow
def test_the_command_line(run_folder):
    """As typed: plain output without a terminal, the exit status, and the command that the file records."""
    command = [sys.executable, "-m", "robust_vit.evaluate", f"--workdir={run_folder}", "--suite=sweep", "--limit=4"]
    root = pathlib.Path(evaluate.__file__).parent.parent
    ran = subprocess.run([*command, "--option=sweep_steps=2"], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0, ran.stderr
    assert "\x1b[" not in ran.stdout and "accuracy against epsilon" in ran.stdout
    stored = json.loads((run_folder / "result.json").read_text())
    assert "-m robust_vit.evaluate --workdir=" in stored["command"] and stored["split"] == "test, 4 examples"
    assert stored["sweep"]["steps"] == 2
    failed = subprocess.run([*command, "--split=tets"], capture_output=True, text=True, cwd=root)
    assert failed.returncode == 1 and failed.stderr.strip().splitlines()[-1].startswith("error: split = 'tets'")
