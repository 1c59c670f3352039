"""One run from a configuration to a run folder.

    validate -> mesh -> data -> model, attack, objective, optimiser -> step -> restore
    -> loop: step, report, save, validate -> finish: evaluate, draw

A reader who knows the parts can begin at `run`.
"""

import functools
import json
import pathlib
import signal
from typing import Any

import jax
import numpy as np

from robust_vit import attacks, models, parallel
from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.data import pipeline
from robust_vit.errors import Mendable
from robust_vit.evaluation.measure import Measurer
from robust_vit.training import finish, state
from robust_vit.training.checkpoint import Checkpoints, selection
from robust_vit.training.experiment import Experiment, build, evaluation_batches
from robust_vit.training.metrics import Meter
from robust_vit.training.report import Report, environment


class NonFiniteError(Mendable, RuntimeError):
    """Training met a NaN or an infinity."""


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
    experiment = build(config)
    claim(workdir, config)
    trainer = Trainer(experiment, workdir, live)
    try:
        finished = trainer.train()
    finally:
        trainer.close()
    if not finished:
        return None
    return finish.finish(experiment, workdir)


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json and environment.json, or checks that the folder holds a run of this configuration.

    Raises:
      ValueError: if it holds a run of another one, naming the first field that differs.
    """
    path = workdir / "config.json"
    if path.is_file():
        found = config_lib.differences(
            config_lib.from_json(path.read_text()), config_lib.from_json(config_lib.to_json(config))
        )
        if found:
            raise ValueError(f"workdir = {str(workdir)!r}: holds a run with {found[0]}; choose another folder")
    if parallel.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(config_lib.to_json(config))
        (workdir / "environment.json").write_text(json.dumps(environment(), indent=1))


class Trainer:
    """The loop with its moving parts: compiled step, data position, checkpoints, report.

    Args:
      experiment: from `build`.
      workdir: the run folder.
      live: see `run`.
    """

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, live: bool | None = None):
        self.experiment, self.config, self.workdir = experiment, experiment.config, workdir
        e, c = experiment, experiment.config
        self.compiled = parallel.compile(e.step, e.mesh, arguments="rbrr", results="rr", donate=(0,))
        self.batches = pipeline.train(
            e.dataset.train,
            batch_size=c.data.batch_size,
            seed=c.seed,
            transforms=e.dataset.train_transforms,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            workers=c.data.workers,
            on_bad_image=c.data.on_bad_image,
        )
        self.checkpoints = Checkpoints(workdir, keep=c.training.keep_checkpoints, select=selection(c))
        self.state = self._restore()
        self.step = int(self.state.step)
        self.report = Report(workdir, e.total_steps, self.step, live)
        if self.step:
            self.report.say(f"resuming at step {self.step}")
        self.stop = False
        self.validators = _validators(experiment)

    def _restore(self) -> state.TrainState:
        e = self.experiment
        create = functools.partial(
            state.create,
            e.module,
            e.tx,
            tuple(e.dataset.image_shape),
            self.config.seed,
            self.config.optimizer.ema_decay > 0,
        )
        sharding = parallel.replicated(e.mesh)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(create)
        )
        found = self.checkpoints.restore(shapes)
        if found is None:
            return jax.jit(create, out_shardings=sharding)()
        restored, position = found
        self.batches.set_state(position)
        return parallel.replicate(e.mesh, restored)  # own buffers: the step donates them

    def train(self) -> bool:
        """Runs to the end; returns False if SIGTERM stopped it first, after saving."""
        e, c = self.experiment, self.config
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        pending, meter = None, Meter(c.data.batch_size)
        validate_every = max(1, round(c.training.validate_every_epochs * e.steps_per_epoch))
        save_every = max(1, round(c.training.save_every_epochs * e.steps_per_epoch))
        try:
            while self.step < e.total_steps and not self._stopping():
                launched = self._launch()
                self.step += 1
                self._collect(pending, meter)  # the step before: logging never waits for the one just launched
                pending = launched
                last = self.step == e.total_steps
                validating = last or self.step % validate_every == 0
                if validating or self.step % save_every == 0:
                    self._collect(pending, meter)
                    pending = None
                    self._save(self._validate() if validating else None)
                    meter.pause()
            self._collect(pending, meter)
            self._save(None)
            self.checkpoints.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self.step < e.total_steps:
            self.report.say(f"stopped by SIGTERM at step {self.step}, saved; the same command resumes")
        return self.step >= e.total_steps

    def _launch(self) -> tuple[int, float, float, Any]:
        """Dispatches one step; does not wait for it."""
        e = self.experiment
        batch = next(self.batches)
        batch = {name: batch[name] for name in ("image", "label", "index")}
        rate, strength = e.learning_rate(self.step), e.strength(self.step)
        placed = parallel.global_batch(e.mesh, batch)
        self.state, metrics = self.compiled(self.state, placed, np.float32(rate), np.float32(strength))
        return self.step + 1, rate, strength, metrics

    def _collect(self, launched: tuple[int, float, float, Any] | None, meter: Meter) -> None:
        """Fetches a step's metrics, guards against non-finite ones, reports every so often."""
        if launched is None:
            return
        number, rate, strength, metrics = launched
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not metrics.pop("finite"):
            self.checkpoints.wait()
            good = self.checkpoints.latest()
            where = (
                f"the last good checkpoint is {self.checkpoints.directory / str(good)}"
                if good
                else "none was saved yet"
            )
            raise NonFiniteError(f"step {number}: loss {metrics['loss']} is not finite; {where}")
        meter.add(metrics)
        if number % self.config.training.log_every_steps == 0 or number == self.experiment.total_steps:
            epoch = number / self.experiment.steps_per_epoch
            figures = meter.read() | {"epsilon": strength * self.config.attack.epsilon, "learning_rate": rate}
            if self.config.objective.name == "standard":
                figures.pop("robust_accuracy", None)
            if self.config.objective.name == "adversarial":
                figures.pop("clean_accuracy", None)
            self.report.write("train", number, epoch, **figures)

    def _validate(self) -> dict[str, float]:
        """Measures clean and robust accuracy on the validation split, of the raw and of the averaged weights."""
        e, c = self.experiment, self.config
        figures = {}
        for weights in ("raw", "ema") if c.optimizer.ema_decay else ("raw",):
            logits_fn = models.logits_fn(e.module, self.state.variables(weights))
            prefix = "ema_" if weights == "ema" else ""
            for name, measurer in self.validators.items():
                figures[prefix + name] = measurer.measure(logits_fn, evaluation_batches(e, "validation")).accuracy
        self.report.write("validation", self.step, self.step / e.steps_per_epoch, **figures)
        return figures

    def _save(self, metrics: dict[str, float] | None) -> None:
        self.checkpoints.save(self.step, self.state, self.batches.get_state(), metrics)

    def _on_signal(self, *_: Any) -> None:
        self.stop = True

    def _stopping(self) -> bool:
        """True when this process got SIGTERM; with several hosts, when all of them have agreed to stop at this step."""
        if jax.process_count() > 1:
            return self.checkpoints.manager.reached_preemption(self.step)
        return self.stop

    def close(self) -> None:
        """Ends the display, flushes files, reports images that could not be read."""
        if self.batches.bad.count:
            self.report.say(str(self.batches.bad))
        self.report.close()
        self.checkpoints.close()
        self.batches.close()


def _validators(experiment: Experiment) -> dict[str, Measurer]:
    c = experiment.config
    attack = attacks.pgd(
        norm=c.attack.norm,
        epsilon=c.attack.epsilon,
        step_size=c.attack.step_size,
        steps=c.validation.steps,
        restarts=c.validation.restarts,
        keep="success",
    )
    mesh = experiment.mesh
    return {"clean_accuracy": Measurer(None, mesh, c.seed), "robust_accuracy": Measurer(attack, mesh, c.seed)}
