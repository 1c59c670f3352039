"""The way that PGD takes: every point it passes, with the model's logits and the input gradient there."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, check_epsilon, check_inputs, expand
from robust_vit.typing import Array, Keys, LogitsFn


class Trajectory(NamedTuple):
    """S steps of PGD on B images; the first point is the start, the last one the result.

    Attributes:
      points: [S+1,B,H,W,C] in [0,1].
      logits: [S+1,B,K] at each point.
      gradients: [S+1,B,H,W,C] of the cross-entropy in the labels, at each point.
    """

    points: Array
    logits: Array
    gradients: Array


def trajectory(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    keys: Keys | int = 0,
    *,
    norm: str = "linf",
    epsilon: float,
    step_size: float | None = None,
    steps: int = 10,
    random_start: bool = False,
    targeted: bool = False,
) -> Trajectory:
    """Walks x <- project(x + step_size * steepest(gradient)), as `attacks.pgd(keep="last")` does, and keeps the way.

    Args:
      logits_fn: images [B,H,W,C] in [0,1] -> logits [B,K]; a pytree that holds its weights.
      images: [B,H,W,C] floats in [0,1].
      labels: [B] integers; with `targeted` the classes to reach.
      keys: [B] typed keys, one per example, or a seed.
      norm, epsilon: of the ball, in units of the [0,1] pixel range.
      step_size: in the same norm and units; 2.5 * epsilon / steps by default.
      steps: S.
      random_start: from a random point of the ball; otherwise from the image itself.
      targeted: walk towards the labels.

    Raises:
      ValueError: for an argument that does not fit.
    """
    check_epsilon(epsilon, norm)
    check_count("steps", steps)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    keys = check_inputs(keys, logits_fn, images, labels, 1.0)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    signed = -step_size if targeted else step_size
    return _walk(logits_fn, images, labels, keys, epsilon, signed, norm, steps, random_start)


@functools.partial(jax.jit, static_argnames=("norm", "steps", "random_start"))
def _walk(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    keys: Keys,
    epsilon: Array,
    signed: Array,
    norm: str,
    steps: int,
    random_start: bool,
) -> Trajectory:
    ball = norms.get(norm)

    def look(points: Array) -> tuple[Array, Array]:
        def total(points: Array) -> tuple[Array, Array]:
            logits = logits_fn(points)
            return losses.cross_entropy(logits, labels).sum(), logits

        gradient, logits = jax.grad(total, has_aux=True)(points)
        return gradient, logits

    def step(points: Array, _: None) -> tuple[Array, Trajectory]:
        gradient, logits = look(points)
        moved = points + expand(signed, images) * ball.steepest(gradient, points)
        return ball.project(moved, images, epsilon), Trajectory(points, logits, gradient)

    start = ball.start(keys, images, epsilon) if random_start else images
    last, way = jax.lax.scan(step, start, None, length=steps)
    gradient, logits = look(last)
    end = Trajectory(last, logits, gradient)
    return jax.tree.map(lambda before, at: jnp.concatenate([before, at[None]]), way, end)
