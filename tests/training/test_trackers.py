"""Trackers: what each is told, that a resumed run goes on in the same record, that a failing one costs only itself."""

import csv
import importlib.machinery
import json
import sys
import types

import pytest

from robust_vit.training import progress, trackers


def run(workdir, names, *, start=0, steps=(2, 4, 6), **options):
    """Reports some steps as training does."""
    made = progress.Progress(workdir, 10, start, live=False, trackers=names, **options)
    for step in steps:
        made.write("train", step, step / 10, loss=float(step))
    made.write("validation", steps[-1], steps[-1] / 10, clean_accuracy=0.5, robust_accuracy=0.25)
    made.close()
    return made


def module(name, **content):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(content)
    return made


def table(workdir):
    with (workdir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_csv_is_the_table_of_the_rows_also_after_a_resumption(tmp_path):
    run(tmp_path, "csv")
    run(tmp_path, "csv", start=4, steps=(6, 8))
    found = table(tmp_path)
    assert [(row["kind"], row["step"]) for row in found] == [
        *(("train", "2"), ("train", "4"), ("train", "6"), ("train", "8"), ("validation", "8"))
    ]
    assert found[3]["loss"] == "8.0" and found[3]["clean_accuracy"] == "" and found[4]["robust_accuracy"] == "0.25"
    assert list(found[0]) == ["schema", "kind", "step", "epoch", "loss", "clean_accuracy", "robust_accuracy"]


def test_tensorboard_events_carry_the_figures_and_where_a_resumption_begins(tmp_path):
    loader = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs the optional extra .[tensorboard]")
    run(tmp_path, "tensorboard")
    run(tmp_path, "tensorboard", start=4, steps=(6,))
    first, second = (events(path, loader) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert scalars(first) == [
        *(("train/loss", 2, 2.0), ("train/loss", 4, 4.0), ("train/loss", 6, 6.0)),
        *(("validation/clean_accuracy", 6, 0.5), ("validation/robust_accuracy", 6, 0.25)),
    ]
    assert [event.step for event in second if event.HasField("session_log")] == [5]  # TensorBoard drops what is past it
    assert scalars(second)[0] == ("train/loss", 6, 6.0)


def events(path, loader):
    """Events of a file: records of length (8 bytes), checksum (4), content, checksum (4)."""
    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        found.append(loader.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def scalars(found):
    return [(value.tag, event.step, value.simple_value) for event in found for value in event.summary.value]


class Service:
    """A Weights & Biases that remembers what it was told."""

    def __init__(self):
        self.begun, self.logged, self.finished, self.id = [], [], 0, "abc"

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1


def test_wandb_gets_figures_at_their_steps_and_continues_its_run(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=service.init))
    run(tmp_path, "wandb", steps=(2,))
    run(tmp_path, "wandb", start=2, steps=(4,))
    assert [options["id"] for options in service.begun] == [None, "abc"] and service.finished == 2
    assert service.begun[0]["name"] == tmp_path.name and service.begun[0]["resume"] == "allow"
    assert service.logged[0] == (2, {"train/loss": 2.0, "epoch": 0.2})
    assert service.logged[3] == (
        4,
        {"validation/clean_accuracy": 0.5, "validation/robust_accuracy": 0.25, "epoch": 0.4},
    )


class Client:
    """An MLflow client that remembers what it was told."""

    runs: list = []

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "1"

    def create_run(self, experiment, run_name):
        Client.runs.append({"name": run_name, "params": {}, "metrics": [], "ended": 0})
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=str(len(Client.runs) - 1)))

    def log_param(self, run, name, value):
        self.runs[int(run)]["params"][name] = value

    def log_batch(self, run, metrics):
        self.runs[int(run)]["metrics"] += metrics

    def set_terminated(self, run):
        self.runs[int(run)]["ended"] += 1


def test_mlflow_gets_parameters_once_and_figures_at_their_steps(tmp_path, monkeypatch):
    from tiny_run import config

    monkeypatch.setattr(Client, "runs", [])
    entities = module("mlflow.entities", Metric=lambda name, value, when, step: (name, value, step))
    tracking = module("mlflow.tracking", MlflowClient=Client)
    for made in (module("mlflow", entities=entities, tracking=tracking), entities, tracking):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    run(tmp_path, "mlflow", steps=(2,), config=config())
    run(tmp_path, "mlflow", start=2, steps=(4,), config=config())
    (known,) = Client.runs
    assert known["name"] == tmp_path.name and known["ended"] == 2
    assert known["params"]["model.width"] == 16 and known["params"]["data.train_transforms"] == ()
    assert known["metrics"][0] == ("train/loss", 2.0, 2) and known["metrics"][3] == ("train/loss", 4.0, 4)


@pytest.mark.slow
def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the optional extra .[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "wandb" in run(tmp_path, "wandb").trackers
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_the_real_mlflow_in_a_file(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the optional extra .[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "mlflow" in run(tmp_path, "mlflow").trackers
    known = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    history = mlflow.tracking.MlflowClient().get_metric_history(known, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(2, 2.0), (4, 4.0), (6, 6.0)]


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    def full(self, row):
        raise OSError(28, "No space\nleft on device")

    monkeypatch.setattr(trackers.CSV, "write", full)
    made = run(tmp_path, "csv")
    assert made.trackers == {}
    lines = [line for line in capsys.readouterr().out.splitlines() if "training.trackers" in line]
    assert lines == ["training.trackers: csv failed ([Errno 28] No space left on device) and is left out from here on"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("tensorbord", "training.trackers = 'tensorbord': must be one of .*csv, .*; did you mean 'tensorboard'?"),
        ("csv, absent", r"training.trackers = 'csv, absent': absent needs `pip install 'robust-vit\[absent\]'`"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(monkeypatch, names, line):
    monkeypatch.setitem(trackers.TRACKERS, "absent", (None, "no_such_module", "robust-vit[absent]"))
    with pytest.raises(ValueError, match=line):
        trackers.check(names)


def test_no_trackers_are_none():
    assert trackers.names("") == trackers.names(" , ") == [] and trackers.names("csv,csv") == ["csv"]
