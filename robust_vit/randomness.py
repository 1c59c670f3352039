"""Randomness belongs to the example: one key per example, folded from (seed, purpose, step, dataset index).

A result therefore does not depend on the batch size, the order, the number of devices or hosts, or on whether a run was
killed and resumed.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check
from robust_vit.typing import Array, Keys

# Purposes. Two draws that must be independent get two names; the numbers are part of every recorded result, so that of
# a purpose which is gone is not given to another (1, 6 to 9).
INIT = 0
TRAIN_ATTACK = 2
EVALUATION_ATTACK = 3
MODEL = 4  # dropout, drop path
MIXING = 5

BITS = 32  # of the words that keys are made of


def as_key(seed: int | Array) -> Array:
    """Returns `seed` as a typed key; a key stays itself.

    An integer of up to 32 bits becomes `jax.random.key(seed)`. JAX takes no more bits of it (unless jax_enable_x64 is
    on), so that 2**32 would mean 0: the upper half of a longer or a negative one is folded in.

    Raises:
      ValueError: for a number that is not whole, or of more than 64 bits.
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.core.Tracer):
        return jax.random.key(seed)
    check_seed(seed)
    high, low = int(seed) >> BITS, int(seed) & (2**BITS - 1)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high & (2**BITS - 1))) if high else key


def check_seed(seed: Any) -> None:
    """Raises ValueError unless `seed` is a typed key, or a whole number of 64 bits with its sign."""
    if isinstance(seed, jax.Array):
        typed = jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
        whole = typed or (seed.ndim == 0 and jnp.issubdtype(seed.dtype, jnp.integer))
        check("seed", f"{seed.dtype}{list(seed.shape)}", whole, "a typed key, jax.random.key(seed), or a whole number")
        return
    whole = isinstance(seed, numbers.Integral) or (isinstance(seed, np.ndarray) and seed.ndim == 0)
    check("seed", seed, whole and not isinstance(seed, bool), "a whole number or a typed key, jax.random.key(seed)")
    check("seed", seed, -(2**63) <= int(seed) < 2**63, "in [-2**63, 2**63)")


def indices(values: Any) -> np.ndarray:
    """Dataset indices as int32 [B], on the host.

    Raises:
      ValueError: for indices that need more bits: two examples would share a key.
    """
    values = np.asarray(values)
    if values.size and values.dtype.kind in "iu":
        largest = max(int(values.max()), -int(values.min()))
        check("index", largest, largest < 2**31, "below 2**31, the examples that can have keys of their own")
    return values.astype(np.int32)


def example_keys(seed: int | Array, indices: Array, purpose: int, step: int | Array = 0) -> Keys:
    """Derives one key per example.

    Args:
      seed: an integer or a typed key.
      indices: [B] integers that name the examples (dataset indices).
      purpose: one of this module's constants.
      step: training step, restart or any other counter; may be traced.

    Returns:
      [B] typed keys.
    """
    base = jax.random.fold_in(jax.random.fold_in(as_key(seed), purpose), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, jnp.asarray(indices))
