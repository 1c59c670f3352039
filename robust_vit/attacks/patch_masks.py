"""Masks over image patches, drawn per example: which part of a perturbation a step starts from."""

import jax
import jax.numpy as jnp

from robust_vit.typing import Array, Keys


def kept(keys: Keys, images: Array, fraction: float | Array, patch_size: int) -> Array:
    """Draws which patches are kept: all but floor(P (1 - fraction)) of an image's P patches, any as likely as another.

    Args:
      keys: [B] typed keys.
      images: [B,H,W,C]; where the patch does not divide the image, the last row and column of patches are cut.
      fraction: in [0,1], may be traced; 1 keeps all.
      patch_size: side of a patch in pixels.

    Returns:
      [B,H,W,1] booleans.
    """
    _, height, width, _ = images.shape
    h, w = -(-height // patch_size), -(-width // patch_size)
    count = h * w
    # The little more keeps rounding from dropping one less than is said: 100 (1 - 0.8) is 19.999999 in float32.
    dropped = jnp.floor(count * (1.0 - jnp.asarray(fraction, jnp.float32)) + 1e-4)

    def draw(key: Array) -> Array:
        return jax.random.permutation(key, count) >= dropped

    grid = jax.vmap(draw)(keys).reshape(-1, h, w)
    pixels = jnp.repeat(jnp.repeat(grid, patch_size, axis=1), patch_size, axis=2)
    return pixels[:, :height, :width, None]
