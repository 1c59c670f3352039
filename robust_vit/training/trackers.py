"""Where the rows of a run go besides the screen: `metrics.jsonl` always, and the trackers that a configuration names.

A tracker has `write(row)` and `close()`. To add one: a factory `name(workdir, start, config)`, and its line
in TRACKERS. A row is {"schema", "kind", "step", "epoch", figures...}, described in `schemas/metrics.schema.json`.
"""

import csv
import io
import json
import pathlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

from robust_vit import provenance
from robust_vit.errors import lookup

SCHEMA = 1  # of a row; see schemas/metrics.schema.json
HEAD = ("schema", "kind", "step", "epoch")  # what is in every row and is no figure

Row = dict[str, Any]


class Tracker(Protocol):
    """Takes rows as they come."""

    def write(self, row: Row) -> None:
        """Takes one row, in the order of steps."""

    def close(self) -> None:
        """Ends the record; nothing is written afterwards."""


class JSONLines:
    """`metrics.jsonl`: appended to and never rewritten, but that a resumed run drops the rows it is about to repeat.

    Args:
      path: the file.
      start: the step this process begins at; rows past it are dropped, and a torn last line.
    """

    def __init__(self, path: pathlib.Path, start: int):
        if path.exists():
            rows = [row for row in provenance.read_lines(path) if row["step"] <= start]
            provenance.write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        # unbuffered: a row is in the file when `write` returns, and `close` has nothing left to fail with
        self.file = path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Appends a line."""
        self.file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class CSV:
    """`metrics.csv`, a table of the rows of metrics.jsonl; it is written anew when a row brings a new column."""

    def __init__(self, workdir: pathlib.Path, start: int, config: Any):
        self.path, self.source, self.columns = workdir / "metrics.csv", workdir / "metrics.jsonl", list(HEAD)
        self._rebuild()

    def _rebuild(self) -> None:
        rows = provenance.read_lines(self.source)
        self.columns = list(dict.fromkeys([*HEAD, *(name for row in rows for name in row)]))
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns)
        table.writeheader()
        table.writerows(rows)
        provenance.write_atomically(self.path, text.getvalue())

    def write(self, row: Row) -> None:
        """Appends a line; metrics.jsonl has the row already."""
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._rebuild()

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """Event files in `tensorboard/`, by tensorboardX, written at once: its own writer thread dies of a full disk."""

    def __init__(self, workdir: pathlib.Path, start: int, config: Any):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self.summary, self.event, folder = summary, event_pb2, workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self.file = event_file_writer.EventsWriter(str(folder / "events"), f".{start}")
        if start:  # what TensorBoard has seen past this step was not to be
            begin = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
            self._put(start + 1, session_log=begin)

    def _put(self, step: int, **content: Any) -> None:
        self.file.write_event(self.event.Event(wall_time=time.time(), step=step, **content))
        self.file.flush()

    def write(self, row: Row) -> None:
        """Writes each figure under `kind/name`."""
        for name, value in figures(row).items():
            self._put(row["step"], summary=self.summary.scalar(name, value))

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class WandB:
    """Weights & Biases; offline with WANDB_MODE=offline. A resumed run continues the one it began."""

    def __init__(self, workdir: pathlib.Path, start: int, config: Any):
        import wandb

        known = remembered(workdir, "wandb")
        self.run = wandb.init(
            project="robust_vit", name=workdir.name, dir=str(workdir), config=config, resume="allow", id=known
        )
        remember(workdir, "wandb", self.run.id)

    def write(self, row: Row) -> None:
        """Logs the figures at their step; W&B itself leaves out steps that it has seen."""
        self.run.log(figures(row) | {"epoch": row["epoch"]}, step=row["step"])

    def close(self) -> None:
        """Marks the run as finished."""
        self.run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI. A resumed run continues the one it began."""

    def __init__(self, workdir: pathlib.Path, start: int, config: Any):
        from mlflow import entities, tracking

        self.client, self.entities = tracking.MlflowClient(), entities
        self.run = remembered(workdir, "mlflow")
        if self.run is None:
            found = self.client.get_experiment_by_name("robust_vit")
            experiment = found.experiment_id if found else self.client.create_experiment("robust_vit")
            self.run = self.client.create_run(experiment, run_name=workdir.name).info.run_id
            remember(workdir, "mlflow", self.run)
            for name, value in flat(config).items():
                self.client.log_param(self.run, name, value)

    def write(self, row: Row) -> None:
        """Logs the figures at their step."""
        now = int(1000 * time.time())
        metrics = [self.entities.Metric(name, value, now, row["step"]) for name, value in figures(row).items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        """Marks the run as finished."""
        self.client.set_terminated(self.run)


# Name -> (factory(workdir, start, config), the module it needs, the package to install).
TRACKERS: dict[str, tuple[Callable[..., Tracker], str, str]] = {
    "csv": (CSV, "csv", ""),
    "tensorboard": (TensorBoard, "tensorboardX", "robust-vit[tensorboard]"),
    "wandb": (WandB, "wandb", "robust-vit[wandb]"),
    "mlflow": (MLflow, "mlflow", "robust-vit[mlflow]"),
}


def names(trackers: str) -> list[str]:
    """Reads `csv,tensorboard`; "" is none.

    Raises:
      ValueError: for a name that is none of TRACKERS.
    """
    found = [name.strip() for name in trackers.split(",") if name.strip()]
    for name in found:
        lookup("training.trackers", name, TRACKERS)
    return list(dict.fromkeys(found))


def check(trackers: str) -> None:
    """Raises ValueError for a tracker that does not exist or whose package is not installed."""
    for name in names(trackers):
        _, module, package = TRACKERS[name]
        if find_spec(module) is None:
            raise ValueError(f"training.trackers = {trackers!r}: {name} needs `pip install '{package}'`")


def build(trackers: str, workdir: pathlib.Path, start: int = 0, config: Any = None) -> dict[str, Tracker]:
    """Opens the trackers of a run.

    Args:
      trackers: names, comma separated.
      workdir: the run folder, where metrics.jsonl is already open.
      start: the step this process begins at.
      config: the configuration as nested dicts, for trackers that show it.
    """
    check(trackers)
    return {name: TRACKERS[name][0](workdir, start, config or {}) for name in names(trackers)}


def figures(row: Row) -> dict[str, float]:
    """The figures of a row, as trackers name them: `train/loss`."""
    return {f"{row['kind']}/{name}": value for name, value in row.items() if name not in HEAD}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    if not isinstance(config, dict):
        return {prefix[:-1]: config}
    return {name: value for key, part in config.items() for name, value in flat(part, f"{prefix}{key}.").items()}


def remembered(workdir: pathlib.Path, name: str) -> str | None:
    """The identity that a tracker's service gave this run when it began; None before."""
    path = workdir / "trackers.json"
    return provenance.read_json(path).get(name) if path.exists() else None


def remember(workdir: pathlib.Path, name: str, identity: str) -> None:
    """Notes the identity in the run folder."""
    path = workdir / "trackers.json"
    known = provenance.read_json(path) if path.exists() else {}
    if known.get(name) != identity:
        provenance.write_json(path, known | {name: identity})
