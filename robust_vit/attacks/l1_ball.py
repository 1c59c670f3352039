"""The l1 ball inside the pixel box: exact projection, and the sparse steepest step of APGD.

Reference: Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, 2021.
"""

import jax.numpy as jnp

from robust_vit.attacks.arguments import expand
from robust_vit.attacks.thresholds import largest, order_statistic
from robust_vit.typing import Array


def correction(images: Array, perturbation: Array, epsilon: Array) -> Array:
    """Returns what to add to `perturbation` for its Euclidean projection on {|d|_1 <= epsilon} and {0 <= x + d <= 1}.

    Every magnitude is lowered by one common amount per example, but not below 0, and at least by what sticks out of
    the box. The common amount is found by bisection and then solved for exactly on the piece it lies on.

    Args:
      images: x [B,...] in [0,1].
      perturbation: [B,...].
      epsilon: [B] radii.

    Returns:
      [B,...].
    """
    x, y = flat(images), flat(perturbation)
    size = jnp.abs(y)
    outside = -jnp.minimum(0.0, jnp.minimum(1.0 - x - y, x + y))

    def lowered(amount):
        return jnp.clip(amount[:, None], outside, size)

    too_long = size.sum(axis=-1) - outside.sum(axis=-1) > epsilon
    amount = largest(lambda a: (size - lowered(a)).sum(axis=-1) >= epsilon, x.shape[0])
    free = (outside < amount[:, None]) & (amount[:, None] < size)
    count = free.sum(axis=-1)
    rest = jnp.where(free, size, size - lowered(amount)).sum(axis=-1) - epsilon
    amount = jnp.where(count > 0, rest / jnp.maximum(count, 1), amount)
    lower = jnp.where(too_long[:, None], lowered(amount), outside)
    return (-jnp.sign(y) * lower).reshape(perturbation.shape)


def project(images: Array, points: Array, epsilon: Array) -> Array:
    """Projects `points` [B,...] on the l1 ball of radius `epsilon` [B] around `images`, inside the box (to
    rounding).
    """
    return points + correction(images, points - images, epsilon)


def sparse_direction(gradient: Array, fraction: Array) -> Array:
    """Returns the signs of the largest `fraction` [B] of each gradient's entries, scaled to unit l1 norm."""
    size = jnp.abs(flat(gradient))
    n = size.shape[-1]
    rank = jnp.clip((1.0 - fraction) * n, 0, n - 1).astype(jnp.int32)
    threshold = order_statistic(size, rank)
    signs = jnp.sign(gradient) * (jnp.abs(gradient) >= expand(threshold, gradient))
    return signs / expand(jnp.abs(flat(signs)).sum(axis=-1) + 1e-10, signs)


def support(perturbation: Array) -> Array:
    """[B] the number of non-zero entries, as float32."""
    return (flat(perturbation) != 0).sum(axis=-1).astype(jnp.float32)


def flat(x: Array) -> Array:
    """[B,...] -> [B,n]."""
    return x.reshape(x.shape[0], -1)
