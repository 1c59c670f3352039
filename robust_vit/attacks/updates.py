"""How PGD turns gradients into steps: the update rules, a row of `UPDATES` each.

A rule is made of (ball, steps, momentum). What it needs of the steps before it remembers in a tree of arrays shaped
like the points, so every example has its own; it returns the displacement of a step of size 1, which `pgd` scales,
adds, and projects.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import is_zero
from robust_vit.typing import Array

B1, B2, TINY = 0.9, 0.999, 1e-8  # Adam's own defaults, https://arxiv.org/abs/1412.6980
ADAM_STEP_SIZE = 0.1  # learning rate in units of the [0,1] pixel range, a tenth of it after half the steps


class Update(NamedTuple):
    """An update rule.

    Attributes:
      start: zeros [B,H,W,C] -> what is remembered before the first step.
      step: (gradient, points, memory, number of the step, traced) -> (displacement [B,H,W,C], memory).
      ahead: memory -> the displacement at which a step's gradient is taken; None takes it where the step begins.
    """

    start: Callable[[Array], Any]
    step: Callable[[Array, Array, Any, Array], tuple[Array, Any]]
    ahead: Callable[[Any], Array] | None = None


def steepest(ball: norms.Ball, steps: int, momentum: float | Array) -> Update:
    """The steepest step of the ball; with momentum that of m <- momentum m + gradient / |gradient|_1.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083; momentum: Dong et al. 2018 (MI-FGSM),
      https://arxiv.org/abs/1710.06081
    """
    del steps
    if is_zero(momentum):
        return Update(lambda zeros: (), lambda gradient, points, memory, number: (ball.steepest(gradient, points), ()))

    def step(gradient: Array, points: Array, memory: Array, number: Array) -> tuple[Array, Array]:
        memory = momentum * memory + l1_normalised(gradient)
        return ball.steepest(memory, points), memory

    return Update(lambda zeros: zeros, step)


def nesterov(ball: norms.Ball, steps: int, momentum: float | Array) -> Update:
    """`steepest`, with the gradient of where the accumulated ones lead: momentum * memory steps ahead, where the
    memory is scaled to gradients of mean size 1, as its authors' code has it.

    Reference: Lin et al. 2020 (NI-FGSM), https://arxiv.org/abs/1908.06281
    """
    plain = steepest(ball, steps, momentum)
    return plain._replace(ahead=lambda memory: momentum * memory[0].size * memory)


def heavy_ball(ball: norms.Ball, steps: int, momentum: float | Array) -> Update:
    """v <- steepest(momentum v + steepest(gradient)), the step v itself: momentum over steps, not over gradients.

    In Linf with momentum below 1 this is the plain sign step, but where a gradient is exactly 0: there the last sign
    goes on.

    Reference: Schlarmann et al. 2024 (FARE), https://arxiv.org/abs/2402.12336; github.com/chs20/RobustVLM
    """
    del steps

    def step(gradient: Array, points: Array, memory: Array, number: Array) -> tuple[Array, Array]:
        velocity = ball.steepest(momentum * memory + ball.steepest(gradient, points), points)
        return velocity, velocity

    return Update(lambda zeros: zeros, step)


def adam(ball: norms.Ball, steps: int, momentum: float | Array) -> Update:
    """Adam on pixels, whatever the ball; a tenth of the step size after half the steps.

    Reference: Gowal et al. 2021, https://arxiv.org/abs/2110.09468; Rebuffi et al. 2021,
      https://arxiv.org/abs/2103.01946; google-deepmind/deepmind-research adversarial_robustness
    """
    del ball, momentum
    half = -(-steps // 2)

    def step(gradient: Array, points: Array, memory: Any, number: Array) -> tuple[Array, Any]:
        mean, scale, memory = moments(gradient, memory, number)
        return jnp.where(number < half, 1.0, 0.1).astype(points.dtype) * (mean / scale), memory

    return Update(lambda zeros: (zeros, zeros), step)


def moments(gradient: Array, memory: Any, number: Array) -> tuple[Array, Array, Any]:
    """Adam's averages, corrected for having begun at zero: (mean, scale, memory); its step is mean / scale.

    Args:
      gradient: [B,H,W,C].
      memory: (mean, mean square) after the step before; zeros at first.
      number: of the step, from 0; traced.
    """
    mean, square = memory
    mean = B1 * mean + (1 - B1) * gradient
    square = B2 * square + (1 - B2) * gradient**2
    count = (number + 1).astype(gradient.dtype)
    return mean / (1 - B1**count), jnp.sqrt(square / (1 - B2**count)) + TINY, (mean, square)


def l1_normalised(gradient: Array) -> Array:
    """gradient / |gradient|_1 per example, zero for a zero gradient."""
    total = jnp.sum(jnp.abs(gradient), axis=norms.PIXELS, keepdims=True)
    return gradient / jnp.where(total > 0, total, 1.0)


UPDATES: dict[str, Callable[[norms.Ball, int, float | Array], Update]] = {
    "steepest": steepest,
    "heavy_ball": heavy_ball,
    "nesterov": nesterov,
    "adam": adam,
}
