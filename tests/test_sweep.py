"""Sweeps: variants from a configuration or the command line, each run once, and the table at the end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from robust_vit import commands, errors, main, sweep
from robust_vit import config as config_lib
from robust_vit.analysis import variants as table
from robust_vit.evaluation import intervals, pairs

MINE = """
from robust_vit import config


def get_config():
    return config.load_file("digits")


def sweeps():
    steps = {f"steps={n}": {"attack.steps": n} for n in (1, 5, 10)}
    return {"attack_steps": steps, "objectives": {"plain": {"config": "digits:standard"}}}
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A configuration with two sweeps."""
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return path


def planned(*arguments, workdir="runs/s"):
    return sweep.plan(["sweep", f"--workdir={workdir}", *arguments])


def test_fields_and_values_of_the_command_line_are_combined():
    runs = planned(
        "--config=digits", "--over=attack.epsilon=8/255,0.1", "--over=config.attack.steps=1,7", "--seeds=0,3"
    )
    assert len(runs) == 8 and runs[0].variant == "epsilon=8/255,steps=1"
    assert [str(run.folder) for run in runs[:2]] == [f"runs/s/epsilon=8_255,steps=1/seed{s}" for s in (0, 3)]
    last = runs[-1].config
    assert (last.attack.epsilon, last.attack.steps, last.seed) == (0.1, 7, 3)
    assert runs[0].config.attack.epsilon == pytest.approx(8 / 255)


def test_a_value_may_hold_commas():
    runs = planned(
        "--config=xcit_s12:synthetic", "--over=data.train_transforms=(),('random_crop(32, padding=2)','flip')"
    )
    assert config_lib.plain(runs[0].config.data.train_transforms) == ()
    assert config_lib.plain(runs[1].config.data.train_transforms) == ("random_crop(32, padding=2)", "flip")


def test_flags_of_training_hold_for_every_variant():
    runs = planned(
        "--config=digits", "--over=seed=1,2", "--config.training.epochs=3", "--config.attack.warmup_epochs=0"
    )
    assert [run.config.training.epochs for run in runs] == [3, 3] and [run.config.seed for run in runs] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--over=attack.stebs=1,2"],
            r"variant stebs=1: config.attack.stebs: no such field; did you mean 'attack.steps'",
        ),
        (["--over=attack.steps=1,0"], r"variant steps=0: attack.steps = 0: must be a whole number >= 1"),
        (["--over=attack.steps=1,many"], r"variant steps=many: "),
        (["--over=attack.steps"], r"over = 'attack.steps': must be FIELD=VALUE"),
        (["--over=attack.steps=1,,2"], r"over = 'attack.steps=1,,2': must be FIELD=VALUE"),
        (["--over=attack.steps=1,1"], r"over = 'attack.steps=1,1': must be different values"),
        (["--over=seed=1", "--over=seed=2"], r"over = 'seed': must be given once: variant seed=1,seed=2"),
        (["--over=seed=1", "--seeds=0"], r"seeds = '0': must be left out: seed=1 has its own"),
        (["--over=attack.steps=1", "--seeds=0,0"], r"seeds = '0,0': must be different"),
        (["--over=attack.steps=1", "--suite=cleen"], r"suite.*cleen.*did you mean 'clean'"),
        (["--over=attack.steps=1", "--seeds=x"], r"variant steps=1: .*seed"),
        (["--over=attack.steps=1", "--stray=3"], r"variant steps=1: .*stray"),
        ([], r"sweep = '': must be left out, with --over given"),
        (["--sweep=steps"], r"sweep = 'steps': must be one of"),
        (["--config=MINE"], r"sweep = '': must be one of attack_steps, objectives"),
        (["--config=MINE", "--sweep=atack_steps"], r"sweep = 'atack_steps'.*did you mean 'attack_steps'"),
        (["--config=digit", "--over=seed=1"], r"config = 'digit'"),
    ],
)
def test_what_cannot_run_is_one_line_before_anything_runs(arguments, message, mine, tmp_path):
    arguments = [argument.replace("MINE", str(mine)) for argument in arguments]
    with pytest.raises(ValueError, match=message) as error:
        planned("--config=digits", *arguments, workdir=tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_a_sweep_of_one_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from robust_vit import config\n"
        "def get_config():\n    return config.load_file('digits')\n"
        "def sweep():\n    return {'short': {'attack.steps': 1}, 'standard': {'config': 'digits:standard'}}\n"
    )
    short, standard = planned(f"--config={path}")
    assert short.config.attack.steps == 1 and standard.config.objective.name == "standard"
    path.write_text(path.read_text().replace("return {'short'", "return [1] and {'short': 3, 'long'"))
    with pytest.raises(ValueError, match="must be a file whose sweeps return"):
        planned(f"--config={path}")


def test_printed_lines_are_commands_of_training(mine, tmp_path, capsys):
    sweep.main(["sweep", f"--config={mine}", "--sweep=attack_steps", f"--workdir={tmp_path}", "--print"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[:2] for words in lines] == [["robust-vit", "train"]] * 3
    steps = [main.parse(["train", *words[2:]])[0].attack.steps for words in lines]
    assert steps == [1, 5, 10] and len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 3


# ------------------------------------------------------------------------------------------- runs and what they leave


def entry(correct):
    """Of result.json: a suite's figures of examples that are right or not."""
    correct = np.asarray(correct, bool)
    low, high = intervals.wilson(int(correct.sum()), len(correct))
    accuracy = float(correct.mean())
    outcomes = pairs.pack(np.arange(len(correct)), correct)
    return {"accuracy": accuracy, "interval": [low, high], "examples": len(correct), "outcomes": outcomes}


def leave(folder, correct, finished=True):
    """What a run leaves in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {"schema": 2, "split": "test", "weights": {"hash": str(folder)}, "clean": entry(correct)}
    (folder / "result.json").write_text(json.dumps(result))
    if finished:
        (folder / "finished.json").write_text('{"step": 1}')


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained, each of which leaves a result; those named in `broken` do something else."""
    seen, broken = [], {}

    def train(run):
        seen.append(run.folder.as_posix())
        status = broken.get(run.variant)
        if status is None:
            leave(run.folder, np.arange(40) % 7 < run.config.attack.steps)
        return status or 0

    monkeypatch.setattr(sweep, "train", train)
    return seen, broken


def run_sweep(folder, *more):
    return sweep.main(["sweep", "--config=digits", f"--workdir={folder}", "--over=attack.steps=5,3", *more])


def test_every_variant_runs_once_and_the_table_stands_at_the_end(trained, tmp_path, capsys):
    seen, _ = trained
    rows = run_sweep(tmp_path)
    assert seen == [f"{tmp_path}/steps=5", f"{tmp_path}/steps=3"]
    assert [(row.median.run, row.accuracies) for row in rows] == [("steps=5", (0.75,)), ("steps=3", (0.45,))]
    out = capsys.readouterr().out
    assert "75.00 %" in out and "45.00 %" in out and (tmp_path / "sweep.png").is_file()
    stored = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert stored[1]["difference"]["lost"] == 12 and stored[1]["variant"] == "steps=3"
    run_sweep(tmp_path)
    assert len(seen) == 2  # a finished variant is not run again
    run_sweep(tmp_path, "--over=seed=1")
    assert seen[2:] == [f"{tmp_path}/steps=5,seed=1", f"{tmp_path}/steps=3,seed=1"]


def test_other_settings_under_the_same_name_are_refused(trained, tmp_path, capsys):
    run_sweep(tmp_path)
    with pytest.raises(SystemExit, match="holds steps=5 with training.epochs = .* there, 41.0 here; choose another"):
        run_sweep(tmp_path, "--config.training.epochs=41")


def test_a_failure_is_told_at_the_end_and_tried_again(trained, tmp_path, capsys):
    seen, broken = trained
    broken["steps=5"] = 1
    with pytest.raises(SystemExit, match=r"error: sweep: 1 of 2 runs failed: .*steps=5 \(status 1\)"):
        run_sweep(tmp_path)
    assert len(seen) == 2 and "45.00 %" in capsys.readouterr().out
    broken.clear()
    assert len(run_sweep(tmp_path)) == 2 and seen[2:] == [f"{tmp_path}/steps=5"]


def test_a_stopped_run_stops_the_sweep(trained, tmp_path):
    seen, broken = trained
    broken["steps=5"] = 0  # as training ends after SIGTERM: saved, without an error, not finished
    with pytest.raises(SystemExit, match="stopped in .*steps=5; the same command goes on"):
        run_sweep(tmp_path)
    assert len(seen) == 1


def test_a_signal_ends_the_sweep_whatever_the_run_makes_of_it(tmp_path):
    """Even one that arrives while the run is starting and listens to nothing yet."""
    (run,) = planned("--config=digits", "--over=attack.steps=1", workdir=tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def stop():
        while signal.getsignal(signal.SIGTERM) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Thread(target=stop)
    timer.start()
    with pytest.raises(errors.Mendable, match="stopped in .*steps=1; the same command goes on"):
        sweep.train(run)
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_seeds_give_the_median_run_and_its_paired_difference(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {(v, s): rng.random(50) < p for v, p in (("a", 0.5), ("b", 0.8)) for s in range(3)}
    for (variant, seed), correct in outcomes.items():
        leave(tmp_path / variant / f"seed{seed}", correct)
    rows = table.rows({v: [tmp_path / v / f"seed{s}" for s in range(3)] for v in ("a", "b")})
    medians = []
    for row, variant in zip(rows, ("a", "b")):
        of_seeds = [outcomes[variant, s] for s in range(3)]
        medians.append(sorted(of_seeds, key=np.mean)[1])
        assert row.accuracies == tuple(float(correct.mean()) for correct in of_seeds)
        assert row.median.entry["accuracy"] == float(medians[-1].mean())
        low, high = min(row.accuracies), max(row.accuracies)
        assert table.cells(row)[3] == f"{100 * low:.2f} – {100 * high:.2f}"
    assert rows[0].median.difference is None and rows[1].median.difference == pairs.paired(*medians)
    assert len(table.cells(rows[0])) == len(table.HEADS)


def test_variants_on_other_data_have_no_difference(tmp_path):
    for name in ("a", "b"):
        leave(tmp_path / name, [True, False])
        (tmp_path / name / "config.json").write_text(json.dumps({"data": {"name": name, "options": {}}}))
    rows = table.rows({name: [tmp_path / name] for name in ("a", "b")})
    assert rows[1].median.difference is None and rows[1].median.note == "other data"


SMALL = [
    "--config.model.depth=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.attack.warmup_epochs=0",
]
SMALL += ["--config.optimizer.warmup_epochs=0", "--config.validation.steps=1", "--config.evaluation.suite=clean"]
SMALL += ["--config.training.validate_every_epochs=50", "--config.training.save_every_epochs=1"]


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on(tmp_path):
    """Two real runs: SIGTERM in the first one saves it, the same command finishes both, a third call trains nothing."""
    command = [sys.executable, "-m", "robust_vit.sweep", "--config=digits", f"--workdir={tmp_path}"]
    command += ["--over=attack.steps=1,2", "--config.training.epochs=4", *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 300
    while not (tmp_path / "steps=1" / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "steps=1; the same command goes on" in error
    assert not (tmp_path / "steps=2").exists() and not (tmp_path / "lock.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name / "finished.json").is_file() for name in ("steps=1", "steps=2"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.stdout.count("finished\n") == 2 and "steps=2" in again.stdout


@pytest.mark.slow
def test_the_sweep_itself_touches_no_device():
    """An accelerator belongs to the runs."""
    code = (
        "from robust_vit import sweep\n"
        "sweep.plan(['sweep', '--config=digits', '--over=attack.steps=1,2', '--workdir=x'])\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_help_is_told_without_a_workdir(capsys):
    commands.main(["robust-vit", "sweep", "--help"])
    assert "--over" in capsys.readouterr().out
