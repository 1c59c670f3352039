"""Checkpoints: state and data position together, written asynchronously. The only file that knows orbax.

Kept are the latest few and the best by validation. One that cannot be read is named and set aside, never deleted.
"""

import pathlib
import shutil
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from robust_vit import config as config_lib
from robust_vit import models
from robust_vit.training.experiment import model_keywords
from robust_vit.training.state import TrainState

logging.set_verbosity(logging.ERROR)  # orbax reports every file at INFO


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      workdir: the run folder.
      keep: how many of the latest to keep.
      select: name of the validation metric, larger is better, whose best checkpoint is kept besides.
      read_only: never write, for evaluation.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, select: str = "", read_only: bool = False):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self.select = select
        policies = checkpoint_managers
        rules = [policies.LatestN(n=keep)]
        score = (lambda metrics: metrics[select]) if select else None
        if score:
            rules.append(policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(rules),
                best_fn=score,  # orbax stores metrics only where this is set
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
            item_names=("state", "data"),
        )

    def save(
        self, step: int, state: TrainState, position: dict[str, Any], metrics: dict[str, float] | None = None
    ) -> None:
        """Starts writing a checkpoint; a step that is already there is left as it is.

        Args:
          step: steps taken.
          state: its buffers may be donated as soon as this returns.
          position: of the data iterator, from `get_state`.
          metrics: of the validation split, where it was measured at this step.
        """
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position))
        self.manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read, or the one asked for.

        Args:
          abstract: the state's shapes, dtypes and shardings.
          step: a certain step; None for the newest.

        Returns:
          (state, data position), or None in an empty folder. A damaged newest one is named in a warning, moved to
          `damaged/`, and the one before it is used.

        Raises:
          ValueError: if checkpoints are there and none can be read.
        """
        steps = [step] if step is not None else sorted(self.manager.all_steps(), reverse=True)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        for candidate in steps:
            try:
                found = self.manager.restore(candidate, args=items)
                return found.state, found.data
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"checkpoint {self.directory / str(candidate)} is damaged: {reason}", stacklevel=2)
                if step is None:
                    self._set_aside(candidate)
        if steps:
            raise ValueError(
                f"workdir = {str(self.directory.parent)!r}: no checkpoint in it can be read; tried {steps}"
            )
        return None

    def _set_aside(self, step: int) -> None:
        damaged = self.directory.parent / "damaged"
        damaged.mkdir(exist_ok=True)
        target = damaged / str(step)
        while target.exists():
            target = target.with_name(target.name + "_again")
        shutil.move(self.directory / str(step), target)
        self.manager.reload()

    def best(self) -> int | None:
        """Returns the step of the best checkpoint by the validation metric, the latest of equals; None without one."""
        scores = [(self.metrics(step).get(self.select), step) for step in self.manager.all_steps()]
        scores = [(score, step) for score, step in scores if score is not None]
        return max(scores)[1] if scores else None

    def latest(self) -> int | None:
        """Returns the newest step, None in an empty folder."""
        return self.manager.latest_step()

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the validation metrics stored with a checkpoint, {} where there are none."""
        return self.manager.metrics(step) or {}

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.manager.wait_until_finished()
        self.manager.close()


def load(workdir: str | pathlib.Path, step: str | int = "best", weights: str = "") -> tuple[Any, Any, dict, int]:
    """Reads a run folder for evaluation.

    Args:
      workdir: a folder that training wrote.
      step: "best" by validation, "latest", or a step number.
      weights: "raw", "ema", or "" for what the run selected its best checkpoint by.

    Returns:
      (config, module, variables, step).

    Raises:
      ValueError: if the folder holds no run, no such checkpoint or no such weights.
    """
    workdir = pathlib.Path(workdir)
    description = workdir / "config.json"
    if not description.is_file():
        raise ValueError(f"workdir = {str(workdir)!r}: holds no config.json; must be a folder that training wrote")
    config = config_lib.from_json(description.read_text())
    select = selection(config)
    checkpoints = Checkpoints(workdir, select=select, read_only=True)
    found = {"best": checkpoints.best, "latest": checkpoints.latest}.get(str(step), lambda: int(step))()
    found = checkpoints.latest() if found is None else found
    present = sorted(checkpoints.manager.all_steps())
    if found not in present:
        raise ValueError(f"step = {step!r}: no such checkpoint in {str(workdir)!r}; present are {present}")
    tree = _read_arrays(checkpoints.directory / str(found) / "state")
    checkpoints.close()
    state = TrainState(tree["step"], tree["params"], tree["batch_stats"] or {}, None, tree["average"] or {})
    weights = weights or ("ema" if select.startswith("ema_") else "raw")
    if weights not in ("raw", "ema"):
        raise ValueError(f"weights = {weights!r}: must be 'raw' or 'ema'")
    variables = jax.tree.map(jax.numpy.asarray, state.variables(weights))
    return config, models.build(config.model.name, **model_keywords(config)), variables, found


def selection(config: Any) -> str:
    """The metric that selects the best checkpoint: of the averaged weights where there are any."""
    return ("ema_" if config.optimizer.ema_decay else "") + config.validation.select


def _read_arrays(path: pathlib.Path) -> dict[str, Any]:
    """Reads a state as NumPy arrays, so that it does not matter how many devices wrote it."""
    reader = ocp.PyTreeCheckpointer()
    described = reader.metadata(path).item_metadata.tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
    return reader.restore(path, restore_args=plain)
