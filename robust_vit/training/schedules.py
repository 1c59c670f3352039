"""Schedules of the learning rate and of the attack's strength: functions from a step to a number on the host.

The shapes are optax's. They compute on the device, where a call a step would wait behind the step in flight: so
they are tabulated, thousands of steps at a call. Both numbers enter the compiled step as arguments, so nothing
recompiles when they change.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[int], float]
BLOCK = 4096  # steps


def cosine(
    *,
    learning_rate: float,
    steps: float,
    warmup: float,
    steps_per_epoch: float,
    final_learning_rate: float = 0.0,
    cooldown_epochs: float = 0.0,
    warmup_prefix: bool = True,
    **_,
) -> optax.Schedule:
    """final + (peak - final) (1 + cos(pi t)) / 2 for t in [0,1] (Loshchilov & Hutter, ICLR 2017), then final."""
    begin = warmup if warmup_prefix else 0
    length = max(1, steps - begin - round(cooldown_epochs * steps_per_epoch))
    fall = optax.cosine_decay_schedule(learning_rate, length, alpha=final_learning_rate / learning_rate)
    return lambda count: fall(count - begin)


def constant(*, learning_rate: float, **_) -> optax.Schedule:
    """The peak, always."""
    return optax.constant_schedule(learning_rate)


def step(
    *, learning_rate: float, steps_per_epoch: float, decay_every_epochs: float, decay_factor: float, **_
) -> optax.Schedule:
    """The peak times decay_factor for every decay_every_epochs that have passed since the start, warm-up included."""
    return optax.exponential_decay(learning_rate, decay_every_epochs * steps_per_epoch, decay_factor, staircase=True)


def multistep(
    *, learning_rate: float, steps_per_epoch: float, milestones: Sequence[float], decay_factor: float, **_
) -> optax.Schedule:
    """The peak times decay_factor for every milestone that has passed: epochs since the start, warm-up included."""
    places = np.asarray(milestones, np.float64) * steps_per_epoch
    return lambda count: learning_rate * decay_factor ** jnp.sum(count[:, None] >= places[None], axis=-1)


LEARNING_RATES = {"cosine": cosine, "constant": constant, "step": step, "multistep": multistep}


def learning_rate(
    schedule: str,
    *,
    learning_rate: float,
    total_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    warmup_learning_rate: float = 0.0,
    warmup_prefix: bool = True,
    final_learning_rate: float = 0.0,
    cooldown_epochs: float = 0.0,
    decay_every_epochs: float = 30.0,
    decay_factor: float = 0.1,
    milestones: Sequence[float] = (),
    per_epoch: bool = False,
) -> Schedule:
    """Makes the learning rate per step: a linear warm-up, then `schedule`.

    Args:
      schedule: a name in LEARNING_RATES.
      learning_rate: the peak.
      total_steps: length of training.
      steps_per_epoch: steps in one pass over the training split; may be fractional.
      warmup_epochs: length of the warm-up.
      warmup_learning_rate: where it begins; 0 for near 0, the peak / (1 + steps of the warm-up).
      warmup_prefix: whether cosine begins after the warm-up, or runs below it from the start, as timm's does.
      final_learning_rate: where cosine ends.
      cooldown_epochs: the last so many stay there.
      decay_every_epochs: period of the step schedule, counted from the start of training.
      decay_factor: its factor, and that of multistep.
      milestones: epochs from the start at which multistep multiplies.
      per_epoch: change once an epoch, at its start, as timm's schedulers do; epochs must be whole numbers.
    """
    if per_epoch:  # the same schedule with an epoch for a step
        total, per = round(total_steps / steps_per_epoch), 1.0
    else:
        total, per = total_steps, steps_per_epoch
    warmup = round(warmup_epochs * per)
    shape = LEARNING_RATES[schedule](
        learning_rate=learning_rate,
        steps=total,
        warmup=warmup,
        steps_per_epoch=per,
        warmup_prefix=warmup_prefix,
        final_learning_rate=final_learning_rate,
        cooldown_epochs=cooldown_epochs,
        decay_every_epochs=decay_every_epochs,
        decay_factor=decay_factor,
        milestones=milestones,
    )
    begin = warmup_learning_rate or learning_rate / (warmup + 1)
    rise = optax.linear_schedule(begin, learning_rate, warmup) if warmup else shape
    both = lambda count: jnp.where(count < warmup, rise(count), shape(count))  # noqa: E731
    return tabulated(_each_epoch(both, steps_per_epoch) if per_epoch else both, total_steps)


def _each_epoch(schedule: optax.Schedule, steps_per_epoch: float) -> optax.Schedule:
    """A schedule of whole epochs as one of steps."""
    return lambda count: schedule(jnp.floor(count / steps_per_epoch))


def scaled(learning_rate: float, rule: str, batch_size: int, base_batch: int) -> float:
    """The learning rate for this batch, from one that was chosen for `base_batch` images.

    Args:
      learning_rate: for base_batch images.
      rule: "off", "linear" (Goyal et al. 2017, arXiv 1706.02677) or "sqrt" (Krizhevsky 2014, arXiv 1404.5997).
      batch_size: images a step.
      base_batch: images a step that it was chosen for.
    """
    return learning_rate * BATCH_RULES[rule](batch_size / base_batch)


BATCH_RULES: dict[str, Callable[[float], float]] = {"off": lambda ratio: 1.0, "linear": float, "sqrt": math.sqrt}


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
    schedule: str,
    *,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    zero_epochs: float = 0.0,
    per_epoch: bool = False,
) -> Schedule:
    """Makes the attack's strength per step: 0 for zero_epochs, then from 0 to 1 over warmup_epochs, then 1.

    With `per_epoch` it changes once an epoch, at its start, as in the reference's code.

    Reference: epsilon warm-up of Debenedetti et al., A Light Recipe to Train Robust Vision Transformers, SaTML 2023,
    arXiv 2209.07399; per step here, and without that code's jump where both periods are used.
    """
    per = 1.0 if per_epoch else steps_per_epoch
    zero, warmup = zero_epochs * per, warmup_epochs * per
    rise = STRENGTHS[schedule](warmup) if warmup else full(warmup)
    both = optax.join_schedules([optax.constant_schedule(0.0), rise], [zero])
    if not per_epoch:
        return tabulated(both, math.ceil(zero + warmup))
    return tabulated(_each_epoch(both, steps_per_epoch), math.ceil((zero + warmup + 1) * steps_per_epoch))


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
