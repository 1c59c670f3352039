"""JPEG: what the file keeps, in the forward pass; its rounding is passed through backwards.

Colours as JFIF has them (BT.601, full range), blocks of 8 by 8, the tables of ITU-T T.81 annex K at the qualities of
libjpeg, chroma at half resolution if wanted. The entropy coding loses nothing, and is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check
from robust_vit.typing import Array, Keys

LUMA = np.array(
    """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
    72 92 95 98 112 100 103 99""".split(),
    int,
).reshape(8, 8)
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
FROM_YCC = np.linalg.inv(TO_YCC)
_K = np.arange(8)
DCT = np.sqrt(2 / 8) * np.cos((2 * _K[None] + 1) * _K[:, None] * np.pi / 16)
DCT[0] /= np.sqrt(2)  # orthonormal


def jpeg(quality: int, subsampled: bool = True):
    """Makes the stage.

    Args:
      quality: 1 to 100, as libjpeg and Pillow count.
      subsampled: chroma at half resolution in both directions (4:2:0, the usual); otherwise at full (4:4:4).

    Returns:
      (keys, images [B,H,W,C]) -> images; C is 1 or 3. Values are rounded to 255 levels before and after, as files have
      them. The gradient is that of the same arithmetic without rounding.

    Raises:
      ValueError: for a quality out of range.
    """
    whole = isinstance(quality, int | np.integer) and not isinstance(quality, bool)
    check("quality", quality, whole and 1 <= quality <= 100, "a whole number from 1 to 100")
    luma, chroma = table(LUMA, quality), table(CHROMA, quality)

    def stage(keys: Keys, images: Array) -> Array:
        del keys
        channels = images.shape[-1]
        check("channels", channels, channels in (1, 3), "1 or 3 for jpeg")
        pixels = rounded(255.0 * images)
        if channels == 1:
            return rounded(jnp.clip(coded(pixels - 128.0, luma) + 128.0, 0, 255)) / 255.0
        ycc = jnp.einsum("bhwc,dc->bhwd", pixels, jnp.asarray(TO_YCC, images.dtype))
        y, cc = rounded(ycc[..., :1] - 128.0), rounded(ycc[..., 1:])
        y, cc = coded(y, luma), _halved(cc, chroma) if subsampled else coded(cc, chroma)
        ycc = jnp.concatenate([_bytes(y), _bytes(cc)], -1)
        rgb = jnp.einsum("bhwc,dc->bhwd", ycc, jnp.asarray(FROM_YCC, images.dtype)) + 128.0
        return rounded(jnp.clip(rgb, 0, 255)) / 255.0

    return stage


def table(base: np.ndarray, quality: int) -> np.ndarray:
    """libjpeg's quantisation table of a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((base * scale + 50) // 100, 1, 255)


def rounded(x: Array) -> Array:
    """round(x), with the gradient of x."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def _bytes(x: Array) -> Array:
    """Decoded samples, around 0, as the decoder stores them."""
    return rounded(jnp.clip(x, -128, 127))


def coded(x: Array, steps: np.ndarray) -> Array:
    """[B,H,W,C] around 0 through blocks of 8 by 8: cosine transform, rounded to `steps`, and back. The last row and
    column are repeated to full blocks.
    """
    b, height, width, c = x.shape
    rows, columns = -height % 8, -width % 8
    padded = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")
    blocks = padded.reshape(b, (height + rows) // 8, 8, (width + columns) // 8, 8, c)
    turn = jnp.asarray(DCT, x.dtype)
    size = jnp.asarray(steps, x.dtype).reshape(1, 1, 8, 1, 8, 1)
    kept = rounded(jnp.einsum("ui,vj,bhiwjc->bhuwvc", turn, turn, blocks) / size) * size
    back = jnp.einsum("ui,vj,bhuwvc->bhiwjc", turn, turn, kept)
    return back.reshape(padded.shape)[:, :height, :width]


def _halved(cc: Array, steps: np.ndarray) -> Array:
    """Chroma at half resolution: means of 2 by 2, coded, and interpolated as libjpeg does (3/4 and 1/4)."""
    b, height, width, c = cc.shape
    even = jnp.pad(cc, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    means = even.reshape(b, even.shape[1] // 2, 2, even.shape[2] // 2, 2, c).mean((2, 4))
    bias = jnp.where(jnp.arange(means.shape[2]) % 2 == 0, -0.24, 0.01).astype(cc.dtype)  # ties down, then up
    small = _bytes(coded(means + jax.lax.stop_gradient(jnp.round(means + bias[None, None, :, None]) - means), steps))
    for axis in (1, 2):
        before, after = _shifted(small, axis, -1), _shifted(small, axis, 1)
        near = jnp.stack([0.75 * small + 0.25 * before, 0.75 * small + 0.25 * after], axis + 1)
        small = near.reshape(*small.shape[:axis], 2 * small.shape[axis], *small.shape[axis + 1 :])
    return small[:, :height, :width]


def _shifted(x: Array, axis: int, by: int) -> Array:
    """Every value's neighbour along an axis; those at the edge are their own."""
    size = x.shape[axis]
    return jnp.take(x, jnp.clip(jnp.arange(size) + by, 0, size - 1), axis=axis)
