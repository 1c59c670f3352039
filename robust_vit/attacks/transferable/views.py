"""What a surrogate is shown in place of the point itself: random sizes and places (DI), fainter copies (SI)."""

import jax
import jax.numpy as jnp

from robust_vit.attacks.pgd import View
from robust_vit.typing import Array, Keys

RESIZE = 1.1  # the largest canvas over the image's size, of github.com/Trustworthy-AI-Group/TransferAttack


def diverse(probability: float | Array, largest: float = RESIZE) -> View:
    """With a probability, the image shrunk by up to `largest` and put somewhere on black; else the image.

    Reference: Xie et al. 2019 (DI-FGSM), https://arxiv.org/abs/1803.06978
    """

    def view(keys: Keys, points: Array) -> Array:
        return jax.vmap(one)(keys, points)

    def one(key: Array, image: Array) -> Array:
        size = jnp.array(image.shape[:2], image.dtype)
        coin, scaling, placing = jax.random.split(key, 3)
        scale = jax.random.uniform(scaling, dtype=jnp.float32, minval=1.0 / largest).astype(image.dtype)
        corner = jax.random.uniform(placing, (2,), jnp.float32).astype(image.dtype) * (1 - scale) * size
        scales = jnp.broadcast_to(scale, (2,))
        moved = jax.image.scale_and_translate(image, image.shape, (0, 1), scales, corner, "linear", antialias=False)
        return jnp.where(jax.random.bernoulli(coin, probability), moved, image)

    return view


def fainter(number: int) -> View:
    """The image divided by 2^number.

    Reference: Lin et al. 2020 (SI-FGSM), https://arxiv.org/abs/1908.06281
    """
    return lambda keys, points: points / 2**number


def both(first: View, second: View) -> View:
    """One view after the other, both with the same keys of which at most one draws."""
    return lambda keys, points: second(keys, first(keys, points))
