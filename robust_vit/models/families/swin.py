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
from robust_vit.models.parts import attention, captures, initializers, layers, taps, windowing
from robust_vit.typing import Array

EPSILON = 1e-5  # of every layer norm


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
        branch = taps.tap(self, "attention_output", self._attend(branch, shifted, policy, keep))
        x = x + layers.DropPath(name="drop_path1")(branch, rate, train)
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(x)
        branch = layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch)
        branch = taps.tap(self, "mlp_output", branch)
        x = x + layers.DropPath(name="drop_path2")(branch, rate, train)
        if keep is not None:
            x = jnp.where(keep[..., None], x, before)
        x = taps.tap(self, "residual", x)
        captures.record(self, "tokens", x)
        return x

    def _attend(self, x: Array, shifted: bool | Array, policy: dict[str, Any], keep: Array | None) -> Array:
        grid = x.shape[1:3]
        window, shift = windowing.window_and_shift(grid, self.window_size)
        mask = None
        if any(shift) and shifted is not False:
            padded = tuple(side + -side % w for side, w in zip(grid, window, strict=True))
            mask = jnp.asarray(windowing.shift_mask(padded, window, shift)) * shifted
            shift = tuple(side * shifted for side in shift)
        else:
            shift = (0, 0)
        x = windowing.roll(x, shift)
        x = jnp.pad(x, ((0, 0), (0, -grid[0] % window[0]), (0, -grid[1] % window[1]), (0, 0)))
        padded = x.shape[1:3]
        module = windowing.WindowAttention(self.heads, window, self.qkv_bias, self.attention, name="attn", **policy)

        def put_back(windows: Array) -> Array:  # [B,W,N,C] -> [B,h,w,C]
            x = windowing.unpartition(windows, window, padded)
            return windowing.roll(x[:, : grid[0], : grid[1]], tuple(-side for side in shift))

        if taps.tapped("groups"):
            groups = put_back(windowing.slots(padded, window))[..., 0]
            taps.tap(self, "groups", groups if keep is None else jnp.where(keep, groups, -1))
        return put_back(module(windowing.partition(x, window), mask))


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
            variable_axes={"params": 0, captures.COLLECTION: 0, taps.COLLECTION: 0},
            split_rngs={"params": True, "dropout": True, taps.RNG: True},
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
    kernel_init: Any = initializers.trunc_normal(0.02)
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
        captures.record(self, "features", features)
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
