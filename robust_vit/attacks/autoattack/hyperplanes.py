"""The nearest point on a hyperplane that stays inside the pixel box, in the linf, l2 and l1 norm: the inner problem of
FAB.

Moving along -w until w.x = b, every coordinate stopping at its face of the box [0,1]: for linf all coordinates go the
same distance, for l2 a distance proportional to |w|, for l1 whole coordinates are spent in the order of |w|. None of
the three needs a sort (`thresholds`).

Reference: Croce & Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020, appendix
A.
"""

import jax.numpy as jnp

from robust_vit.attacks.thresholds import largest, water_level
from robust_vit.typing import Array

_FLAT = 1e-8  # the reference moves no coordinate whose |w| is smaller (l2, l1)


def displacement(points: Array, normals: Array, offsets: Array, norm: str) -> Array:
    """Returns d of smallest norm with w.(x + d) = b and x + d in [0,1]; the extreme corner where the hyperplane misses
    the box.

    Args:
      points: x [B,n] in [0,1].
      normals: w [B,n].
      offsets: b [B].
      norm: "linf", "l2" or "l1".

    Returns:
      d [B,n].
    """
    excess = (normals * points).sum(axis=-1) - offsets
    w = normals * jnp.where(excess >= 0, 1.0, -1.0)[:, None]  # now w.x >= b: move against w
    excess = jnp.abs(excess)
    room = jnp.where(w < 0, 1.0 - points, points)  # [B,n] how far each coordinate can go
    return -jnp.sign(w) * _MOVES[norm](jnp.abs(w), room, excess)


def _linf_move(slope: Array, room: Array, excess: Array) -> Array:
    return jnp.minimum(water_level(slope, room, excess)[:, None], room)


def _l2_move(slope: Array, room: Array, excess: Array) -> Array:
    moves = slope > _FLAT
    safe = jnp.where(moves, slope, 1.0)
    level = water_level(jnp.where(moves, slope * slope, 0.0), jnp.where(moves, room / safe, 0.0), excess)
    return jnp.where(moves, jnp.minimum(level[:, None] * slope, room), 0.0)


def _l1_move(slope: Array, room: Array, excess: Array) -> Array:
    """A fractional knapsack: the steepest coordinates whole, the last one (or ties for it, evenly) in part."""
    slope = jnp.where(slope > _FLAT, slope, 0.0)
    gain = slope * room
    last = largest(lambda t: jnp.where(slope >= t[:, None], gain, 0.0).sum(axis=-1) >= excess, excess.shape[0])[:, None]
    whole = jnp.where(slope > last, gain, 0.0).sum(axis=-1)
    tied = jnp.where(slope == last, gain, 0.0).sum(axis=-1)
    part = jnp.where(tied > 0, (excess - whole) / jnp.where(tied > 0, tied, 1.0), 0.0)
    part = jnp.clip(part, 0.0, 1.0)[:, None]
    return jnp.where(slope > last, room, jnp.where((slope == last) & (slope > 0), part * room, 0.0))


_MOVES = {"linf": _linf_move, "l2": _l2_move, "l1": _l1_move}
