"""Grids of tokens cut into windows, shifted or not, and attention inside them."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_vit.models.parts import attention, initializers, layers, positions, taps
from robust_vit.typing import Array


def window_and_shift(grid: tuple[int, int], window_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """timm's rule: per direction, a grid no larger than the window is one window, and is not shifted.

    Args:
      grid: (h, w) tokens.
      window_size: tokens along a side of the wanted window.

    Returns:
      The window (h, w), and the shift (h, w) of odd blocks.
    """
    window = tuple(min(side, window_size) for side in grid)
    shift = tuple(0 if side <= window_size else window_size // 2 for side in grid)
    return window, shift


def partition(x: Array, window: tuple[int, int]) -> Array:
    """[B,h,w,C] -> [B,W,N,C]: W windows of N tokens, both row-major; the window must divide the grid."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window[0], window[0], w // window[1], window[1], c).swapaxes(2, 3)
    return x.reshape(b, -1, window[0] * window[1], c)


def unpartition(windows: Array, window: tuple[int, int], grid: tuple[int, int]) -> Array:
    """[B,W,N,C] -> [B,h,w,C]: the inverse of `partition`."""
    b, *_, c = windows.shape
    x = windows.reshape(b, grid[0] // window[0], grid[1] // window[1], *window, c).swapaxes(2, 3)
    return x.reshape(b, *grid, c)


def slots(grid: tuple[int, int], window: tuple[int, int]) -> Array:
    """[1,W,N,1] int32, counted through: what `unpartition` puts back says in which window and place a token was."""
    size = window[0] * window[1]
    return jnp.arange(grid[0] * grid[1], dtype=jnp.int32).reshape(1, -1, size, 1)


@functools.lru_cache(maxsize=64)
def shift_mask(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """What keeps apart the tokens that only the cyclic shift brought into one window.

    Args:
      grid: (h, w) tokens, divisible by the window.
      window, shift: (h, w).

    Returns:
      [W,N,N] float32, to be added to the scores: 0 for tokens of one region, else -100 (as in the released code, and
      not minus infinity).
    """
    region = np.zeros(grid, np.int32)
    for axis, (w, s) in enumerate(zip(window, shift, strict=True)):
        place = np.zeros(grid[axis], np.int32)
        place[-w:] = 1
        place[grid[axis] - s :] = 2
        region = 3 * region + (place[:, None] if axis == 0 else place[None, :])
    h, w = grid
    windows = region.reshape(h // window[0], window[0], w // window[1], window[1]).swapaxes(1, 2)
    windows = windows.reshape(-1, window[0] * window[1])
    return np.where(windows[:, :, None] == windows[:, None, :], 0.0, -100.0).astype(np.float32)


def roll(x: Array, shift: tuple[Any, Any]) -> Array:
    """Rolls the grid of [B,h,w,C] towards the origin; `shift` may be traced."""
    if all(isinstance(side, int) and side == 0 for side in shift):
        return x
    return jnp.roll(x, (-shift[0], -shift[1]), (1, 2))


class WindowAttention(nn.Module):
    """Multi-head attention inside every window, with a learned bias for the relative place of two tokens.

    Records "attention" as [B, W*heads, N, N], the heads of the first window first.
    """

    heads: int
    window: tuple[int, int]
    qkv_bias: bool = True
    implementation: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, windows: Array, mask: Array | None = None) -> Array:
        """Args:
          windows: [B,W,N,C].
          mask: [W,N,N] or [B,W,N,N], added to the scores; or None.

        Returns:
          [B,W,N,C].
        """
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        b, w, n, c = windows.shape
        rows = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        table = self.param(
            "relative_position_bias_table", initializers.trunc_normal(0.02), (rows, self.heads), self.param_dtype
        )
        bias = table[positions.relative_index(self.window)].transpose(2, 0, 1)  # [A,N,N]
        if mask is not None:
            mask = mask.astype(bias.dtype)[..., None, :, :]  # [(B,)W,1,N,N]
            bias = bias.reshape((1,) * (mask.ndim - 3) + bias.shape) + mask
        batch = b if bias.ndim == 5 else 1
        bias = jnp.broadcast_to(bias, (batch, w, self.heads, n, n)).reshape(batch, w * self.heads, n, n)

        qkv = layers.Dense(3 * c, use_bias=self.qkv_bias, name="qkv", **policy)(windows)
        qkv = taps.tap(self, "qkv", qkv)
        q, k, v = (
            part.reshape(b, w * self.heads, n, -1)
            for part in attention.split_heads(qkv.reshape(b * w, n, 3 * c), 3, self.heads)
        )
        out = attention.attend(self, q, k, v, bias, self.implementation)
        out = attention.merge_heads(out.reshape(b * w, self.heads, n, -1)).reshape(b, w, n, c)
        return layers.Dense(c, name="proj", **policy)(out)
