"""Expectation over transformation: attacks on what a classifier sees after something random happened to the image.

    seen = expectation.under(logits_fn, transform)                 # (images, keys) -> logits
    attack = attacks.pgd(epsilon=8 / 255, stochastic=True, eot=10)  # fresh draws for every gradient

    fixed = expectation.over(logits_fn, transform, keys, draws=10)  # images -> logits: for any attack

`transform` is (keys [B], images [B,H,W,C]) -> images [B,h,w,C], one key an example: of `robust_vit.physical`, or of
one's own.

Reference: Athalye et al., Synthesizing Robust Adversarial Examples, 2018, https://arxiv.org/abs/1707.07397
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_vit.attacks.arguments import check_count
from robust_vit.attacks.losses import in_float32
from robust_vit.typing import Array, Keys, LogitsFn

Transform = Callable[[Keys, Array], Array]  # (keys [B], images [B,H,W,C]) -> images [B,h,w,C]


def under(logits_fn: LogitsFn, transform: Transform) -> Callable[[Array, Keys], Array]:
    """The classifier behind a transformation, as attacks with `stochastic=True` call it.

    Args:
      logits_fn: images -> logits [B,K].
      transform: differentiable where a gradient is wanted.

    Returns:
      (images [B,H,W,C], keys [B]) -> logits [B,K], a pytree that carries the weights.
    """
    return jax.tree_util.Partial(_Under(transform), logits_fn)


def over(logits_fn: LogitsFn, transform: Transform, keys: Keys, draws: int) -> LogitsFn:
    """The classifier that averages its probabilities over draws of a transformation, the same ones at every call.

    Deterministic, so that any attack takes it. The rows of a batch are those of `keys`: it serves the batch it is made
    for.

    Args:
      logits_fn: images -> logits [B,K].
      transform: as in `under`.
      keys: [B] typed keys of the examples that will be attacked.
      draws: how many.

    Returns:
      images [B,H,W,C] -> [B,K], the logarithms of the mean probabilities.

    Raises:
      ValueError: unless `draws` is a whole number, at least 1.
    """
    check_count("draws", draws)
    return jax.tree_util.Partial(_Over(transform, draws), logits_fn, keys)


class _Under:
    """Compares by its transformation, so that equal ones share a compilation."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, logits_fn: LogitsFn, images: Array, keys: Keys) -> Array:
        return logits_fn(self.transform(keys, images))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


class _Over(_Under):
    def __init__(self, transform: Transform, draws: int):
        super().__init__(transform)
        self.draws = draws

    def __call__(self, logits_fn: LogitsFn, keys: Keys, images: Array) -> Array:
        def one(number: Array) -> Array:
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
            return jax.nn.log_softmax(in_float32(logits_fn(self.transform(folded, images))))

        found = jax.lax.map(jax.checkpoint(one), jnp.arange(self.draws))  # [draws,B,K]; the memory of one
        return jax.nn.logsumexp(found, axis=0) - jnp.log(self.draws)
