"""Balls: how an attack starts in one, climbs in its geometry, and is put back into it and into [0,1].

`get("linf" | "l2" | "l1")` returns a `Ball` of four pure functions of batches [B,H,W,C] (any H, W, C). Every epsilon is
a scalar or [B], traced or not, in units of the [0,1] pixel range: the largest change of a pixel (linf), the Euclidean
length (l2) or the sum of changes (l1) over all H*W*C values. All of them expect the working precision, float32 or
float64 (see `arguments.working`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import l1_ball
from robust_vit.attacks.arguments import expand, per_example
from robust_vit.errors import lookup
from robust_vit.typing import Array, Keys

PIXELS = (1, 2, 3)  # the axes of one image
TINY = 1e-12  # keeps a division defined; far below any length that matters in the [0,1] pixel range
SPARSITY = 0.01  # fraction of coordinates an L1 step moves (Tramer and Boneh 2019, https://arxiv.org/abs/1904.13000)


class Ball(NamedTuple):
    """The geometry of one norm.

    Attributes:
      start: (keys [B], images, epsilon) -> points drawn uniformly from the ball, then clipped to [0,1].
      steepest: (gradient, points) -> the direction of norm 1 in which a linear function with this gradient rises
        fastest (zero for a zero gradient).
      project: (points, images, epsilon) -> points inside the ball around the clean images and inside [0,1].
      distance: (points, images) -> [B] norm of the difference.
    """

    name: str
    start: Callable[[Keys, Array, Array | float], Array]
    steepest: Callable[[Array, Array], Array]
    project: Callable[[Array, Array, Array | float], Array]
    distance: Callable[[Array, Array], Array]


def box(points: Array) -> Array:
    """Clips to the pixel range [0,1]."""
    return jnp.clip(points, 0.0, 1.0)


def draw(keys: Keys, images: Array, sampler: Callable[..., Array]) -> Array:
    """One draw per example with its own key; always made in float32, so that every precision sees the same numbers."""
    return jax.vmap(lambda key: sampler(key, images.shape[1:], dtype=jnp.float32))(keys).astype(images.dtype)


def split(keys: Keys) -> tuple[Keys, Keys]:
    """Two independent keys for every key: [B] -> [B], [B]."""
    pairs = jax.vmap(jax.random.split)(keys)  # [B,2]
    return pairs[:, 0], pairs[:, 1]


def normal_start(ball: Ball, scale: float | Array) -> Callable[[Keys, Array, Array | float], Array]:
    """Makes a start images + scale * g, g standard normal per value, put into the ball: TRADES' way not to begin where
    its gradient is 0 (Zhang et al. 2019, https://arxiv.org/abs/1901.08573).
    """

    def start(keys: Keys, images: Array, epsilon: Array | float) -> Array:
        return ball.project(images + scale * draw(keys, images, jax.random.normal), images, epsilon)

    return start


# --- linf: every value within epsilon -------------------------------------------------------------------------------


def linf_start(keys: Keys, images: Array, epsilon: Array | float) -> Array:
    """images + epsilon * u, u uniform in [-1,1] per value (Madry et al. 2018)."""
    noise = 2.0 * draw(keys, images, jax.random.uniform) - 1.0
    return box(images + expand(epsilon, images) * noise)


def linf_steepest(gradient: Array, points: Array) -> Array:
    """sign(gradient)."""
    del points
    return jnp.sign(gradient)


def linf_project(points: Array, images: Array, epsilon: Array | float) -> Array:
    """The exact projection: a clip to [max(x - epsilon, 0), min(x + epsilon, 1)]."""
    epsilon = expand(epsilon, images)
    return box(jnp.clip(points, images - epsilon, images + epsilon))


def linf_distance(points: Array, images: Array) -> Array:
    """max |delta|, [B]."""
    return jnp.max(jnp.abs(points - images), axis=PIXELS)


# --- l2: Euclidean length within epsilon ----------------------------------------------------------------------------


def l2_norm(delta: Array) -> Array:
    """Euclidean length, [B,1,1,1]; scaled by the largest entry first, because squares of a saturated model's gradients
    underflow float32.
    """
    largest = jnp.max(jnp.abs(delta), axis=PIXELS, keepdims=True)
    scaled = delta / jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(jnp.sum(scaled**2, axis=PIXELS, keepdims=True))


def l2_start(keys: Keys, images: Array, epsilon: Array | float) -> Array:
    """images + epsilon * r * g/|g|, with g normal and r = u^(1/n): uniform in the ball of n = H*W*C dimensions."""
    direction_keys, radius_keys = split(keys)
    g = draw(direction_keys, images, jax.random.normal)
    u = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(radius_keys)
    r = u ** (1.0 / images[0].size)
    return box(images + expand(epsilon * r, images) * g / (l2_norm(g) + TINY))


def l2_steepest(gradient: Array, points: Array) -> Array:
    """gradient / |gradient|_2."""
    del points
    length = l2_norm(gradient)
    return gradient / jnp.where(length > 0, length, 1.0)


def l2_project(points: Array, images: Array, epsilon: Array | float) -> Array:
    """Rescales delta to length min(epsilon, |delta|), then clips to [0,1], as AutoAttack does
    (https://arxiv.org/abs/2003.01690).

    The clip can only shorten delta, so the result is inside both sets; it is not always the nearest such point.
    """
    delta = points - images
    factor = jnp.minimum(1.0, expand(epsilon, images) / jnp.maximum(l2_norm(delta), TINY))
    return box(images + factor * delta)


def l2_distance(points: Array, images: Array) -> Array:
    """|delta|_2, [B]."""
    return l2_norm(points - images)[:, 0, 0, 0]


# --- l1: sum of absolute changes within epsilon ---------------------------------------------------------------------


def l1_start(keys: Keys, images: Array, epsilon: Array | float) -> Array:
    """images + epsilon * e / (|e|_1 + e'), e Laplace and e' exponential: uniform in the ball (Barthe et al. 2005)."""
    direction_keys, radius_keys = split(keys)
    e = draw(direction_keys, images, jax.random.laplace)
    rest = jax.vmap(lambda key: jax.random.exponential(key, dtype=jnp.float32))(radius_keys)
    total = jnp.sum(jnp.abs(e), axis=PIXELS, keepdims=True) + expand(rest, images)
    return box(images + expand(epsilon, images) * e / total)


def sparse_sign(gradient: Array, fraction: Array | float) -> Array:
    """sign(gradient) on the `fraction` of coordinates where |gradient| is largest, divided by their number: an L1 step
    of length 1.

    The steepest L1 step moves a single pixel; a few at once need fewer model evaluations (SLIDE of Tramer and Boneh
    2019; APGD-L1 of Croce and Hein 2021).

    Args:
      gradient: [B,H,W,C].
      fraction: scalar or [B], in (0, 1]; at least one coordinate is always taken, ties with the last one taken are
        taken too.

    Returns:
      [B,H,W,C], of L1 norm 1, or 0 where the gradient is zero.
    """
    return l1_ball.sparse_direction(gradient, per_example(fraction, gradient))


def l1_steepest(gradient: Array, points: Array) -> Array:
    """`sparse_sign` of the coordinates that can still move: one at 0 or 1 whose gradient points out of the box would
    waste the step (Maini et al. 2020).
    """
    stuck = ((points <= 0.0) & (gradient < 0.0)) | ((points >= 1.0) & (gradient > 0.0))
    return sparse_sign(jnp.where(stuck, 0.0, gradient), SPARSITY)


def l1_project(points: Array, images: Array, epsilon: Array | float) -> Array:
    """The exact Euclidean projection on {|delta|_1 <= epsilon} and {0 <= x + delta <= 1}, see `l1_ball.inside`.

    Reference: Croce and Hein 2021, https://arxiv.org/abs/2103.01208
    """
    return l1_ball.inside(images, points, per_example(epsilon, images))


def l1_distance(points: Array, images: Array) -> Array:
    """|delta|_1, [B]."""
    return jnp.sum(jnp.abs(points - images), axis=PIXELS)


BALLS: dict[str, Ball] = {
    "linf": Ball("linf", linf_start, linf_steepest, linf_project, linf_distance),
    "l2": Ball("l2", l2_start, l2_steepest, l2_project, l2_distance),
    "l1": Ball("l1", l1_start, l1_steepest, l1_project, l1_distance),
}


def get(norm: str) -> Ball:
    """Returns the ball of a norm by name.

    Raises:
      ValueError: if the name is unknown; the nearest is suggested.
    """
    return lookup("norm", norm, BALLS)
