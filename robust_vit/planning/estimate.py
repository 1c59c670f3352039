"""How much arithmetic a run is, counted and not measured, and how long that takes at a stated utilisation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from robust_vit.config import ConfigDict
from robust_vit.evaluation.autoattack import ensembles, runs
from robust_vit.models import summary
from robust_vit.planning.chips import Topology
from robust_vit.training.experiment import Experiment

OPERATIONS = 2  # of a multiply-add
BACKWARD = 2  # forward passes that a pass with a gradient to the image costs, itself included


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations (multiplications and additions) of a run.

    Attributes:
      step: of the dearest step.
      training: of all steps.
      validation: of all passes over the validation split.
      autoattack: of AutoAttack on the points, if it broke none.
    """

    step: float
    training: float
    validation: float
    autoattack: float

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.training + self.validation + self.autoattack


def work(experiment: Experiment, stage_macs: Sequence[int], sizes: dict[str, int]) -> Work:
    """Counts.

    Args:
      experiment: the run.
      stage_macs: multiply-adds of a step of each stage.
      sizes: {"validation", "points"}: examples.
    """
    e, c = experiment, experiment.config
    forward = OPERATIONS * summary.count_macs(e.module)
    ends = [0, *(stage.until for stage in e.stages)]
    lengths = [end - begin for begin, end in zip(ends, ends[1:])]
    steps = [OPERATIONS * macs for macs in stage_macs]
    passes = max(1, round(c.training.epochs / c.training.validate_every_epochs))
    units = 2 + BACKWARD * c.validation.steps * c.validation.restarts  # clean, the attack, what it found
    weights = 2 if c.optimizer.ema_decay else 1
    validation = forward * passes * weights * units * sizes["validation"]
    attack = forward * sizes["points"] * points_units(c, e.module)
    return Work(max(steps), sum(a * b for a, b in zip(steps, lengths)), validation, attack)


def points_units(config: ConfigDict, module: Any) -> float:
    """Forward passes that AutoAttack spends on a point that survives it."""
    total = 1.0
    for part in ensembles.parts("standard", config.attack.norm, 1.0, None):
        part, _ = ensembles.fit(part, module.num_classes)
        run = runs.build(part, config.attack.norm, classes=module.num_classes)
        forwards, gradients = runs.cost(run, part, module.num_classes)
        total += len(part.items) * part.steps * (forwards + BACKWARD * gradients)
    return total


def seconds(operations: float, topology: Topology, utilisation: float, dtype: str) -> float:
    """Seconds that operations take on all chips.

    Args:
      operations: of all chips together.
      topology: the chips.
      utilisation: share of the peak, in (0, 1].
      dtype: what the model computes in.
    """
    peak = topology.chip.peak if dtype == "bfloat16" else topology.chip.peak32
    return operations / (topology.count * peak * utilisation)
