"""What objectives on the features of an encoder share. Their `forward` and `adversary` yield features [B,D]."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robust_vit.attacks.losses import in_float32
from robust_vit.typing import Array, Attack, Keys, LogitsFn

TINY = 1e-12  # least norm that a vector is divided by


def squared_distance(features: Array, others: Array) -> Array:
    """Returns sum_d (f_d - g_d)^2 of [B,D] and [B,D]: summed over D, and not averaged."""
    return jnp.sum(jnp.square(in_float32(features) - in_float32(others)), axis=-1)


def normalised(features: Array) -> Array:
    """Returns f / |f|_2 over the last axis; finite, and of finite gradient, at f = 0."""
    features = in_float32(features)
    length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(features), axis=-1, keepdims=True), TINY**2))
    return features / length


def cosine(features: Array, others: Array) -> Array:
    """Returns the cosine of the angle between [B,D] and [B,D], per example."""
    return jnp.sum(normalised(features) * normalised(others), axis=-1)


def climb(attack: Attack, keys: Keys, distance: Partial, images: Array, strength: Array | float) -> Array:
    """Maximises d(x') >= 0 over the ball, by any attack that maximises the cross-entropy.

    The attack is shown a classifier of two classes with the logits (0, d). Its cross-entropy towards the first is
    log(1 + exp d), which rises with d and with nothing else; its gradient is that of d, times at least 1/2.

    Args:
      attack, keys, images, strength: as an objective is given them.
      distance: images [B,H,W,C] -> d [B], a pytree.
    """
    first = jax.nn.one_hot(jnp.zeros(len(images), jnp.int32), 2)
    return attack(keys, Partial(_two_classes, distance), images, first, strength)


def _two_classes(distance: Partial, images: Array) -> Array:
    d = distance(images)
    return jnp.stack([jnp.zeros_like(d), d], axis=-1)  # [B,2]


def distance_to(encoder: LogitsFn, embeddings: Array) -> Partial:
    """Makes images -> |f(x) - e|_2^2 [B], f the encoder and e [B,D] one embedding an image."""
    return Partial(_distance, encoder, embeddings)


def _distance(encoder: LogitsFn, embeddings: Array, images: Array) -> Array:
    return squared_distance(encoder(images), embeddings)
