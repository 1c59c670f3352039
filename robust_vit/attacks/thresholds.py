"""Thresholds without sorting: order statistics and monotone conditions by bisection over the bits of a float.

Non-negative floats are ordered like their bit patterns, so 31 halvings (63 in float64) find a threshold to the last
bit, whatever its scale. Each halving is one masked reduction, which accelerators (and CPUs) do far faster than a sort
of every image at every step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.typing import Array


def largest(holds: Callable[[Array], Array], batch: int, dtype: Any = jnp.float32) -> Array:
    """Finds per example the largest finite non-negative float for which a condition holds.

    Args:
      holds: thresholds [B] -> bool [B]; true up to some threshold, false from there on.
      batch: B.
      dtype: of the thresholds, float32 or float64.

    Returns:
      [B] thresholds; 0 where the condition holds nowhere, or only below the smallest normal number (XLA flushes those).
    """
    dtype = jnp.dtype(dtype)
    word = jnp.dtype(f"int{8 * dtype.itemsize}")
    top = 8 * dtype.itemsize - 2  # the highest bit below the sign
    finite, normal = (np.array(x, dtype).view(word) for x in (jnp.finfo(dtype).max, jnp.finfo(dtype).tiny))

    def try_bit(i, bits):
        candidate = bits | jax.lax.shift_left(word.type(1), word.type(top) - i.astype(word))
        value = jax.lax.bitcast_convert_type(candidate, dtype)
        return jnp.where((candidate <= finite) & holds(value), candidate, bits)

    nothing = jnp.zeros((batch,), word)
    start = jnp.where(holds(nothing.astype(dtype)), nothing, nothing)  # under shard_map it varies as the answer does
    bits = jax.lax.fori_loop(0, top + 1, try_bit, start)
    return jax.lax.bitcast_convert_type(jnp.where(bits < normal, 0, bits), dtype)


def order_statistic(values: Array, rank: Array) -> Array:
    """Returns the element of rank `rank` [B] (0 the smallest) of each row of the non-negative `values` [B,n],
    exactly.
    """
    return largest(lambda t: (values < t[:, None]).sum(axis=-1) <= rank, values.shape[0])


def water_level(weights: Array, caps: Array, total: Array, max_steps: int = 100) -> Array:
    """Solves sum_i weights_i min(level, caps_i) = total for the level, by Newton's method.

    The sum is concave and piecewise linear in the level, so Newton's method from 0 climbs to the solution without
    overshooting and ends on it after finitely many steps (about ten), at any scale: no bracket to choose, nothing to
    sort.

    Args:
      weights: [B,n], non-negative.
      caps: [B,n], non-negative.
      total: [B], non-negative.
      max_steps: limit of Newton steps.

    Returns:
      [B] levels; where the total cannot be reached, a level at which every element that has a weight is at its cap.
    """

    def climb(level):
        capped = caps <= level[:, None]
        slope = jnp.where(capped, 0.0, weights).sum(axis=-1)
        missing = total - jnp.where(capped, weights * caps, 0.0).sum(axis=-1)
        return jnp.where(slope > 0, jnp.maximum(missing / jnp.where(slope > 0, slope, 1.0), level), level)

    def go_on(carry):
        _, moving, step = carry
        return moving.any() & (step < max_steps)

    def step(carry):
        level, moving, i = carry
        higher = jnp.where(moving, climb(level), level)
        return higher, higher > level, i + 1

    start = jnp.where(total > 0, 0.0, jnp.zeros_like(total))  # under shard_map it varies as the total does
    return jax.lax.while_loop(go_on, step, (start, start == 0, 0))[0]
