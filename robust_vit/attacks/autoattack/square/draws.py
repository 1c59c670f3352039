"""The random numbers of Square: what a query needs, and where it comes from."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.typing import Array, Keys


class Proposal(NamedTuple):
    """The random numbers of one query; uniforms in [0,1), signs in {-1, 1}."""

    places: Array  # [B,4] row and column of the window, and of the second window (l2, l1)
    turned: Array  # [B] bool: the bump is transposed (l2, l1)
    signs: Array  # [B,C] one for each channel


class Draws(NamedTuple):
    """Where random numbers come from.

    Attributes:
      start: (keys [B], shape) -> signs of that shape [B,...]: the stripes (linf), or the tiles (l2, l1).
      turned: (keys [B], shape) -> bool [B,...]: which tiles are transposed.
      proposal: (keys [B] of this query, query [B], channels) -> Proposal.
    """

    start: Callable[[Keys, tuple[int, ...]], Array]
    turned: Callable[[Keys, tuple[int, ...]], Array]
    proposal: Callable[[Keys, Array, int], Proposal]


def _example_start(keys: Keys, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.rademacher(key, shape[1:], jnp.float32))(keys)


def _example_turned(keys: Keys, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.bernoulli(key, shape=shape[1:]))(keys)


def _example_proposal(keys: Keys, query: Array, channels: int) -> Proposal:
    """As few random bits as will do: five words, and one for every 32 channels."""
    del query  # already in the keys
    words = jax.vmap(lambda key: jax.random.bits(key, (5 + -(-channels // 32),), jnp.uint32))(keys)
    places = (words[:, :4] >> 8).astype(jnp.float32) * 2.0**-24
    channel = jnp.arange(channels)
    bits = (words[:, 5 + channel // 32] >> (channel % 32).astype(jnp.uint32)[None]) & 1  # [B,C]
    return Proposal(places, (words[:, 4] & 1) == 1, 1.0 - 2.0 * bits.astype(jnp.float32))


def _shared_proposal(keys: Keys, query: Array, channels: int) -> Proposal:
    first = _example_proposal(keys[:1], query[:1], channels)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, keys.shape + x.shape[1:]), first)


EXAMPLE_DRAWS = Draws(_example_start, _example_turned, _example_proposal)
SHARED_DRAWS = EXAMPLE_DRAWS._replace(proposal=_shared_proposal)
