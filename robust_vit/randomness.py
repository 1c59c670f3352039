"""Randomness belongs to the example: one key per example, folded from (seed, purpose, step, dataset index).

A result therefore does not depend on the batch size, the order, the number of devices or hosts, or on whether a run was
killed and resumed.
"""

import jax
import jax.numpy as jnp

from robust_vit.typing import Array, Keys

# Purposes. Two draws that must be independent get two names; the numbers are part of every recorded result.
INIT = 0
AUGMENT = 1
TRAIN_ATTACK = 2
EVALUATION_ATTACK = 3
MODEL = 4  # dropout, drop path
MIXING = 5
APGD = 6
FAB = 7
SQUARE = 8
NOISE = 9


def as_key(seed: int | Array) -> Array:
    """Returns `seed` as a typed key: an integer becomes `jax.random.key(seed)`, a key stays itself."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    return jax.random.key(seed)


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
