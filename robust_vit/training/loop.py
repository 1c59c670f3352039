"""One run from a configuration to a run folder.

    validate -> mesh -> data -> model, attack, objective, optimiser -> step -> restore
    -> loop: step, report, save, validate -> finish: evaluate, draw

A reader who knows the parts can begin at `run`.
"""

import contextlib
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from robust_vit import config as config_lib
from robust_vit import hosts, locks, models, parallel, provenance
from robust_vit.config import ConfigDict
from robust_vit.data import pipeline
from robust_vit.evaluation.measure import Measurer
from robust_vit.training import alarm, checkpoint, finish, frozen, initial, programs, stages, state, trackers
from robust_vit.training.alarm import Alarm
from robust_vit.training.checkpoint import Checkpoints, NonFiniteError, selection
from robust_vit.training.experiment import Experiment, build, evaluation_batches, validation_attack
from robust_vit.training.interruption import Interruption
from robust_vit.training.metrics import Meter
from robust_vit.training.progress import Progress
from robust_vit.typing import LogitsFn


def run(config: ConfigDict, workdir: str | pathlib.Path, live: bool | None = None) -> dict[str, Any] | None:
    """Trains, or resumes, and evaluates.

    Args:
      config: a complete configuration.
      workdir: the run folder, made if needed; one that holds this run is resumed, one that holds another is refused.
      live: a live display; None decides by whether the output is a terminal.

    Returns:
      The test results of the selected checkpoint, or None when a signal stopped the run before its end.
    """
    workdir = pathlib.Path(workdir)
    hosts.check_alike({"config": json.loads(config_lib.to_json(config))})
    checkpoint.check_path(workdir)
    experiment = build(config, resumed := checkpoint.any_saved(workdir))
    teacher = frozen.of(experiment)  # before the folder is claimed for a run that cannot begin
    trackers.check(config.training.trackers)
    hosts.check_alike({"data": experiment.dataset.digests()} if jax.process_count() > 1 else {})
    with contextlib.ExitStack() as stack:
        stack.enter_context(hosts.watched())
        if parallel.is_main():  # the other hosts are guests of this one
            stack.enter_context(locks.hold(workdir, "workdir"))
        begin = None if resumed else initial.load(config.initial, experiment.module)
        claim(workdir, config, experiment.dataset)
        initial.claim(workdir, begin)
        finished = alarm.ended(workdir) or _train(experiment, workdir, live, begin, teacher)
        return finish.finish(experiment, workdir) if finished else None


def _train(
    experiment: Experiment,
    workdir: pathlib.Path,
    live: bool | None,
    begin: initial.Initial | None,
    teacher: LogitsFn | None,
) -> bool:
    """Trains; returns False if a signal stopped it."""
    trainer = Trainer(experiment, workdir, live, begin, teacher)
    try:
        return trainer.train()
    finally:
        trainer.close()


def claim(workdir: pathlib.Path, config: ConfigDict, dataset: Any = None) -> None:
    """Makes a folder this run's: writes config.json, environment.json and data.json, or checks that they are of it.

    Args:
      workdir: the run folder, made if needed.
      config: the resolved configuration.
      dataset: the data; None leaves it unchecked.

    Raises:
      ValueError: if it holds a run of another configuration or of other data, naming the first field or the split that
        differs.
    """
    _claim_config(workdir, config)
    if dataset is not None:
        _claim_data(workdir, dataset.description())
    if parallel.is_main():
        _note_environment(workdir / "environment.json")


def _claim_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    text = config_lib.to_json(config)
    if (workdir / "config.json").is_file():
        stored = checkpoint.stored_config(workdir)
        if "workers" in stored.data:
            stored.data.workers = config.data.workers  # who reads changes no batch, and another machine has other cores
        stored.training.trackers = config.training.trackers  # nor does who is told of the figures
        stored.parallel = config.parallel  # nor, but for rounding, on how many devices the state lies, and how
        found = config_lib.differences(stored, config_lib.from_json(text))
        if found:
            raise ValueError(f"workdir = {str(workdir)!r}: holds a run with {found[0]}; choose another folder")
    elif parallel.is_main():
        provenance.write_atomically(workdir / "config.json", text)


def _claim_data(workdir: pathlib.Path, now: dict[str, Any]) -> None:
    """Holds the data against what the run began with: training on, or selecting by, other examples is another run."""
    path = workdir / "data.json"
    if not path.is_file():
        return provenance.write_json(path, now) if parallel.is_main() else None
    known = provenance.read_json(path).get("splits", {})
    for split, described in now["splits"].items():
        there = known.get(split, {})
        if there.get("digest") != described["digest"]:
            raise ValueError(
                f"data: the {split} split is not the one that the run in {str(workdir)!r} began with"
                f" ({there.get('examples')} examples there, {described['examples']} here; names, sizes or labels"
                " differ); restore it or choose another workdir"
            )


def _note_environment(path: pathlib.Path) -> None:
    """Writes where the figures come from: of the first process, and of every one that resumed its work elsewhere."""
    now = provenance.environment()
    if not path.is_file():
        return provenance.write_json(path, now)
    known = provenance.read_json(path)
    resumed = known.get("resumed", [])
    before = resumed[-1] if resumed else known
    if any(before.get(name) != now[name] for name in ("versions", "devices", "git", "platform")):
        provenance.write_json(path, known | {"resumed": [*resumed, now]})


class Trainer:
    """The loop with its moving parts: compiled step, data position, checkpoints, progress.

    Args:
      experiment: from `build`.
      workdir: the run folder.
      live: see `run`.
      begin: weights to begin from, where nothing was saved yet; None for chance.
      teacher: the frozen classifier that the objective learns from, None for most.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        live: bool | None = None,
        begin: initial.Initial | None = None,
        teacher: LogitsFn | None = None,
    ):
        self.experiment, self.config, self.workdir = experiment, experiment.config, workdir
        e, c = experiment, experiment.config
        self.compiled = [programs.compile_step(e, stage) for stage in e.stages]
        self.batches = pipeline.train(
            e.dataset.train,
            batch_size=c.data.batch_size,
            seed=c.seed,
            transforms=e.dataset.train_transforms,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            workers=c.data.workers,
            on_bad_image=c.data.on_bad_image,
            extra=e.dataset.extra and e.dataset.extra.source,
            ratio=c.data.extra.ratio,
            repeats=c.data.repeats,
        )
        self.checkpoints = Checkpoints(workdir, keep=c.training.keep_checkpoints, select=selection(c))
        self.teacher = None if teacher is None else parallel.replicate(e.mesh, teacher)
        self.state = self._restore(begin)
        self.step = int(self.state.step)
        self.progress = Progress(workdir, e.total_steps, self.step, live, trackers=c.training.trackers, config=c)
        self.progress.say(str(self.batches.reading))
        if begin is not None:
            self.progress.say(str(begin))
        if self.step:
            self.progress.say(f"resuming at step {self.step}")
        self.said_stage: int | None = None
        self.interruption = Interruption()
        self.validators = _validators(experiment)
        self.alarm = Alarm(experiment)
        self.ended = False  # by the alarm

    def _restore(self, begin: initial.Initial | None) -> state.TrainState:
        e = self.experiment
        shapes = programs.abstract_state(e)
        found = self.checkpoints.restore(shapes)
        if found is None:
            return programs.initial_state(e, begin and begin.variables)
        restored, position = found
        self.batches.set_state(position)
        return parallel.copied(restored, programs.places(e))  # own buffers: the step donates them

    def train(self) -> bool:
        """Runs to the end; returns False if SIGTERM or Ctrl-C stopped it first, after saving."""
        e, c = self.experiment, self.config
        pending, meter = None, Meter(c.data.batch_size)
        validate_every = max(1, round(c.training.validate_every_epochs * e.steps_per_epoch))
        save_every = max(1, round(c.training.save_every_epochs * e.steps_per_epoch))
        with self.interruption:
            while self.step < e.total_steps and not self.ended and not self._stopping():
                launched = self._launch()
                self.step += 1
                self._collect(pending, meter)  # the step before: logging never waits for the one just launched
                pending = launched
                last = self.step == e.total_steps
                validating = last or self.step % validate_every == 0
                if validating or self.step % save_every == 0:
                    self._collect(pending, meter)
                    pending = None
                    self._keep(self._validate() if validating else None)
                    meter.pause()
            self._collect(pending, meter)
            if not self.ended:
                self._save(None)
            self.checkpoints.wait()
        finished = self.ended or self.step >= e.total_steps
        if not finished:
            why = self.interruption.asked or "SIGTERM"  # which JAX heard, of several hosts
            self.progress.say(f"stopped by {why} at step {self.step}, saved; the same command resumes")
        return finished

    def _launch(self) -> tuple[int, float, float, Any]:
        """Dispatches one step; does not wait for it."""
        e = self.experiment
        batch = next(self.batches)
        batch = {name: batch[name] for name in ("image", "label", "index", "extra") if name in batch}
        rate, strength = e.learning_rate(self.step), e.strength(self.step)
        placed = parallel.global_batch(e.mesh, batch)
        stage = self._stage()
        given = (placed, np.float32(rate), np.float32(strength), self.teacher)
        self.state, metrics = self.compiled[stage](self.state, *given)
        return self.step + 1, rate, strength, metrics

    def _stage(self) -> int:
        """The number of the stage that the next step belongs to; says so where it begins."""
        stages_ = self.experiment.stages
        number = stages.number(stages_, self.step)
        if len(stages_) > 1 and number != self.said_stage:
            self.progress.say(stages_[number].said)
            self.said_stage = number
        return number

    def _collect(self, launched: tuple[int, float, float, Any] | None, meter: Meter) -> None:
        """Fetches a step's metrics, guards against non-finite ones, reports every so often."""
        if launched is None:
            return
        number, rate, strength, metrics = launched
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not metrics.pop("finite"):
            self.checkpoints.wait()
            what = f"loss {metrics['loss']}"
            if math.isfinite(metrics["loss"]):
                what = f"the update (loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g})"
            raise NonFiniteError(f"step {number}: {what} is not finite; {self.checkpoints.last_good()}")
        attacked = metrics.pop("attacked")
        meter.add(metrics)
        if number % self.config.training.log_every_steps == 0 or number == self.experiment.total_steps:
            epoch = number / self.experiment.steps_per_epoch
            figures = meter.read() | ({"epsilon": strength * self.config.attack.epsilon} if attacked else {})
            figures |= {"learning_rate": rate}
            self.progress.write("train", number, epoch, **figures)

    def _validate(self) -> dict[str, float]:
        """Measures clean and robust accuracy on the validation split, of the raw and of the averaged weights."""
        e, c = self.experiment, self.config
        figures = {}
        for weights in ("raw", "ema") if c.optimizer.ema_decay else ("raw",):
            logits_fn = models.logits_fn(e.module, self.state.variables(weights))
            prefix = "ema_" if weights == "ema" else ""
            for name, measurer in self.validators.items():
                figures[prefix + name] = measurer.measure(logits_fn, evaluation_batches(e, "validation")).accuracy
        number = stages.number(e.stages, self.step - 1)
        figures |= self.alarm.look(number, self.state.variables(), e.strength(self.step - 1))
        self.progress.write("validation", self.step, self.step / e.steps_per_epoch, **figures)
        return figures

    def _keep(self, figures: dict[str, float] | None) -> None:
        """Saves, unless the alarm has it otherwise."""
        if figures is None or not self.alarm.raised(figures):
            return self._save(figures)
        line, action = self.alarm.line(figures, self.step), self.config.alarm.action
        if action == "report":
            self._save(figures)
            return self.progress.say(line)
        back = alarm.roll_back(self.checkpoints, self.config.alarm.gap) if action == "rollback" else None
        if back is None:
            self._save(figures)
            self.checkpoints.wait()
        alarm.note(self.workdir, step=self.step, action=action, back_to=back, **figures)
        self.ended = True
        self.progress.say(f"{line}: training ends {'here' if back is None else f'at step {back}, where it was less'}")

    def _save(self, metrics: dict[str, float] | None) -> None:
        self.checkpoints.save(self.step, self.state, self.batches.get_state(), metrics)

    def _stopping(self) -> bool:
        """True when this process was asked to stop; with several hosts, when all have agreed to stop at this step."""
        if jax.process_count() > 1:
            return self.checkpoints.manager.reached_preemption(self.step)
        return bool(self.interruption.asked)

    def close(self) -> None:
        """Ends the display, flushes files, reports images that could not be read."""
        if self.batches.bad.count:
            self.progress.say(str(self.batches.bad))
        self.progress.close()
        self.checkpoints.close()
        self.batches.close()


def _validators(experiment: Experiment) -> dict[str, Measurer]:
    c = experiment.config
    attack = validation_attack(c)
    mesh = experiment.mesh
    return {"clean_accuracy": Measurer(None, mesh, c.seed), "robust_accuracy": Measurer(attack, mesh, c.seed)}
