"""Universal perturbations: one change that fools a classifier on most images of a data set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit import randomness
from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import (
    check_count,
    check_epsilon,
    check_labels,
    check_pixels,
    check_positive,
    is_concrete,
    working,
)
from robust_vit.errors import check
from robust_vit.typing import Array, LogitsFn

CLAMP = 9.0  # a loss beyond it counts no further, or one image would steer the change (Shafahi et al. 2020)


class Universal(NamedTuple):
    """What was found.

    Attributes:
      change: [H,W,C], inside the ball; an image is changed to clip(image + change, 0, 1).
      fooled: [N] bool, which of the images it was made on are misclassified with it.
    """

    change: Array
    fooled: Array


def universal(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str = "linf",
    epsilon: float | Array,
    step_size: float | Array | None = None,
    epochs: int = 10,
    batch_size: int = 100,
    loss: str = "cross_entropy",
    seed: int | Array = 0,
) -> Universal:
    """Climbs the mean loss of a data set, each image's share of it clamped, by steepest steps over shuffled batches.

    Measure it on images that it was not made on: `images + change` there is what the paper calls universal.

    Args:
      logits_fn: the classifier; deterministic.
      images: [N,H,W,C] floats in [0,1], all in the device's memory.
      labels: [N] integers.
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball around 0, in units of the [0,1] pixel range; may be traced.
      step_size: of a batch; epsilon / 10 by default.
      epochs: passes over the images; the last batch of each, if it is not full, begins anew with its first images.
      batch_size: images a step.
      loss: what is maximised, a name of `losses.LOSSES`.
      seed: of the order.

    Raises:
      ValueError: for a bad keyword, or arrays that do not fit, before anything is compiled.

    Reference: Moosavi-Dezfooli et al. 2017, https://arxiv.org/abs/1610.08401; the algorithm: Shafahi et al. 2020,
      https://arxiv.org/abs/1811.11304
    """
    check_epsilon(epsilon, norm)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    count = images.shape[0]
    fits = images.ndim == 4 and jnp.issubdtype(images.dtype, jnp.floating) and count > 0
    check("images", f"{images.dtype}{list(images.shape)}", fits, "floats in [0,1] of shape [N,H,W,C], one at least")
    check("labels", f"{labels.dtype}{list(labels.shape)}", labels.shape == (count,), f"integers of shape [{count}]")
    check_pixels(images)
    if is_concrete(labels):
        check_labels(labels, jax.eval_shape(logits_fn, images))
    if step_size is None:
        step_size = epsilon / 10
    else:
        check_positive("step_size", step_size)
    ball, objective, size = norms.get(norm), losses.get(loss), min(batch_size, count)

    def mean_loss(change: Array, x: Array, y: Array) -> Array:
        return jnp.mean(jnp.minimum(objective(logits_fn(norms.box(x + change)), y), CLAMP))

    def step(change: Array, rows: Array) -> tuple[Array, None]:
        slope = jax.grad(mean_loss)(change, working(images[rows]), labels[rows])
        moved = change + step_size * ball.steepest(slope, 0.5 + 0 * change)  # 1/2: no value of a change is at a border
        return _inside(moved, ball, epsilon), None

    keys = jax.random.split(randomness.as_key(seed), epochs)
    batches = -(-count // size)
    places = jnp.arange(batches * size) % count
    orders = jax.vmap(lambda key: jax.random.permutation(key, count)[places])(keys)  # [epochs, batches * size]
    still = jnp.zeros((1, *images.shape[1:]), working(images).dtype)
    change, _ = jax.lax.scan(step, still, orders.reshape(epochs * batches, size))
    rows = places.reshape(batches, size)
    found = jax.lax.map(lambda row: jnp.argmax(logits_fn(norms.box(working(images[row]) + change)), -1), rows)
    return Universal(change[0], found.reshape(-1)[:count] != labels)


def _inside(change: Array, ball: norms.Ball, epsilon: float | Array) -> Array:
    """Puts a change [1,H,W,C] into the ball; the pixel range binds the images only, in either direction by less than 1.

    The balls project pairs of an image and a point in [0,1]: of (0, |change|), which keeps the signs.
    """
    return jnp.sign(change) * ball.project(jnp.abs(change), jnp.zeros_like(change), epsilon)
