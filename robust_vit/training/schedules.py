"""Schedules of the learning rate and of the attack's strength: functions from a step to a number, computed on the host.

Both numbers enter the compiled step as arguments, so nothing recompiles when they change.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def cosine(progress: float, *, peak: float, final: float, **_) -> float:
    """final + (peak - final) (1 + cos(pi t)) / 2 for t in [0,1] (Loshchilov & Hutter, ICLR 2017)."""
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


def constant(progress: float, *, peak: float, **_) -> float:
    """The peak, always."""
    return peak


def step(progress: float, *, peak: float, epochs: float, decay_every_epochs: float, decay_factor: float, **_) -> float:
    """The peak times decay_factor for every decay_every_epochs that have passed."""
    return peak * decay_factor ** math.floor(epochs / decay_every_epochs + 1e-9)


LEARNING_RATES = {"cosine": cosine, "constant": constant, "step": step}


def learning_rate(
    schedule: str,
    *,
    learning_rate: float,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    final_learning_rate: float = 0.0,
    decay_every_epochs: float = 30.0,
    decay_factor: float = 0.1,
) -> Schedule:
    """Makes the learning rate per step: a linear warm-up from near 0, then `schedule` over what remains.

    Args:
      schedule: a name in LEARNING_RATES.
      learning_rate: the peak.
      total_steps: length of training.
      steps_per_epoch: steps in one pass over the training split; may be fractional.
      warmup_epochs: length of the warm-up.
      final_learning_rate: where cosine ends.
      decay_every_epochs: period of the step schedule, counted from the start of training.
      decay_factor: its factor.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    shape = LEARNING_RATES[schedule]

    def at(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / (warmup + 1)
        return shape(
            min(1.0, (step - warmup) / max(1, total_steps - warmup)),
            peak=learning_rate,
            final=final_learning_rate,
            epochs=step / steps_per_epoch,
            decay_every_epochs=decay_every_epochs,
            decay_factor=decay_factor,
        )

    return at


def linear(t: float) -> float:
    """t."""
    return t


def sine(t: float) -> float:
    """(1 + sin(pi (t - 1/2))) / 2: slow at both ends."""
    return 0.5 * (1 + math.sin(math.pi * (t - 0.5)))


def full(t: float) -> float:
    """1, always."""
    return 1.0


STRENGTHS = {"linear": linear, "sine": sine, "constant": full}


def strength(
    schedule: str, *, steps_per_epoch: float, warmup_epochs: float = 0.0, zero_epochs: float = 0.0
) -> Schedule:
    """Makes the attack's strength per step: 0 for zero_epochs, then from 0 to 1 over warmup_epochs, then 1.

    Reference: epsilon warm-up of Debenedetti et al., A Light Recipe to Train Robust Vision Transformers, SaTML 2023,
    arXiv 2209.07399; per step here, and without that code's jump where both periods are used.
    """
    zero, warmup = zero_epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    shape = STRENGTHS[schedule]

    def at(step: int) -> float:
        if step < zero:
            return 0.0
        return shape(min(1.0, (step - zero) / warmup)) if warmup else 1.0

    return at
