"""Where a token is: learned, sinusoidal, Fourier and relative positions, and their resampling to another grid."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_vit.models.parts import initializers, layers
from robust_vit.typing import Array


def sinusoidal(length: int, width: int) -> np.ndarray:
    """The fixed positions of the Transformer: PE[pos, 2i] = sin(pos / 10000^(2i/D)), PE[pos, 2i+1] = cos(the same).

    Args:
      length: tokens N (prefix tokens count, and come first).
      width: D.

    Returns:
      [N,D] float64.

    Reference: Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    position = np.arange(length)[:, None]
    channel = np.arange(width)[None, :]
    angle = position / 10000 ** (2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))


def fourier(height: int, width: int, hidden: int = 32, temperature: float = 10000.0) -> np.ndarray:
    """XCiT's two-dimensional positions: y in the first `hidden` channels, x in the rest; even sin, odd cos.

    Computed in float32 like the original, so float64 parity ends at about 1e-6.

    Returns:
      [height, width, 2*hidden] float32.

    Reference: El-Nouby et al., XCiT, 2021; PositionalEncodingFourier in the released code.
    """
    f32 = np.float32

    def axis(size: int) -> np.ndarray:
        place = np.arange(1, size + 1, dtype=f32) / (f32(size) + f32(1e-6)) * f32(2 * np.pi)
        pair = np.arange(hidden) // 2
        angle = place[:, None] / (f32(temperature) ** (2 * pair / f32(hidden)).astype(f32))
        return np.where(np.arange(hidden) % 2 == 0, np.sin(angle), np.cos(angle)).astype(f32)  # [size, hidden]

    y = np.broadcast_to(axis(height)[:, None], (height, width, hidden))
    x = np.broadcast_to(axis(width)[None, :], (height, width, hidden))
    return np.concatenate([y, x], -1)


class FourierPositions(nn.Module):
    """`fourier` positions mixed by a learned 1x1 convolution: (h, w) -> [1,h,w,D]. They fit any grid as they are."""

    features: int
    hidden: int = 32
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, height: int, width: int) -> Array:
        waves = jnp.asarray(fourier(height, width, self.hidden))[None]
        conv = layers.Conv(self.features, 1, dtype=self.dtype, param_dtype=self.param_dtype, name="token_projection")
        return conv(waves)


@functools.lru_cache(maxsize=64)
def relative_index(grid: tuple[int, int], prefix: int = 0) -> np.ndarray:
    """Which row of the relative-bias table belongs to a pair of tokens.

    Row (dh + h - 1) (2w - 1) + (dw + w - 1) for d = query - key, row-major tokens. Prefix tokens (class, distillation)
    have no place, so three more rows follow: prefix to patch, patch to prefix, prefix to prefix (as in BEiT).

    Args:
      grid: (h, w) tokens.
      prefix: number of prefix tokens, which come first.

    Returns:
      [prefix + h*w, prefix + h*w] int32 (query, key).
    """
    h, w = grid
    place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    difference = place[:, None] - place[None, :]  # [N,N,2], query - key
    index = (difference[..., 0] + h - 1) * (2 * w - 1) + difference[..., 1] + w - 1
    if not prefix:
        return index.astype(np.int32)
    rows = (2 * h - 1) * (2 * w - 1)
    full = np.full((prefix + h * w,) * 2, rows + 2, np.int32)
    full[:prefix, prefix:] = rows
    full[prefix:, :prefix] = rows + 1
    full[prefix:, prefix:] = index
    return full


class RelativeBias(nn.Module):
    """A learned bias per head and relative place, to be added to the attention scores: () -> [A,N,N]."""

    grid: tuple[int, int]
    heads: int
    prefix: int = 0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Array:
        rows = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + (3 if self.prefix else 0)
        table = self.param(
            "relative_position_bias_table", initializers.trunc_normal(0.02), (rows, self.heads), self.param_dtype
        )
        return table[relative_index(tuple(self.grid), self.prefix)].transpose(2, 0, 1)


# Resampling (NumPy: used when weights are adapted, not inside a program) ----------------------------------------------


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def bicubic_matrix(old: int, new: int, antialias: bool) -> np.ndarray:
    """One-dimensional bicubic interpolation as a matrix [new, old], equal to torch's `interpolate(mode="bicubic")`.

    torch uses a = -0.75 without antialiasing, and a = -0.5 with a kernel stretched by the shrinking factor with it
    (`jax.image.resize` has a = -0.5 only). Corners are not aligned; the border is repeated without antialiasing, and
    the kernel renormalised with it.
    """
    scale = old / new
    matrix = np.zeros((new, old))
    for i in range(new):
        if antialias:
            stretch, centre = max(scale, 1.0), scale * (i + 0.5)
            first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), old)
            taps = np.arange(first, last)
            weights = _cubic((taps - centre + 0.5) / stretch, -0.5)
            weights = weights / weights.sum()
        else:
            source = scale * (i + 0.5) - 0.5
            taps = np.floor(source).astype(int) + np.arange(-1, 3)
            weights = _cubic(source - taps, -0.75)
        np.add.at(matrix[i], np.clip(taps, 0, old - 1), weights)
    return matrix


def resize_grid(grid: np.ndarray, new: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """Resamples [h,w,D] to [new_h,new_w,D], bicubic, in float64; the dtype is kept."""
    rows = bicubic_matrix(grid.shape[0], new[0], antialias)
    columns = bicubic_matrix(grid.shape[1], new[1], antialias)
    return np.einsum("ih,jw,hwd->ijd", rows, columns, np.asarray(grid, np.float64)).astype(grid.dtype)


def resize_learned(
    embedding: np.ndarray, old: tuple[int, int], new: tuple[int, int], prefix: int, antialias: bool = True
) -> np.ndarray:
    """Resamples learned position embeddings to another token grid; those of prefix tokens are kept.

    Args:
      embedding: [1, prefix + h*w, D].
      old, new: (h, w) token grids.
      prefix: how many leading positions have no place (class token, distillation token).
      antialias: True as timm does, False as the Light Recipe's code does.

    Returns:
      [1, prefix + new_h*new_w, D].

    Raises:
      ValueError: the embedding does not have prefix + h*w positions.
    """
    embedding = np.asarray(embedding)
    if embedding.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(f"embedding has {embedding.shape[1]} positions, expected {prefix} + {old[0]}*{old[1]}")
    width = embedding.shape[-1]
    patches = resize_grid(embedding[0, prefix:].reshape(*old, width), new, antialias)
    return np.concatenate([embedding[:, :prefix], patches.reshape(1, -1, width)], 1)


def resize_relative(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int], prefix: bool = False, antialias: bool = False
) -> np.ndarray:
    """Resamples a relative-bias table [(2h-1)(2w-1) (+3), A] to another window; the prefix rows are kept.

    Raises:
      ValueError: the table does not belong to the window `old`.
    """
    table = np.asarray(table)
    before, after = tuple(2 * n - 1 for n in old), tuple(2 * n - 1 for n in new)
    rows = before[0] * before[1]
    if table.shape[0] != rows + (3 if prefix else 0):
        raise ValueError(f"table has {table.shape[0]} rows, expected {rows + (3 if prefix else 0)} for window {old}")
    places = resize_grid(table[:rows].reshape(*before, -1), after, antialias).reshape(after[0] * after[1], -1)
    return np.concatenate([places, table[rows:]], 0)
