"""Schedules of the learning rate and of the attack's strength: functions from a step to a number on the host.

The shapes are optax's. They compute on the device, where a call a step would wait behind the step in flight: so
they are tabulated, thousands of steps at a call. Both numbers enter the compiled step as arguments, so nothing
recompiles when they change.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[int], float]
BLOCK = 4096  # steps


def cosine(*, learning_rate: float, steps: int, final_learning_rate: float = 0.0, **_) -> optax.Schedule:
    """final + (peak - final) (1 + cos(pi t)) / 2 for t in [0,1] (Loshchilov & Hutter, ICLR 2017)."""
    return optax.cosine_decay_schedule(learning_rate, steps, alpha=final_learning_rate / learning_rate)


def constant(*, learning_rate: float, **_) -> optax.Schedule:
    """The peak, always."""
    return optax.constant_schedule(learning_rate)


def step(
    *, learning_rate: float, warmup: int, steps_per_epoch: float, decay_every_epochs: float, decay_factor: float, **_
) -> optax.Schedule:
    """The peak times decay_factor for every decay_every_epochs that have passed since the start, warm-up included."""
    period = decay_every_epochs * steps_per_epoch
    decay = optax.exponential_decay(learning_rate, period, decay_factor, staircase=True)
    return lambda count: decay(count + warmup)


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
    shape = LEARNING_RATES[schedule](
        learning_rate=learning_rate,
        steps=max(1, total_steps - warmup),
        final_learning_rate=final_learning_rate,
        warmup=warmup,
        steps_per_epoch=steps_per_epoch,
        decay_every_epochs=decay_every_epochs,
        decay_factor=decay_factor,
    )
    if warmup:
        rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
        shape = optax.join_schedules([rise, shape], [warmup])
    return tabulated(shape, total_steps)


def linear(warmup: float) -> optax.Schedule:
    """t = step / warmup, at most 1."""
    return optax.linear_schedule(0.0, 1.0, warmup)


def sine(warmup: float) -> optax.Schedule:
    """(1 + sin(pi (t - 1/2))) / 2: slow at both ends."""
    falling = optax.cosine_decay_schedule(1.0, warmup)
    return lambda count: 1.0 - falling(count)


def full(warmup: float) -> optax.Schedule:
    """1, always."""
    return optax.constant_schedule(1.0)


STRENGTHS = {"linear": linear, "sine": sine, "constant": full}


def strength(
    schedule: str, *, steps_per_epoch: float, warmup_epochs: float = 0.0, zero_epochs: float = 0.0
) -> Schedule:
    """Makes the attack's strength per step: 0 for zero_epochs, then from 0 to 1 over warmup_epochs, then 1.

    Reference: epsilon warm-up of Debenedetti et al., A Light Recipe to Train Robust Vision Transformers, SaTML 2023,
    arXiv 2209.07399; per step here, and without that code's jump where both periods are used.
    """
    zero, warmup = zero_epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    rise = STRENGTHS[schedule](warmup) if warmup else full(warmup)
    return tabulated(optax.join_schedules([optax.constant_schedule(0.0), rise], [zero]), math.ceil(zero + warmup))


def tabulated(schedule: optax.Schedule, last: int) -> Schedule:
    """Evaluates an optax schedule on the device in float64, a block of steps at once, by one program.

    Steps after the last give its value. In float32 the end of a cosine would be right to three digits.
    """
    compute = jax.jit(lambda steps: jnp.broadcast_to(schedule(steps), steps.shape))

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(compute(np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.float64)))

    def at(step: int) -> float:
        number, place = divmod(min(step, last), BLOCK)
        return float(block(number)[place])

    return at
