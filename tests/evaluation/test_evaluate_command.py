"""The command on a run folder: figures, files and errors as a user meets them."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from robust_vit import config as config_lib
from robust_vit import data, evaluate
from robust_vit.evaluation import Measurer, record, suites
from robust_vit.models.weights import converted
from robust_vit.training import checkpoint, loop, state

RANK_PROMOTION = "allow"  # of the models that are made here

TEST_EXAMPLES = 12


def tiny_config():
    config = config_lib.base()
    config.data.name = "synthetic"
    config.data.options = config_lib.ConfigDict({"size": 8, "channels": 1, "classes": 4, "examples": 5 * TEST_EXAMPLES})
    config.data.batch_size = 8
    config.model.update({"name": "vit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4, "channels": 1})
    config.optimizer.ema_decay = 0.9
    config.attack.epsilon = 8 / 255
    config.evaluation.update({"batch_size": 8, "steps": 2, "restarts": 1, "report_examples": 0})
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


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    """One line, the status that shells expect, and the suites that were done."""
    (tmp_path / "constants.py").write_text("def make():\n    return lambda x: x[:, 0, :4, 0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))

    def interrupted(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(suites.SUITES, "pgd", interrupted)
    with pytest.raises(SystemExit) as caught:
        run("--logits_fn=constants:make", f"--workdir={tmp_path}", "--suite=clean,pgd")
    assert caught.value.code == 130 and len(capsys.readouterr().err.splitlines()) == 1
    assert json.loads((tmp_path / "result.json").read_text())["clean"]["examples"] == TEST_EXAMPLES


def test_a_damaged_result_file_is_told_before_anything_is_measured(run_folder, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    (tmp_path / "checkpoints").symlink_to(run_folder / "checkpoints")
    (tmp_path / "result.json").write_text('{"clean')
    monkeypatch.setattr(suites, "run_suites", lambda *_: pytest.fail("measured"))
    assert "is not JSON" in error_of(f"--workdir={tmp_path}")
    assert (tmp_path / "result.json").read_text() == '{"clean'


def test_what_does_not_fit_is_told_before_anything_compiles(run_folder, tmp_path, monkeypatch):
    for name in suites.SUITES:
        monkeypatch.setitem(suites.SUITES, name, lambda context: pytest.fail("measured"))
    here = f"--workdir={run_folder}"
    assert "devices = -1: must be a number of devices, or 0 for all" in error_of(here, "--devices=-1")
    assert "only 8 cpu devices" in error_of(here, "--devices=99")
    assert "checkpoint = 'abc': must be best, latest or a step" in error_of(here, "--checkpoint=abc")
    assert "option = 'depth': must be one of" in error_of(here, "--option=depth=abc")
    assert "autoattack_points = '-5': cannot be read" in error_of(here, "--option=autoattack_points=-5")
    assert "step_size = '1/0'" in error_of(here, "--step_size=1/0")
    assert "threat = 'linf8'" in error_of(here, "--threat=linf8")
    assert "without --norm and --epsilon" in error_of(here, "--threat=linf-0.1", "--epsilon=0.1")
    assert "epsilon = 8.0: must be at most 1" in error_of(here, "--threat=linf-8")
    assert "adaptive = 'straight': must be one of straight_through" in error_of(here, "--adaptive=straight")
    assert "given with one of the suites" in error_of(here, "--adaptive=straight_through", "--suite=clean")
    assert "given with the suite masking" in error_of(here, f"--transfer_from={run_folder}")
    assert "there is nothing of this name" in error_of(here, "--suite=masking", "--transfer_from=nowhere")
    assert "given without --logits_fn" in error_of("--logits_fn=a:b", "--weights_dir=c")
    assert "must be given for a run only" in error_of("--logits_fn=a:b", "--checkpoint=7")
    assert "or --data and --threat" in error_of("--logits_fn=a:b", "--data=digits")
    assert "must be a folder" in error_of("--logits_fn=a:b", f"--workdir={__file__}", "--data=digits", "--threat=l2-1")
    assert "data = 'fodler': must be one of" in error_of(here, "--data=fodler:/x")


def write_npz(folder, channels, classes, examples=12):
    """Stored splits, as `--data=npz:FOLDER` reads them."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        images = rng.integers(0, 256, (examples, 8, 8, channels), np.uint8)
        np.savez(folder / f"{split}.npz", image=images, label=np.arange(examples) % classes)


def test_other_data_and_another_threat_are_measured_beside_the_runs_own(run_folder, tmp_path):
    write_npz(tmp_path, channels=1, classes=4)
    own = run(f"--workdir={run_folder}", "--suite=clean,pgd")
    other = run(f"--workdir={run_folder}", "--suite=clean,pgd", f"--data=npz:{tmp_path}", "--threat=l2-1/2")
    assert other["split"] == f"test, npz:{tmp_path}" and (other["pgd"]["norm"], other["pgd"]["epsilon"]) == ("l2", 0.5)
    assert other["clean"]["examples"] == 12 and other["weights"]["hash"] == own["weights"]["hash"]
    back = run(f"--workdir={run_folder}", "--suite=clean")
    assert back["pgd"]["accuracy"] == own["pgd"]["accuracy"]  # kept meanwhile


def test_data_that_do_not_fit_the_model_are_told(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "_run", lambda *_: pytest.fail("measured"))
    (tmp_path / "colour").mkdir()
    write_npz(tmp_path / "colour", channels=3, classes=4)
    here = f"--workdir={run_folder}"
    assert "images = (8, 8, 3): must be of 1 channels, as the model takes" in error_of(
        here, f"--data=npz:{tmp_path / 'colour'}"
    )
    (tmp_path / "more").mkdir()
    write_npz(tmp_path / "more", channels=1, classes=6)
    assert "num_classes = 6: must be at most 4, the classes that the model knows" in error_of(
        here, f"--data=npz:{tmp_path / 'more'}"
    )


def test_converted_weights_are_measured_on_data_of_the_command_line(run_folder, tmp_path, monkeypatch):
    """Without a configuration: the data and the threat are named, and the model to transfer from is a run."""
    _, module, variables, _ = checkpoint.load(run_folder, "best", "raw")
    converted.save(tmp_path / "weights", "vit", module, variables)
    write_npz(tmp_path, channels=1, classes=4)
    seen, made = [], {"warnings": [], "findings": [], "points": 12}
    monkeypatch.setitem(suites.SUITES, "masking", lambda context: seen.append(context) or made)
    flags = (f"--weights_dir={tmp_path / 'weights'}", f"--data=npz:{tmp_path}", "--threat=l2-0.5")
    result = run(*flags, "--suite=clean,masking", f"--transfer_from={run_folder}")
    subject = evaluate.from_run(run_folder, weights="raw")
    assert result["weights"]["hash"] == suites.identify(subject.logits_fn, (8, 8, 1))
    assert (seen[0].norm, seen[0].epsilon) == ("l2", 0.5)
    images = seen[0].arrays()[0] / np.float32(255)
    other = evaluate.from_run(run_folder)
    np.testing.assert_allclose(seen[0].transfer_from(images), other.logits_fn(images), rtol=1e-4, atol=1e-5)


KINDS = """
import jax.numpy as jnp
import numpy as np

def tuple_(): return lambda x: (x[:, 0, :4, 0], x)
def nothing(): return lambda x: None
def complex_(): return lambda x: x[:, 0, :4, 0] + 0j
def numpy_(): return lambda x: np.asarray(x)[:, 0, :4, 0]
def text(): return "a model"
"""


def test_functions_of_every_kind_end_in_figures_or_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "kinds.py").write_text(KINDS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))
    here = f"--workdir={tmp_path}"
    assert "= a tuple of 2 (float32[8, 4], float32[8, 8, 8, 1]): must be one" in error_of(
        "--logits_fn=kinds:tuple_", here
    )
    assert "= None: must be one float array" in error_of("--logits_fn=kinds:nothing", here)
    assert "logits.dtype = 'complex64'" in error_of("--logits_fn=kinds:complex_", here)
    assert "logits_fn = 'a model': must be callable" in error_of("--logits_fn=kinds:text", here)
    assert "gradient-free suites" in error_of("--logits_fn=kinds:numpy_", here, "--suite=clean,pgd")
    square = ("--suite=clean,autoattack", "--option=autoattack_version=square", "--option=autoattack_budget=0.001")
    result = run("--logits_fn=kinds:numpy_", here, "--limit=5", *square)
    assert result["clean"]["examples"] == result["autoattack"]["examples"] == 5


def test_adaptive_attacks_see_through_a_defence_and_stand_beside_the_plain_ones(tmp_path, monkeypatch):
    """Rounded pixels take every gradient away: plain PGD breaks nothing, the straight-through one what it should."""
    (tmp_path / "rounded.py").write_text(
        "import jax.numpy as jnp\n\ndef make():\n"
        "    w = jnp.asarray([[k * x % 7 - 3.0 for k in range(1, 5)] for x in range(64)])\n"
        "    return lambda x: jnp.round(x.reshape(x.shape[0], -1) * 8) @ w\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))
    flags = ("--logits_fn=rounded:make", f"--workdir={tmp_path}", "--threat=linf-0.2")
    plain = run(*flags, "--suite=clean,pgd,quick")
    assert plain["pgd"]["accuracy"] == plain["clean"]["accuracy"] > 0
    both = run(*flags, "--suite=clean,pgd,quick", "--adaptive=straight_through")
    for name in ("pgd", "quick"):
        assert both[name] == plain[name] and "adaptive" not in both[name]
        adaptive = both[f"{name}:straight_through"]
        assert adaptive["adaptive"] == "straight_through" and adaptive["accuracy"] < plain[name]["accuracy"]
    assert both["clean"]["correct"] == plain["clean"]["correct"] and "previous" not in both
    assert both["quick:straight_through"]["ledger"] != plain["quick"]["ledger"]


def test_a_real_result_is_of_the_documented_form(run_folder, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((pathlib.Path(evaluate.__file__).parent / "schemas" / "result.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    few = ("--limit=4", "--option=masking_points=4", "--option=masking_queries=4", "--option=sweep_steps=2")
    result = run(f"--workdir={run_folder}", "--suite=clean,fgsm,pgd,sweep,quick", *few)
    result = run(f"--workdir={run_folder}", "--suite=pgd", "--steps=3", *few)
    assert len(record.suites_of(result)) == 5 and result["previous"]
    for stored in (result, json.loads((run_folder / "result.json").read_text())):
        validator.validate(json.loads(json.dumps(stored)))
    for damage in ({"schema": 3}, {"pgd": {"accuracy": 1.5}}, {"weights": {}}, {"sweep": result["clean"]}):
        assert not validator.is_valid(json.loads(json.dumps({**result, **damage})))


def test_a_result_without_a_schema_is_read_and_one_of_the_future_is_not(run_folder, tmp_path):
    old = {
        "weights": {"hash": "0" * 64, "step": 3},
        "split": "test",
        "command": "x",
        "versions": {},
        "devices": "1 x cpu",
    }
    (tmp_path / "result.json").write_text(json.dumps(old | {"clean": {"accuracy": 0.5, "seed": 0}}))
    known = record.merge(record.read(tmp_path / "result.json"), record.head({"hash": "b"}, "test") | {"pgd": {"a": 1}})
    assert known["schema"] == record.SCHEMA and known["previous"][0]["clean"]["accuracy"] == 0.5
    assert "devices" not in record.suites_of(known["previous"][0])
    (tmp_path / "result.json").write_text(json.dumps(old | {"schema": 3}))
    with pytest.raises(ValueError, match="schema = 3: must be at most 2"):
        record.read(tmp_path / "result.json")


def test_help_tells_every_flag_suite_and_option(capsys):
    assert run("--help") is None
    printed = capsys.readouterr().out
    assert "python -m robust_vit.evaluate --workdir=runs/digits" in printed
    for flag in evaluate._FLAGS:
        assert f"  --{flag} " in printed
    for name, suite in suites.SUITES.items():
        assert f"  {name} " in printed and suite.__doc__.split()[0] in printed
    for name, option in suites.OPTIONS.items():
        assert f"  {name} " in printed and option.allowed in printed and option.help in printed


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
