"""What Square need not ask again: the proposals that the present best point has refused.

A linf proposal is a place, a size and one sign a channel. While the best point stays, the same proposal gives the same
loss, so it is refused again; on small images most of the 5000 queries are such repeats. They are passed over without a
query, and a slot whose every proposal was refused jumps to the next window size. The search goes through the same
points either way, bit for bit.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robust_vit.attacks.autoattack.square.patterns import sizes
from robust_vit.typing import Array

LOOKAHEAD = 32  # proposals a tick looks at; the last is asked even if it is a repeat
MOST_CHANNELS = 8


class Levels(NamedTuple):
    """The stretches of queries that share a window size."""

    of_query: np.ndarray  # [queries] which stretch
    proposals: np.ndarray  # [L] how many distinct proposals each has
    end: np.ndarray  # [L] the first query after each


@functools.lru_cache
def levels(
    height: int, width: int, channels: int, queries: int, p_init: float, rescale_schedule: bool, more: int
) -> Levels:
    """The window sizes of a linf search; `more` as in `Square._corner`."""
    sides, level_of_query = sizes(height, width, queries, p_init, rescale_schedule, "linf")
    sides, stretch_of_level = np.unique(-sides, return_inverse=True)
    sides, of_query = -sides, stretch_of_level[level_of_query]
    places = np.maximum(height - sides + more, 1) * np.maximum(width - sides + more, 1)
    end = np.searchsorted(of_query, np.arange(len(sides)), side="right")
    return Levels(of_query, places * 2 ** min(channels, MOST_CHANNELS + 1), end)


def worthwhile(found: Levels, channels: int) -> bool:
    """Whether some stretch has more queries than distinct proposals, so that repeats are certain."""
    return channels <= MOST_CHANNELS and bool((np.bincount(found.of_query) > found.proposals).any())


def number(top: Array, left: Array, signs: Array, width: int) -> Array:
    """Numbers proposals: top, left [...], signs [...,C] -> [...] in 0 .. H * W * 2^C - 1."""
    channels = signs.shape[-1]
    place = jnp.arange(channels).reshape((1,) * (signs.ndim - 1) + (channels,))
    bits = ((signs < 0) << place).sum(-1)
    return ((top * width + left) << channels) | bits.astype(jnp.int32)


def next_query(found: Levels, query: Array, refused: Array, numbers: Array) -> Array:
    """The next query that is not known to be refused.

    Args:
      found: the stretches.
      query: [B] the query to look from.
      refused: [B,P] what the best point refused since the query before; of that query's stretch.
      numbers: [B,J] the proposals of queries query .. query + J - 1.

    Returns:
      [B] a query in query .. queries; `queries` if no query that is left can change anything.
    """
    queries = len(found.of_query)
    of_query, proposals, end = (jnp.asarray(column) for column in found)
    now = of_query[jnp.maximum(query - 1, 0)]  # the stretch that `refused` is about
    ahead = jnp.minimum(query[:, None] + jnp.arange(numbers.shape[1])[None], queries)
    elsewhere = of_query[jnp.minimum(ahead, queries - 1)] != now[:, None]
    fresh = elsewhere | (ahead == queries) | ~jnp.take_along_axis(refused, numbers, axis=1)
    first = jnp.where(fresh.any(axis=1), jnp.argmax(fresh, axis=1), numbers.shape[1] - 1)
    exhausted = refused.sum(axis=1) >= proposals[now]
    chosen = jnp.take_along_axis(ahead, first[:, None], axis=1)[:, 0]
    return jnp.where(exhausted, jnp.maximum(chosen, end[now]), chosen)


def note(found: Levels, before: Array, query: Array, refused: Array, number: Array, better: Array) -> Array:
    """What is refused after a query.

    Args:
      found: the stretches.
      before: [B] the query before it.
      query: [B] the query asked.
      refused: [B,P] what was refused until then.
      number: [B] its proposal.
      better: [B] whether it became the best point.

    Returns:
      [B,P] what is refused now, of the stretch of `query`.
    """
    of_query = jnp.asarray(found.of_query)
    last = len(found.of_query) - 1
    same = of_query[jnp.clip(before, 0, last)] == of_query[jnp.clip(query, 0, last)]
    asked = jnp.arange(refused.shape[1])[None] == number[:, None]
    return ~better[:, None] & (asked | (refused & same[:, None]))
