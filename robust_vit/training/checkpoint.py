"""Checkpoints: state and data position together, written asynchronously. The only file that knows orbax.

Kept are the latest few and the best by validation. With each goes a record of digests (`training.digests`), against
which everything that is read back is held: one that cannot be read, or holds other bits, is named and set aside, never
deleted; one of another model is named and left alone.
"""

import contextlib
import json
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from robust_vit import config as config_lib
from robust_vit import models, parallel, provenance
from robust_vit.errors import Mendable
from robust_vit.training import digests, storage
from robust_vit.training.digests import DamagedError
from robust_vit.training.experiment import model_keywords
from robust_vit.training.state import TrainState


class NonFiniteError(Mendable, RuntimeError):
    """Training met a NaN or an infinity."""


class StorageError(Mendable, OSError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      workdir: the run folder.
      keep: how many of the latest to keep.
      select: name of the validation metric, larger is better, whose best checkpoint is kept besides.
      read_only: never write, for evaluation.

    Raises:
      ValueError: if the folder's path holds a character that orbax takes for a pattern.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, select: str = "", read_only: bool = False):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        check_path(workdir)
        storage.hush()
        self.select, self.keep, self._metrics, self._failed = select, keep, {}, False
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(n=keep), _Best(self)]
                ),
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
            item_names=("state", "data", "record"),
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

        Raises:
          NonFiniteError: if the state holds a NaN or an infinity: such a state is never written.
          StorageError: if this checkpoint or the one before could not be written.
        """
        if step in self.manager.all_steps():
            return
        if (name := digests.nonfinite(state)) is not None:
            raise NonFiniteError(f"step {step}: {name} is not finite, not saved; {self.last_good()}")
        record = digests.record(state, position, metrics)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position), record=ocp.args.JsonSave(record)
        )
        self._metrics[step] = record["metrics"]
        with self._writing():
            self.manager.save(step, args=items, force=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what orbax and tensorstore raise for a file that cannot be written into one line."""
        try:
            yield
        except Exception as error:
            self._failed = True
            folder, (cause, advice) = str(self.directory.parent), storage.explain_writing(error)
            line = f"workdir = {folder!r}: cannot write a checkpoint: {cause}; {self.last_good()}; {advice}"
            raise StorageError(line) from error

    def last_good(self) -> str:
        """Says which checkpoint is the newest that is whole on the disk."""
        present = [int(path.name) for path in self.directory.glob("*") if path.name.isdigit()]
        return f"the last good checkpoint is {self.directory / str(max(present))}" if present else "none was saved yet"

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read and holds what was written, or the one asked for.

        Args:
          abstract: the state's shapes, dtypes and shardings.
          step: a certain step; None for the newest.

        Returns:
          (state, data position), or None in an empty folder. A damaged newest one is named in a warning and, once the
          one before it has been read, moved to `damaged/`.

        Raises:
          ValueError: if checkpoints are there and none can be read; or if one is intact and of another model: which
            leaf differs.
        """
        steps = [step] if step is not None else sorted(self.manager.all_steps(), reverse=True)
        damaged = []
        for candidate in steps:
            found = None
            try:
                found = self._read(candidate, abstract)
            except DamagedError as error:
                warnings.warn(f"checkpoint {self.directory / str(candidate)} is damaged: {error}", stacklevel=2)
            if parallel.agree(found is not None):  # hosts that resumed at different steps would never meet again
                self.set_aside(damaged, "damaged")
                return found
            damaged.append(candidate)
        if steps:
            raise ValueError(
                f"workdir = {str(self.directory.parent)!r}: no checkpoint in it can be read; tried {steps}"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        path = self.directory / str(step)
        record = self.record(step)
        stored = record["leaves"] if record else digests.describe(_metadata(path / "state"))
        if (odd := digests.difference(stored, digests.describe(abstract))) is not None:
            raise ValueError(f"checkpoint {path}: of another model or optimizer: {odd}; choose another workdir")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        with storage.reading():
            found = self.manager.restore(step, args=items)
        if record:
            digests.verify(record, found.state, found.data)
        return found.state, found.data

    def set_aside(self, steps: Sequence[int], folder: str) -> None:
        """Moves checkpoints out of the way, into a folder of the run; one host does it, and all see it done."""
        if not steps:
            return
        aside = self.directory.parent / folder
        for step in steps if parallel.is_main() else ():
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            while target.exists():
                target = target.with_name(target.name + "_again")
            shutil.move(self.directory / str(step), target)
        parallel.agree(True)
        self._metrics.clear()
        self.manager.reload()

    def record(self, step: int) -> dict[str, Any] | None:
        """Reads the record of a checkpoint; None, with a warning, for one that an older version wrote without.

        Raises:
          DamagedError: if it is there and is not what was written.
        """
        folder = self.directory / str(step) / "record"
        if not folder.exists():
            name = folder.parent
            warnings.warn(f"checkpoint {name} has no digests (an older version wrote it): not verified", stacklevel=3)
            return None
        try:
            return digests.check(json.loads((folder / "metadata").read_bytes()))
        except (OSError, ValueError):
            raise DamagedError("its record of digests cannot be read") from None

    def best(self) -> int | None:
        """Returns the step of the best checkpoint by the validation metric, the latest of equals; None without one.

        Raises:
          ValueError: if a checkpoint's metrics cannot be read, so that nobody can tell whether it is the best.
        """
        try:
            return self._best(self.manager.all_steps())
        except DamagedError as error:
            folder = str(self.directory.parent)
            raise ValueError(f"workdir = {folder!r}: {error}; ask for another checkpoint by its step") from None

    def _best(self, steps: Sequence[int]) -> int | None:
        scores = [(self.metrics(step).get(self.select), step) for step in steps]
        return max((pair for pair in scores if pair[0] is not None), default=(None, None))[1]

    def latest(self) -> int | None:
        """Returns the newest step, None in an empty folder."""
        return self.manager.latest_step()

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the validation metrics stored with a checkpoint, {} where there are none.

        Raises:
          DamagedError: if they are not what was written.
        """
        if step not in self._metrics:
            folder = self.directory / str(step)
            older = folder / "metrics" / "metrics"  # where versions without records kept them
            if (folder / "record").exists():
                self._metrics[step] = self._checked(step)["metrics"]
            else:
                self._metrics[step] = provenance.read_json(older) if older.exists() else {}
        return self._metrics[step]

    def _checked(self, step: int) -> dict[str, Any]:
        try:
            return self.record(step)
        except DamagedError as error:
            raise DamagedError(f"checkpoint {self.directory / str(step)} is damaged: {error}") from None

    def wait(self) -> None:
        """Blocks until everything is on disk.

        Raises:
          StorageError: if a checkpoint could not be written.
        """
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        if not self._failed:
            self.wait()
        with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():  # what failed has been said
            self.manager.close()


class _Best:
    """Orbax's question which checkpoints to keep, answered with the best by validation."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer a checkpoint; a damaged one has no score and is kept until somebody has looked at it."""
        scores, kept = {}, set()
        for info in checkpoints:
            try:
                scores[info.step] = self.checkpoints.metrics(info.step).get(self.checkpoints.select)
            except DamagedError:
                kept.add(info.step)
        scores = {step: score for step, score in scores.items() if score is not None}
        kept |= {max(scores, key=lambda step: (scores[step], step))} if scores else set()
        return [info.step in kept for info in checkpoints]


def check_path(workdir: str | pathlib.Path) -> None:
    """Refuses a run folder whose checkpoints would be lost, or that is no folder.

    Raises:
      ValueError: if its path holds a character that orbax takes for a pattern, or leads through a file.
    """
    path = pathlib.Path(workdir).absolute()
    odd = sorted(set("[]*?") & set(str(path)))
    if odd:
        raise ValueError(f"workdir = {str(workdir)!r}: must not contain {' '.join(odd)} (a pattern to orbax)")
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"workdir = {str(workdir)!r}: must be a folder; {part} is a file")


def any_saved(workdir: str | pathlib.Path) -> bool:
    """Whether a run folder holds a checkpoint, so that training resumes there."""
    return any(path.name.isdigit() for path in (pathlib.Path(workdir) / "checkpoints").glob("*"))


def load(workdir: str | pathlib.Path, step: str | int = "best", weights: str = "") -> tuple[Any, Any, dict, int]:
    """Reads a run folder for evaluation; what is read is held against its digests.

    Args:
      workdir: a folder that training wrote.
      step: "best" by validation, "latest", or a step number.
      weights: "raw", "ema", or "" for what the run selected its best checkpoint by.

    Returns:
      (config, module, variables, step).

    Raises:
      ValueError: if the folder holds no run, no such checkpoint or no such weights, or if that checkpoint is damaged.
    """
    config = stored_config(workdir)
    select = selection(config)
    if weights not in ("", "raw", "ema"):
        raise ValueError(f"weights = {weights!r}: must be 'raw' or 'ema'")
    checkpoints = Checkpoints(workdir, select=select, read_only=True)
    try:
        found = _choose(checkpoints, step)
        tree = _read_arrays(checkpoints, found)
    finally:
        checkpoints.close()
    state = TrainState(tree["step"], tree["params"], tree["batch_stats"] or {}, None, tree["average"] or {})
    variables = state.variables(weights or ("ema" if select.startswith("ema_") else "raw"))
    variables = jax.tree.map(jax.numpy.asarray, variables)
    return config, models.build(config.model.name, **model_keywords(config)), variables, found


def stored_config(workdir: str | pathlib.Path) -> config_lib.ConfigDict:
    """Reads the configuration in a run folder.

    Raises:
      ValueError: if there is none, or it is empty or torn.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"workdir = {str(workdir)!r}: holds no config.json; must be a folder that training wrote")
    provenance.read_json(path)  # one line for an empty or torn one
    return config_lib.from_json(path.read_text())


def selection(config: Any) -> str:
    """The metric that selects the best checkpoint: of the averaged weights where there are any."""
    return ("ema_" if config.optimizer.ema_decay else "") + config.validation.select


def _choose(checkpoints: Checkpoints, step: str | int) -> int:
    """The step that is asked for: "best" falls back to the latest where no validation was stored."""
    present = sorted(checkpoints.manager.all_steps())
    if step == "best":
        found = checkpoints.best()
        step = "latest" if found is None else found
    if step == "latest" and present:
        return present[-1]
    if str(step).isdigit() and int(step) in present:
        return int(step)
    folder = str(checkpoints.directory.parent)
    allowed = f"must be 'best', 'latest' or one of {present}" if present else "it holds none yet"
    raise ValueError(f"step = {step!r}: no such checkpoint in {folder!r}; {allowed}")


def _read_arrays(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """Reads a state as NumPy arrays, so that it does not matter how many devices wrote it."""
    path = checkpoints.directory / str(step)
    try:
        record = checkpoints.record(step)
        described = _metadata(path / "state")
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        with storage.reading():
            tree = ocp.PyTreeCheckpointer().restore(path / "state", restore_args=plain)
        if record:
            digests.verify(record, tree)
    except DamagedError as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}; ask for another checkpoint by its step") from None
    return tree


def _metadata(path: pathlib.Path) -> Any:
    """The stored tree, with the shape and type of every leaf."""
    with storage.reading():
        return ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree
