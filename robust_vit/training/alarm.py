"""The alarm of catastrophic overfitting: does the training attack still say anything about robustness?

A model that is trained under a weak attack can learn to look robust to that attack alone, within an epoch and with
every figure of training at its best. So at every validation the accuracy under the training attack is held against that
under a few steps of APGD, both on the same images: the first of the validation split, which were never trained on and
are not the test split. Honest training keeps the two within a few points; the gap of a model that fits its attack is as
large as its accuracy.

References: Wong, Rice & Kolter, Fast is Better Than Free, ICLR 2020, arXiv 2001.03994; Andriushchenko & Flammarion,
Understanding and Improving Fast Adversarial Training, NeurIPS 2020, arXiv 2007.02617.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from robust_vit import attacks, models, parallel, provenance
from robust_vit.config import ConfigDict
from robust_vit.evaluation.measure import Measurer
from robust_vit.pixels import as_float
from robust_vit.training import chosen
from robust_vit.training.checkpoint import Checkpoints
from robust_vit.training.experiment import Experiment, evaluation_batches
from robust_vit.training.stages import Stage, resize
from robust_vit.typing import Attack, Variables

FILE = "alarm.json"
ASIDE = "overfitted"  # where checkpoints go that a roll-back leaves behind


def strong(config: ConfigDict) -> Attack:
    """The attack that the training attack is held against."""
    threat = dict(norm=config.attack.norm, epsilon=config.attack.epsilon)
    return attacks.apgd(**threat, steps=config.alarm.steps, keep="success")


class Alarm:
    """Measures the gap, and says what is to be done about it.

    Args:
      experiment: the run.
    """

    def __init__(self, experiment: Experiment):
        e, self.section = experiment, experiment.config.alarm
        self.experiment = experiment
        self.on = self.section.examples > 0 and e.config.objective.name not in chosen.UNWATCHED
        self.weak = [Measurer(stage.attack, e.mesh, e.config.seed) for stage in e.stages if self.on]
        self.strong = Measurer(strong(e.config), e.mesh, e.config.seed)

    def look(self, number: int, variables: Variables, strength: float) -> dict[str, float]:
        """Returns the accuracies under both attacks and their gap; {} where it is off.

        Args:
          number: of the stage: whose attack, on images of whose size.
          variables: the weights that are being trained.
          strength: of both attacks, as in training.
        """
        if not self.on:
            return {}
        stage = self.experiment.stages[number]
        logits_fn = models.logits_fn(stage.module, variables)
        weak, few_steps = (
            measurer.measure(logits_fn, self._batches(stage), strength).accuracy
            for measurer in (self.weak[number], self.strong)
        )
        return {"training_attack_accuracy": weak, "apgd_accuracy": few_steps, "gap": weak - few_steps}

    def _batches(self, stage: Stage) -> Iterator[dict[str, Any]]:
        """The same images at every look, of the size that the stage trains on."""
        for batch in evaluation_batches(self.experiment, "validation", self.section.examples):
            if batch["image"].shape[1:3] != stage.size:
                batch = batch | {"image": np.asarray(resize(as_float(jnp.asarray(batch["image"])), stage.size))}
            yield batch

    def raised(self, figures: Mapping[str, float]) -> bool:
        """Whether the gap is above what is allowed."""
        return 0 < self.section.gap < figures.get("gap", 0.0)

    def line(self, figures: Mapping[str, float], step: int) -> str:
        """The alarm in one line."""
        weak, few_steps = figures["training_attack_accuracy"], figures["apgd_accuracy"]
        return (
            f"step {step}: catastrophic overfitting: {weak:.1%} right under the training attack, {few_steps:.1%} under"
            f" APGD-{self.section.steps}, a gap of {figures['gap']:.1%}, more than alarm.gap = {self.section.gap:.1%}"
        )


def roll_back(checkpoints: Checkpoints, gap: float) -> int | None:
    """Sets aside every checkpoint after the newest whose gap was measured and is at most `gap`; none is deleted.

    Returns:
      That one's step; None where there is none, and everything stays where it is.
    """
    checkpoints.wait()
    steps = checkpoints.manager.all_steps()
    sound = [step for step in steps if checkpoints.metrics(step).get("gap", math.inf) <= gap]
    if not sound:
        return None
    checkpoints.set_aside([step for step in steps if step > max(sound)], ASIDE)
    return max(sound)


def note(workdir: pathlib.Path, **content: Any) -> None:
    """Writes that the alarm ended this run, so that the same command does not train on."""
    if parallel.is_main():
        provenance.write_json(workdir / FILE, content)


def ended(workdir: pathlib.Path) -> bool:
    """Whether the alarm ended the run in this folder."""
    return (pathlib.Path(workdir) / FILE).is_file()
