"""Stored pixels to floats in [0,1]: the one conversion, the same to the last bit on every host and device.

    images = pixels.as_float(batch["image"])  # uint8 [B,H,W,C] -> float32 [B,H,W,C]

It has a file of its own because the obvious `x / 255` is not one function: XLA turns a division by a constant into a
multiplication by its rounded reciprocal, which differs from NumPy's quotient on 126 of the 256 levels.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check

Images = TypeVar("Images", np.ndarray, jax.Array)


def as_float(images: Images) -> Images:
    """Returns images as float32 in [0,1]: uint8 divided by 255, uint16 by 65535, floats as they are.

    Every quotient is the correctly rounded one, `np.float32(x) / np.float32(255)`, for NumPy arrays and inside `jit`.
    For 8 bits, 255 * 65793 = 2^24 - 1, so that with the integer X = 65793 x, which float32 holds exactly,

        x / 255 = X / (2^24 - 1) = (X + X 2^-24 + X 2^-48 + ...) 2^-24,

    and for 16 bits x / 65535 = (x + x 2^-16 + x 2^-32 + ...) 2^-16. The terms shown decide the rounding of the sum for
    every level; products with powers of two are exact, so a compiler that fuses or reorders them changes nothing.

    Args:
      images: an array of any shape; on the device, so that a quarter of the bytes cross the host's link.

    Returns:
      A new float32 array of the same kind, NumPy or JAX.

    Raises:
      ValueError: other integers, whose largest value nobody can know, booleans, complex numbers.
    """
    kind = images.dtype
    known = kind in (np.uint8, np.uint16) or jnp.issubdtype(kind, jnp.floating)
    check("images.dtype", str(kind), known, "uint8 (0..255), uint16 (0..65535) or a float in [0,1]")
    x = images.astype(np.float32)
    if kind == np.uint8:
        return x / np.float32(255) if isinstance(x, np.ndarray) else _by_255(x)
    if kind == np.uint16:
        return x / np.float32(65535) if isinstance(x, np.ndarray) else _by_65535(x)
    return x


def _by_255(x: jax.Array) -> jax.Array:
    """x / 255 of float32 integers in 0..255."""
    X = x * 65793
    return (X + X * 2.0**-24) * 2.0**-24


def _by_65535(x: jax.Array) -> jax.Array:
    """x / 65535 of float32 integers in 0..65535."""
    return (x + (x * 2.0**-16 + x * 2.0**-32)) * 2.0**-16
