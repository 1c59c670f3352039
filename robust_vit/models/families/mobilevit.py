"""MobileViT: inverted residual convolutions, with a small transformer in each of the last three stages.

Names and weights are timm's. The transformer sees a feature map as P = 4 interleaved sequences: the pixels at one place
of every 2x2 patch. An odd map is stretched to an even one and back. SiLU is the activation everywhere.

For 32x32 images it runs as it is (the last map is 1x1, stretched to 2x2); `strides=(1, 1, 2, 2, 2, 2)` keeps 2x2.

Reference: Mehta and Rastegari, MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer, 2022;
timm 1.0.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.errors import check, lookup
from robust_vit.models.families.swin import PooledHead
from robust_vit.models.parts import attention, captures, layers, scanning, taps
from robust_vit.typing import Array

EPSILON = 1e-5  # of layer norms
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
DENSE_INIT = nn.initializers.normal(0.01)


def divisible(value: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, but not down by more than a tenth (timm's `make_divisible`)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def unfold(x: Array, patch: int) -> Array:
    """[B,h,w,C] -> [B,P,N,C]: P = patch^2 sequences, one for each place inside a patch; patches row-major."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b, patch * patch, -1, c)


def fold(x: Array, patch: int, grid: tuple[int, int]) -> Array:
    """[B,P,N,C] -> [B,h,w,C]: the inverse of `unfold`."""
    b, *_, c = x.shape
    x = x.reshape(b, patch, patch, grid[0] // patch, grid[1] // patch, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(b, *grid, c)


def resize(x: Array, grid: tuple[int, int]) -> Array:
    """Bilinear, corners not aligned, no antialiasing (torch's `interpolate`): [B,h,w,C] -> [B,*grid,C]."""
    if x.shape[1:3] == tuple(grid):
        return x
    return jax.image.resize(x, (x.shape[0], *grid, x.shape[-1]), "bilinear", antialias=False)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, and SiLU unless `linear`."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False
    zero: bool = False  # the branch starts at nothing
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        groups = x.shape[-1] if self.depthwise else 1
        # fan-out of a depthwise kernel is k*k, which variance_scaling cannot know
        init = nn.initializers.normal(2**0.5 / self.kernel_size) if self.depthwise else CONV_INIT
        x = layers.Conv(
            self.features,
            self.kernel_size,
            self.stride,
            groups,
            use_bias=False,
            kernel_init=init,
            name="conv",
            **policy,
        )(x)
        scale = nn.initializers.zeros if self.zero else nn.initializers.ones
        x = layers.BatchNorm(scale_init=scale, name="bn", **policy)(x, train)
        return x if self.linear else jax.nn.silu(x)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; a shortcut where the shape does not change."""

    features: int
    stride: int = 1
    expansion: float = 4.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: float | None, train: bool) -> Array:
        conv = functools.partial(ConvNormAct, dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = divisible(x.shape[-1] * self.expansion)  # counted from the input, not from the output
        shortcut = self.stride == 1 and x.shape[-1] == self.features
        branch = conv(hidden, name="conv1_1x1")(x, train)
        branch = conv(hidden, 3, self.stride, depthwise=True, name="conv2_kxk")(branch, train)
        branch = conv(self.features, linear=True, zero=shortcut, name="conv3_1x1")(branch, train)
        branch = layers.DropPath(name="drop_path")(branch, rate, train)
        return x + branch if shortcut else branch


class Attention(nn.Module):
    """Self-attention inside each of P sequences, [B,P,N,D] -> [B,P,N,D]; records "attention" [B, P*heads, N, N]."""

    heads: int
    implementation: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(kernel_init=DENSE_INIT, dtype=self.dtype, param_dtype=self.param_dtype)
        b, p, n, d = x.shape
        qkv = layers.Dense(3 * d, name="qkv", **policy)(x).reshape(b * p, n, 3 * d)
        q, k, v = (part.reshape(b, p * self.heads, n, -1) for part in attention.split_heads(qkv, 3, self.heads))
        out = attention.attend(self, q, k, v, None, self.implementation)
        out = attention.merge_heads(out.reshape(b * p, self.heads, n, -1)).reshape(b, p, n, d)
        return layers.Dense(d, name="proj", **policy)(out)


class TransformerBlock(nn.Module):
    """x += Attention(LN(x)); x += MLP(LN(x)) with SiLU."""

    heads: int
    mlp_ratio: float = 2.0
    attention: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        branch = layers.LayerNorm(EPSILON, name="norm1", **policy)(x)
        branch = Attention(self.heads, self.attention, name="attn", **policy)(branch)
        x = x + layers.DropPath(name="drop_path1")(branch, rate, train)
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(x)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        branch = layers.Mlp(hidden, jax.nn.silu, DENSE_INIT, name="mlp", **policy)(branch)
        x = x + layers.DropPath(name="drop_path2")(branch, rate, train)
        captures.record(self, "tokens", x)
        return x


class MobileViTBlock(nn.Module):
    """Local 3x3, global transformer on interleaved sequences, and a 3x3 that fuses the result with the input."""

    width: int
    depth: int
    heads: int
    patch_size: int = 2
    attention: str = "einsum"
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: float | None, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(ConvNormAct, **policy)
        shortcut, c, grid = x, x.shape[-1], x.shape[1:3]
        x = conv(c, 3, name="conv_kxk")(x, train)
        x = layers.Conv(self.width, 1, use_bias=False, kernel_init=CONV_INIT, name="conv_1x1", **policy)(x)

        even = tuple(side + -side % self.patch_size for side in grid)
        x = unfold(resize(x, even), self.patch_size)  # [B,P,N,D]
        if taps.tapped("groups"):
            slots = jnp.arange(x.shape[1] * x.shape[2], dtype=jnp.int32).reshape(1, *x.shape[1:3], 1)
            taps.tap(self, "groups", fold(slots, self.patch_size, even)[..., 0])
        block = functools.partial(TransformerBlock, self.heads, attention=self.attention, **policy)
        rates = None if not rate else [rate] * self.depth
        x = scanning.apply_blocks(block, "transformer", self.depth, x, rates=rates, train=train, scan=self.scan)
        x = layers.LayerNorm(EPSILON, name="norm", **policy)(x)
        x = resize(fold(x, self.patch_size, even), grid)

        x = conv(c, name="conv_proj")(x, train)
        return conv(c, 3, name="conv_fusion")(jnp.concatenate([shortcut, x], -1), train)


class MobileViT(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "attention" [B, P*heads, N, N] (inside P = patch_size^2 sequences of N tokens) and "tokens" [B,P,N,D] of
    the transformer blocks, "features" [B,D].

    Fields:
      num_classes, image_size (int or (H, W)), channels, patch_size: pixels of the maps that the transformers see.
      stem_width, widths: channels of the stem and of each stage.
      blocks: inverted residuals of each stage.
      strides: of the stem and of each stage.
      expansion: of the inverted residuals.
      transformer_widths, transformer_depths: of the last stages, one transformer each.
      heads: of every transformer.
      head_width: channels before the mean.
      attention: formulation, see `attention.IMPLEMENTATIONS`.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of the last block, linear over the blocks; all blocks of one transformer share theirs.
      remat: recompute inverted residuals and MobileViT blocks in the backward pass.
      scan: compile one block a transformer.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 256
    channels: int = 3
    patch_size: int = 2
    stem_width: int = 16
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    blocks: tuple[int, ...] = (1, 3, 1, 1, 1)
    strides: tuple[int, ...] = (2, 1, 2, 2, 2, 2)
    expansion: float = 4.0
    transformer_widths: tuple[int, ...] = (144, 192, 240)
    transformer_depths: tuple[int, ...] = (2, 4, 3)
    heads: int = 4
    head_width: int = 640
    attention: str = "einsum"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.nowrap
    def validate(self) -> None:
        """Raises ValueError, in one line, where the fields do not make a model."""
        lookup("attention", self.attention, attention.IMPLEMENTATIONS)
        stages = len(self.widths)
        check("blocks", self.blocks, len(self.blocks) == stages, f"as long as widths = {self.widths}")
        check("strides", self.strides, len(self.strides) == stages + 1, f"one for the stem and {stages} for the stages")
        check("patch_size", self.patch_size, self.patch_size > 0, "at least 1 pixel")
        transformers = len(self.transformer_widths)
        check("transformer_widths", self.transformer_widths, transformers <= stages, f"at most {stages} widths")
        depths = self.transformer_depths
        check("transformer_depths", depths, len(depths) == transformers, f"{transformers} depths, one a width")
        divides = all(width % self.heads == 0 for width in self.transformer_widths)
        check("heads", self.heads, divides, f"a divisor of transformer_widths = {self.transformer_widths}")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = ConvNormAct(self.stem_width, 3, self.strides[0], name="stem", **policy)(x, train)
        blocks = self._blocks(policy)
        rates = layers.drop_path_rates(self.drop_path, len(blocks)) or [None] * len(blocks)
        for (name, block), rate in zip(blocks, rates, strict=True):

            def step(module: nn.Module, x: Array, rate: float | None = rate) -> Array:
                return module(x, rate, train)

            x = (nn.remat(step) if self.remat else step)(block(name=name), x)
        x = ConvNormAct(self.head_width, name="final_conv", **policy)(x, train)
        features, logits = PooledHead(self.num_classes, DENSE_INIT, name="head", **policy)(x)
        captures.record(self, "features", features)
        return logits

    def _blocks(self, policy: dict[str, Any]) -> Sequence[tuple[str, functools.partial]]:
        """(name, block) in the order in which they run."""
        blocks = []
        plain = len(self.widths) - len(self.transformer_widths)  # stages without a transformer
        for i, (width, count, stride) in enumerate(zip(self.widths, self.blocks, self.strides[1:], strict=True)):
            for j in range(count):
                block = functools.partial(InvertedResidual, width, stride if j == 0 else 1, self.expansion, **policy)
                blocks.append((f"stages_{i}_{j}", block))
            if i >= plain:
                block = functools.partial(
                    MobileViTBlock,
                    self.transformer_widths[i - plain],
                    self.transformer_depths[i - plain],
                    self.heads,
                    self.patch_size,
                    self.attention,
                    self.scan,
                    **policy,
                )
                blocks.append((f"stages_{i}_{count}", block))
        return blocks


MODELS = {
    "mobilevit_xxs": functools.partial(
        MobileViT,
        widths=(16, 24, 48, 64, 80),
        expansion=2.0,
        transformer_widths=(64, 80, 96),
        head_width=320,
    ),
    "mobilevit_xs": functools.partial(
        MobileViT, widths=(32, 48, 64, 80, 96), transformer_widths=(96, 120, 144), head_width=384
    ),
    "mobilevit_s": functools.partial(MobileViT),
}
