"""SparseViT: a Swin whose blocks run only on the windows with the largest activations; the others pass unchanged.

Two forms with the same parameters, values and gradients:

* gathered: with static `ratios`, the kept windows are gathered, run and scattered back. This is the one that is faster.
* masked: with traced numbers of kept windows (`keep=`), the dense block runs and a mask selects. Sparsity-aware
  adaptation draws other ratios at every step, and this compiles once: `adapt=True`.

Which windows are kept depends on the input and has no gradient: a robust accuracy under a gradient attack should be
held against attacks transferred from the dense model (`ratios=None`, same weights) and against Square.

Weights are those of `swin.Swin`. At 224 pixels Swin-T has 64, 16, 4 and 1 windows in its stages, so that only the first
two or three can gain; larger images are where pruning pays.

Reference: Chen et al., SparseViT: Revisiting Activation Sparsity for Efficient High-Resolution Vision Transformer,
CVPR 2023, and its released code.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robust_vit.errors import check
from robust_vit.models.families import swin
from robust_vit.models.parts import captures, layers, taps, windowing
from robust_vit.typing import Array

LEVELS = tuple(i / 10 for i in range(9))  # the pruning ratios that adaptation draws from


# Which windows --------------------------------------------------------------------------------------------------------


def kept(windows: int, ratio: float) -> int:
    """Number of windows that a block with this pruning ratio runs on, rounded as in the released code.

    Float arithmetic belongs to it: 64 windows at 0.6 leave 25, and one window at any ratio above 0 leaves none.
    """
    return int(windows * (1 - ratio))


def rank(x: Array, window: tuple[int, int], shift: tuple[int, int]) -> Array:
    """Orders the windows of each image by importance, without gradient.

    A token's score is the mean of |x| over channels, a window's the L2 norm over its tokens.

    Args:
      x: [B,h,w,C] the residual stream.
      window, shift: (h, w) of the partition.

    Returns:
      [B,W] int32, windows from the most to the least important.
    """
    x = lax.stop_gradient(x)
    tokens = jnp.abs(x.astype(layers.wide(x.dtype))).mean(-1, keepdims=True)
    scores = jnp.sqrt(jnp.square(windowing.partition(windowing.roll(tokens, shift), window)).sum((2, 3)))  # [B,W]
    return jnp.argsort(-scores, axis=-1, stable=True)


def keep_tokens(
    order: Array, count: Array | int, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Array:
    """[B,h,w] booleans: the tokens of each image's `count` (may be traced) most important windows, from `rank`."""
    selected = jnp.argsort(order, axis=-1) < count  # the inverse permutation is each window's rank
    b, w = selected.shape
    windows = jnp.broadcast_to(selected[:, :, None, None], (b, w, window[0] * window[1], 1))
    return windowing.roll(windowing.unpartition(windows, window, grid), tuple(-side for side in shift))[..., 0]


def sample_keep(key: Array, depths: Sequence[int], windows: Sequence[int]) -> tuple[Array, ...]:
    """Draws how many windows each block keeps in one step of sparsity-aware adaptation.

    Each stage draws one of `LEVELS` for every pair of blocks, and sorts them: deeper blocks prune more.

    Args:
      key: typed key.
      depths, windows: number of blocks and of windows of each stage.

    Returns:
      One int32 [depth] a stage, for `SparseSwin`'s `keep`.
    """
    keep = []
    for stage, (depth, count) in enumerate(zip(depths, windows, strict=True)):
        table = jnp.asarray([kept(count, ratio) for ratio in LEVELS], jnp.int32)
        levels = jax.random.randint(jax.random.fold_in(key, stage), (-(-depth // 2),), 0, len(LEVELS))
        keep.append(jnp.repeat(table[jnp.sort(levels)], 2)[:depth])
    return tuple(keep)


# Modules --------------------------------------------------------------------------------------------------------------


class GatheredBlock(nn.Module):
    """`swin.Block` on some windows of each image: same parameters; norms and MLP see the kept windows only.

    Records "attention" [B, kept*heads, N, N].
    """

    heads: int
    window_size: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None, train: bool, shifted: bool, order: Array) -> Array:
        """Args:
          x: [B,h,w,C]; the window must divide the grid.
          rate, train, shifted: as for `swin.Block`.
          order: [B,k] windows to run on.

        Returns:
          [B,h,w,C].
        """
        grid = x.shape[1:3]
        window, shift = windowing.window_and_shift(grid, self.window_size)
        shift = shift if shifted else (0, 0)
        mask = jnp.asarray(windowing.shift_mask(grid, window, shift))[order] if any(shift) else None  # [B,k,N,N]
        windows = windowing.partition(windowing.roll(x, shift), window)  # [B,W,N,C]
        changed = self._run(jnp.take_along_axis(windows, order[:, :, None, None], 1), mask, window, rate, train)
        rows = jnp.arange(x.shape[0])[:, None]
        back = tuple(-side for side in shift)
        if taps.tapped("groups"):
            skipped = jnp.full((*windows.shape[:3], 1), -1, jnp.int32)
            slots = jnp.arange(order.shape[1] * windows.shape[2], dtype=jnp.int32)  # of the kept windows, in this order
            slots = skipped.at[rows, order].set(slots.reshape(1, order.shape[1], -1, 1))
            taps.tap(self, "groups", windowing.roll(windowing.unpartition(slots, window, grid), back)[..., 0])
        windows = windows.at[rows, order].set(changed)
        x = windowing.roll(windowing.unpartition(windows, window, grid), back)
        x = taps.tap(self, "residual", x)
        captures.record(self, "tokens", x)
        return x

    def _run(self, x: Array, mask: Array | None, window: tuple[int, int], rate: Array | None, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        branch = layers.LayerNorm(swin.EPSILON, name="norm1", **policy)(x)
        attention = windowing.WindowAttention(self.heads, window, self.qkv_bias, self.attention, name="attn", **policy)
        branch = taps.tap(self, "attention_output", attention(branch, mask))
        x = x + layers.DropPath(name="drop_path1")(branch, rate, train)
        branch = layers.LayerNorm(swin.EPSILON, name="norm2", **policy)(x)
        branch = layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch)
        branch = taps.tap(self, "mlp_output", branch)
        return x + layers.DropPath(name="drop_path2")(branch, rate, train)


class SparseStage(nn.Module):
    """A Swin stage whose blocks skip windows. Scores are taken once, before the first block that prunes."""

    block: functools.partial  # of swin.Block
    depth: int
    features: int
    merge: bool
    ratios: tuple[float, ...] | None = None
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rates: tuple[float, ...] | None, train: bool, keep: Array | None = None) -> Array:
        """Args:
          x: [B,h,w,C].
          rates: of drop path, one a block, or None.
          train: whether to drop paths.
          keep: [depth] int, traced: windows that each block keeps; None for the static `ratios`.

        Returns:
          [B,h,w,C].
        """
        if self.merge:
            policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            x = swin.PatchMerging(self.features, name="downsample", **policy)(x)
        rates = rates or (None,) * self.depth
        if keep is None or self.is_initializing():
            return self._gathered(x, rates, train)
        return self._masked(x, rates, train, keep)

    def _step(self, kind: Any, i: int, x: Array, rate: float | None, train: bool, *extras: Array) -> Array:
        def step(block: nn.Module, x: Array, *extras: Array) -> Array:
            return block(x, rate or None, train, i % 2 == 1, *extras)

        return (nn.remat(step) if self.remat else step)(kind(name=f"blocks_{i}"), x, *extras)

    def _partition(self, x: Array, shifted: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        window, shift = windowing.window_and_shift(x.shape[1:3], self.block.keywords["window_size"])
        return window, shift if shifted else (0, 0)

    def _gathered(self, x: Array, rates: Sequence[float | None], train: bool) -> Array:
        gathered = functools.partial(GatheredBlock, **self.block.keywords)
        ratios = self.ratios or (0.0,) * self.depth
        window, _ = self._partition(x, False)
        windows = count_windows(x.shape[1:3], window)
        orders = None
        for i, (ratio, rate) in enumerate(zip(ratios, rates, strict=True)):
            count = kept(windows, ratio)
            if count == windows or self.is_initializing():  # every block has parameters, even one that keeps nothing
                x = self._step(self.block, i, x, rate, train)
                continue
            if orders is None:
                orders = [rank(x, *self._partition(x, shifted)) for shifted in (False, True)]
            if count:
                x = self._step(gathered, i, x, rate, train, orders[i % 2][:, :count])
        return x

    def _masked(self, x: Array, rates: Sequence[float | None], train: bool, keep: Array) -> Array:
        grid = x.shape[1:3]
        places = [self._partition(x, shifted) for shifted in (False, True)]
        windows = count_windows(grid, places[0][0])
        orders = [rank(x, *place) for place in places]
        scored = jnp.asarray(False)
        for i, rate in enumerate(rates):
            if i:  # until the first block that prunes, the newest scores replace the older ones
                orders = [jnp.where(scored, old, rank(x, *place)) for old, place in zip(orders, places, strict=True)]
            scored = scored | (keep[i] < windows)
            x = self._step(self.block, i, x, rate, train, keep_tokens(orders[i % 2], keep[i], grid, *places[i % 2]))
        return x


def count_windows(grid: tuple[int, int], window: tuple[int, int]) -> int:
    """Number of windows that cover the grid."""
    return (grid[0] // window[0]) * (grid[1] // window[1])


class SparseSwin(swin.Swin):
    """`swin.Swin` whose blocks run on the most important windows: [B,H,W,C] in [0,1] -> logits [B,K].

    Fields, beside those of `Swin`:
      ratios: share of windows that each block of each stage skips, in [0, 1), not falling inside a stage; None for the
        dense model.
      adapt: in training, draw the ratios anew at every call (rng "dropout") from `LEVELS`: sparsity-aware adaptation.
      scan: must be False, since blocks keep different numbers of windows.
    """

    ratios: tuple[tuple[float, ...], ...] | None = None
    adapt: bool = False

    @property
    def windows(self) -> list[int]:
        """Number of windows of each stage."""
        return [count_windows(grid, windowing.window_and_shift(grid, self.window_size)[0]) for grid in self.grids]

    @nn.nowrap
    def validate(self) -> None:
        """Raises ValueError, in one line, where the fields do not make a model."""
        super().validate()
        check("scan", self.scan, not self.scan, "False: the blocks of SparseViT keep different numbers of windows")
        for grid in self.grids:
            window, _ = windowing.window_and_shift(grid, self.window_size)
            divides = grid[0] % window[0] == 0 and grid[1] % window[1] == 0
            check("window_size", self.window_size, divides, f"a divisor of every stage's grid, here {grid}")
        if self.ratios is None:
            return
        fits = tuple(len(stage) for stage in self.ratios) == tuple(self.depths)
        check("ratios", self.ratios, fits, f"one for each block of each stage, depths = {self.depths}")
        for stage in self.ratios:
            check("ratios", stage, all(0 <= ratio < 1 for ratio in stage), "in [0, 1)")
            check("ratios", stage, list(stage) == sorted(stage), "not falling inside a stage")

    @nn.compact
    def __call__(self, images: Array, train: bool = False, keep: Sequence[Array] | None = None) -> Array:
        """Args:
          images: [B,H,W,C] in [0,1].
          train: drops paths, and draws ratios with `adapt`.
          keep: how many windows each block keeps, int [depth] for each stage, may be traced: the masked form. None for
            `ratios`.

        Returns:
          logits [B,K].
        """
        if keep is None and self.adapt and train and not self.is_initializing():
            keep = sample_keep(self.make_rng("dropout"), self.depths, self.windows)
        x = self._embed(images)
        for i, rates in enumerate(self._rates()):
            stage = self._stage(SparseStage, i, ratios=None if self.ratios is None else self.ratios[i])
            x = stage(x, rates, train, None if keep is None else keep[i])
        return self._classify(x)


# One of the published results of the search: Swin-T on nuScenes, 42 ms.
TINY_RATIOS = ((0.3, 0.3), (0.0, 0.0), (0.1, 0.1, 0.2, 0.2, 0.2, 0.2), (0.0, 0.0))

MODELS = {
    "sparse_swin": functools.partial(SparseSwin),
    "sparse_swin_tiny_patch4_window7_224": functools.partial(
        SparseSwin, ratios=TINY_RATIOS, **swin.IMAGENET, **swin.TINY
    ),
    "sparse_swin_small_patch4_window7_224": functools.partial(SparseSwin, **swin.IMAGENET, **swin.SMALL),
    "sparse_swin_base_patch4_window7_224": functools.partial(SparseSwin, **swin.IMAGENET, **swin.BASE),
}
