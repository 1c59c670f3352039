"""The l1 ball inside the pixel box: the exact projection, rounded in two ways, and the sparse steepest step of APGD.

Both find the common amount that every coordinate shrinks by with the same bisection. `inside` never leaves the ball;
`correction` forms its sums as AutoAttack does, whose APGD counts the residue that rounding leaves in them.

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


def inside(images: Array, points: Array, epsilon: Array) -> Array:
    """Projects `points` [B,...] on the l1 ball of radius `epsilon` [B] around `images`, inside the box; rounding errs
    to the inside of the ball.

    delta_i = sign(d_i) * clip(|d_i| - lambda, 0, room_i), where d = points - images, room_i is what the box leaves in
    the direction of d_i, and lambda >= 0 is the smallest number for which |delta|_1 <= epsilon.
    """
    d = points - images
    room = jnp.where(d > 0, 1.0 - images, images)

    def shrunk(amount: Array) -> Array:
        return jnp.clip(jnp.abs(d) - expand(amount, d), 0.0, room)

    def too_long(amount: Array) -> Array:
        return flat(shrunk(amount)).sum(axis=-1) > epsilon

    least = jnp.nextafter(largest(too_long, d.shape[0], d.dtype), jnp.asarray(jnp.inf, d.dtype))
    none = jnp.zeros_like(least)
    return jnp.clip(images + jnp.sign(d) * shrunk(jnp.where(too_long(none), least, none)), 0.0, 1.0)


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
