"""Swin: attention inside windows, shifted by half a window in every second block, on a pyramid of token grids.

Names and weights are timm's, and so is its window rule: where a grid is no larger than the window, the window is the
grid and nothing is shifted. For 32x32 images: `models.build("swin_tiny_patch4_window7_224", image_size=32,
patch_size=2, window_size=4, num_classes=10)` has grids of 16, 8, 4 and 2 tokens.

Reference: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021; timm 1.0.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check, lookup
from robust_vit.models.parts import attention, layers, positions
from robust_vit.typing import Array

EPSILON = 1e-5  # of every layer norm


# Windows --------------------------------------------------------------------------------------------------------------


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


# Modules --------------------------------------------------------------------------------------------------------------


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
            "relative_position_bias_table", layers.trunc_normal(0.02), (rows, self.heads), self.param_dtype
        )
        bias = table[positions.relative_index(self.window)].transpose(2, 0, 1)  # [A,N,N]
        if mask is not None:
            mask = mask.astype(bias.dtype)[..., None, :, :]  # [(B,)W,1,N,N]
            bias = bias.reshape((1,) * (mask.ndim - 3) + bias.shape) + mask
        batch = b if bias.ndim == 5 else 1
        bias = jnp.broadcast_to(bias, (batch, w, self.heads, n, n)).reshape(batch, w * self.heads, n, n)

        qkv = layers.Dense(3 * c, use_bias=self.qkv_bias, name="qkv", **policy)(windows)
        q, k, v = (
            part.reshape(b, w * self.heads, n, -1)
            for part in attention.split_heads(qkv.reshape(b * w, n, 3 * c), 3, self.heads)
        )
        out = attention.attend(self, q, k, v, bias, self.implementation)
        out = attention.merge_heads(out.reshape(b * w, self.heads, n, -1)).reshape(b, w, n, c)
        return layers.Dense(c, name="proj", **policy)(out)


class Block(nn.Module):
    """x += WindowAttention(LN(x)), shifted or not; x += MLP(LN(x)).

    A grid that the window does not divide is padded with zeros at its end, after the norm and the shift; padded tokens
    are attended to (they are not masked), as in timm.
    """

    heads: int
    window_size: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, rate: Array | None, train: bool, shifted: bool | Array, keep: Array | None = None
    ) -> Array:
        """Args:
          x: [B,h,w,C].
          rate: of drop path, or None.
          train: whether to drop paths.
          shifted: whether the windows are shifted; traced under `scan`.
          keep: [B,h,w] booleans, the tokens that the block may change (SparseViT's masked form); None for all.

        Returns:
          [B,h,w,C].
        """
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        before = x
        branch = layers.LayerNorm(EPSILON, name="norm1", **policy)(x)
        branch = self._attend(branch, shifted, policy)
        x = x + layers.DropPath(name="drop_path1")(branch, rate, train)
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(x)
        branch = layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch)
        x = x + layers.DropPath(name="drop_path2")(branch, rate, train)
        if keep is not None:
            x = jnp.where(keep[..., None], x, before)
        layers.record(self, "tokens", x)
        return x

    def _attend(self, x: Array, shifted: bool | Array, policy: dict[str, Any]) -> Array:
        grid = x.shape[1:3]
        window, shift = window_and_shift(grid, self.window_size)
        mask = None
        if any(shift) and shifted is not False:
            padded = tuple(side + -side % w for side, w in zip(grid, window, strict=True))
            mask = jnp.asarray(shift_mask(padded, window, shift)) * shifted
            shift = tuple(side * shifted for side in shift)
        else:
            shift = (0, 0)
        x = roll(x, shift)
        x = jnp.pad(x, ((0, 0), (0, -grid[0] % window[0]), (0, -grid[1] % window[1]), (0, 0)))
        padded = x.shape[1:3]
        module = WindowAttention(self.heads, window, self.qkv_bias, self.attention, name="attn", **policy)
        x = unpartition(module(partition(x, window), mask), window, padded)
        return roll(x[:, : grid[0], : grid[1]], tuple(-side for side in shift))


class PatchMerging(nn.Module):
    """Halves the grid: [B,h,w,C] -> [B,h/2,w/2,features]; an odd side is padded with a zero."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x = x.reshape(b, h, 2, w, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h, w, 4 * c)  # column, row, channel
        x = layers.LayerNorm(EPSILON, name="norm", **policy)(x)
        return layers.Dense(self.features, use_bias=False, name="reduction", **policy)(x)


class Stage(nn.Module):
    """Patch merging (but for the first stage), then `depth` blocks, every second one shifted.

    Scanned, the shift is a traced flag, so that even and odd blocks are one program, and `scanning.stack` converts
    their weights as those of any other family.
    """

    block: functools.partial  # of Block
    depth: int
    features: int
    merge: bool
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rates: tuple[float, ...] | None, train: bool) -> Array:
        if self.merge:
            policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            x = PatchMerging(self.features, name="downsample", **policy)(x)
        if not self.scan:
            return self._unrolled(x, rates, train)

        def step(block: nn.Module, x: Array, each: tuple[Array, Array | None]) -> tuple[Array, None]:
            shifted, rate = each
            return block(x, rate, train, shifted), None

        if self.remat:
            step = nn.remat(step, prevent_cse=False)  # the loop keeps XLA from undoing the recomputation
        scanned = nn.scan(
            step,
            variable_axes={"params": 0, layers.CAPTURES: 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        shifted = jnp.arange(self.depth) % 2
        x, _ = scanned(self.block(name="blocks"), x, (shifted, None if rates is None else jnp.asarray(rates)))
        return x

    def _unrolled(self, x: Array, rates: tuple[float, ...] | None, train: bool) -> Array:
        for i in range(self.depth):

            def step(block: nn.Module, x: Array, rate: Array | None, shifted: bool = i % 2 == 1) -> Array:
                return block(x, rate, train, shifted)

            if self.remat:
                step = nn.remat(step)
            x = step(self.block(name=f"blocks_{i}"), x, None if rates is None or not rates[i] else rates[i])
        return x


class PatchEmbed(nn.Module):
    """Images [B,H,W,C] -> tokens [B,h,w,D], normalised."""

    width: int
    patch_size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.Patchify(self.width, self.patch_size, name="proj", **policy)(images)
        return layers.LayerNorm(EPSILON, name="norm", **policy)(x)


class PooledHead(nn.Module):
    """Mean over the grid, then the classifier: [B,h,w,C] -> features [B,C] and logits [B,K]."""

    num_classes: int
    kernel_init: Any = layers.trunc_normal(0.02)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        features = x.astype(layers.wide(self.dtype)).mean((1, 2))
        head = layers.Head(
            self.num_classes, self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype, name="fc"
        )
        return features, head(features)


class Swin(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "attention" [B, W*heads, N, N] (inside W windows of N tokens), "tokens" [B,h,w,D], "features" [B,D].

    Fields:
      num_classes, image_size (int or (H, W)), channels, patch_size: pixels.
      width: of the first stage; each further stage has twice as many channels on half the grid.
      depths, heads: blocks and heads of each stage.
      window_size: tokens along a side of a window.
      mlp_ratio, qkv_bias: the blocks.
      attention: formulation, see `attention.IMPLEMENTATIONS`.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of the last block, linear over all blocks (timm's constructor has 0.1 where this has 0).
      remat, scan: recompute blocks in the backward pass; compile one block a stage.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention: str = "einsum"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) tokens of each stage."""
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        sides = tuple(side // self.patch_size for side in size)
        return [tuple(-(-side // 2**i) for side in sides) for i in range(len(self.depths))]

    @nn.nowrap
    def validate(self) -> None:
        """Raises ValueError, in one line, where the fields do not make a model."""
        lookup("attention", self.attention, attention.IMPLEMENTATIONS)
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        divides = self.patch_size > 0 and not any(side % self.patch_size for side in size)
        check("patch_size", self.patch_size, divides, f"a divisor of image_size = {self.image_size}")
        check("window_size", self.window_size, self.window_size > 0, "at least 1 token")
        check("depths", self.depths, all(depth > 0 for depth in self.depths), "at least 1 block in every stage")
        check("heads", self.heads, len(self.heads) == len(self.depths), f"as long as depths = {self.depths}")
        for i, heads in enumerate(self.heads):
            width = self.width * 2**i
            check("heads", self.heads, heads > 0 and width % heads == 0, f"divisors of each stage's width ({width})")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x = self._embed(images)
        for i, rates in enumerate(self._rates()):
            x = self._stage(Stage, i, scan=self.scan)(x, rates, train)
        return self._classify(x)

    @property
    def _policy(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def _embed(self, images: Array) -> Array:
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        return PatchEmbed(self.width, self.patch_size, name="patch_embed", **self._policy)(x)

    def _stage(self, kind: type[nn.Module], i: int, **fields: Any) -> nn.Module:
        block = functools.partial(
            Block,
            heads=self.heads[i],
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            attention=self.attention,
            **self._policy,
        )
        width = self.width * 2**i
        return kind(block, self.depths[i], width, i > 0, remat=self.remat, name=f"layers_{i}", **fields, **self._policy)

    def _rates(self) -> list[tuple[float, ...] | None]:
        """Drop-path rates of each stage's blocks."""
        rates = layers.drop_path_rates(self.drop_path, sum(self.depths))
        if rates is None:
            return [None] * len(self.depths)
        starts = np.cumsum((0, *self.depths))
        return [tuple(rates[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]

    def _classify(self, x: Array) -> Array:
        x = layers.LayerNorm(EPSILON, name="norm", **self._policy)(x)
        features, logits = PooledHead(self.num_classes, name="head", **self._policy)(x)
        layers.record(self, "features", features)
        return logits


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TINY = dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
SMALL = dict(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24))
BASE = dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))

MODELS = {
    "swin": functools.partial(Swin),
    **{
        f"swin_{size}_patch4_window7_224": functools.partial(Swin, **IMAGENET, **dimensions)
        for size, dimensions in dict(tiny=TINY, small=SMALL, base=BASE).items()
    },
}
