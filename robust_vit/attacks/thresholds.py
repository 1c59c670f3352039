"""Thresholds without sorting: order statistics and monotone conditions by bisection over the bits of a float.

Non-negative float32 numbers are ordered like their bit patterns, so 31 halvings find a threshold to the last bit,
whatever its scale. Each halving is one masked reduction, which accelerators (and CPUs) do far faster than a sort of
every image at every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_vit.typing import Array

_LARGEST = 0x7F7FFFFF  # the bits of the largest finite float32
_SMALLEST = 0x00800000  # of the smallest normal one; what is below counts as 0 (XLA flushes it)


def largest(holds: Callable[[Array], Array], batch: int) -> Array:
    """Finds per example the largest finite non-negative float32 for which a condition holds.

    Args:
      holds: thresholds [B] -> bool [B]; true up to some threshold, false from there on.
      batch: B.

    Returns:
      [B] thresholds; 0 where the condition holds nowhere.
    """

    def try_bit(i, bits):
        candidate = bits | jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
        value = jax.lax.bitcast_convert_type(candidate, jnp.float32)
        return jnp.where((candidate <= _LARGEST) & holds(value), candidate, bits)

    bits = jax.lax.fori_loop(0, 31, try_bit, jnp.zeros((batch,), jnp.int32))
    return jax.lax.bitcast_convert_type(jnp.where(bits < _SMALLEST, 0, bits), jnp.float32)


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

    start = jnp.zeros_like(total)
    return jax.lax.while_loop(go_on, step, (start, start == 0, 0))[0]
