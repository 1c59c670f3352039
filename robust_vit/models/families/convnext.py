"""ConvNeXt: 7x7 depthwise convolutions in a transformer's block, on a pyramid of grids; optionally with ConvStem.

Names and weights are timm's; the ConvStem forms (`*_cvst`) are those of the strongest robust ImageNet models, named as
in RobustBench. For 32x32 images the models run as they are (the last grid is 1x1); `patch_size=1` or 2 keeps more.

References: Liu et al., A ConvNet for the 2020s, 2022; Singh et al., Revisiting Adversarial Training for ImageNet, 2023.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check, lookup
from robust_vit.models.parts import activations, captures, initializers, layers, scanning
from robust_vit.typing import Array

EPSILON = 1e-6  # of every layer norm
STEMS = ("patch", "conv")
INIT = dict(kernel_init=initializers.trunc_normal(0.02), bias_init=nn.initializers.zeros)


class Block(nn.Module):
    """x += gamma MLP(LN(depthwise 7x7 (x))), x [B,h,w,D]."""

    kernel_size: int = 7
    mlp_ratio: float = 4.0
    layer_scale: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None = None, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x.shape[-1]
        branch = layers.Conv(width, self.kernel_size, groups=width, name="conv_dw", **INIT, **policy)(x)
        branch = layers.LayerNorm(EPSILON, name="norm", **policy)(branch)
        branch = layers.Mlp(int(width * self.mlp_ratio), name="mlp", **policy)(branch)
        gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (width,), self.param_dtype)
        x = x + layers.DropPath(name="drop_path")(branch * layers.by_channel(gamma, branch), rate, train)
        captures.record(self, "tokens", x)
        return x


class ConvStem(nn.Module):
    """Two 3x3 convolutions with stride 2, each with LayerNorm and GELU: [B,H,W,C] -> [B,H/4,W/4,features]."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for i, width in enumerate((self.features // 2, self.features)):
            x = layers.Conv(width, 3, stride=2, name=f"stem_{3 * i}", **policy)(x)
            x = activations.gelu(layers.LayerNorm(EPSILON, name=f"stem_{3 * i + 1}", **policy)(x))
        return x


class Stage(nn.Module):
    """LayerNorm and a 2x2 convolution with stride 2 (but for the first stage), then `depth` equal blocks."""

    block: functools.partial  # of Block
    depth: int
    features: int
    downsample: bool
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rates: tuple[float, ...] | None, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.downsample:
            x = layers.LayerNorm(EPSILON, name="downsample_0", **policy)(x)
            x = layers.Patchify(self.features, 2, name="downsample_1", **INIT, **policy)(x)
        return scanning.apply_blocks(
            self.block, "blocks", self.depth, x, rates=rates, train=train, scan=self.scan, remat=self.remat
        )


class PooledHead(nn.Module):
    """Mean over the grid, LayerNorm, classifier: [B,h,w,C] -> features [B,C] and logits [B,K]."""

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = x.astype(layers.wide(self.dtype)).mean((1, 2))
        features = layers.LayerNorm(EPSILON, name="norm", **policy)(x)
        return features, layers.Head(self.num_classes, name="fc", **policy)(features)


class ConvNeXt(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "tokens" (each block's output [B,h,w,D]) and "features" [B,D]; there is no attention.

    Fields:
      num_classes, image_size (int or (H, W)), channels.
      patch_size: pixels; stride of the stem. 4 with stem = "conv".
      widths, depths: channels and blocks of each stage; each further stage has half the grid.
      kernel_size, mlp_ratio: the blocks.
      layer_scale: initial factor of each branch.
      stem: "patch" (one strided convolution and LayerNorm) or "conv" (see ConvStem).
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of the last block, linear over all blocks.
      remat, scan: recompute blocks in the backward pass; compile one block a stage.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int = 4
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    kernel_size: int = 7
    mlp_ratio: float = 4.0
    layer_scale: float = 1e-6
    stem: str = "patch"
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
        lookup("stem", self.stem, dict.fromkeys(STEMS))
        check("patch_size", self.patch_size, self.patch_size > 0, "at least 1 pixel")
        check("patch_size", self.patch_size, self.stem == "patch" or self.patch_size == 4, "4 with stem = 'conv'")
        check("kernel_size", self.kernel_size, self.kernel_size % 2 == 1, "odd")
        check("depths", self.depths, all(depth > 0 for depth in self.depths), "at least 1 block in every stage")
        check("widths", self.widths, len(self.widths) == len(self.depths), f"as long as depths = {self.depths}")
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        least = self.patch_size * 2 ** (len(self.depths) - 1)
        check("image_size", self.image_size, min(size) >= least, f"at least {least}: patch_size and halvings")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = self._stem(layers.normalize(images, self.mean, self.std, self.dtype))
        rates = layers.drop_path_rates(self.drop_path, sum(self.depths))
        first = np.cumsum((0, *self.depths))
        block = functools.partial(Block, self.kernel_size, self.mlp_ratio, self.layer_scale, **policy)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            stage = Stage(block, depth, width, i > 0, self.scan, self.remat, name=f"stages_{i}", **policy)
            x = stage(x, rates and tuple(rates[first[i] : first[i + 1]]), train)
        features, logits = PooledHead(self.num_classes, name="head", **policy)(x)
        captures.record(self, "features", features)
        return logits

    def _stem(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.stem == "conv":
            return ConvStem(self.widths[0], name="stem", **policy)(x)
        x = layers.Patchify(self.widths[0], self.patch_size, name="stem_0", **INIT, **policy)(x)
        return layers.LayerNorm(EPSILON, name="stem_1", **policy)(x)


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TINY = dict(widths=(96, 192, 384, 768), depths=(3, 3, 9, 3))
SMALL = dict(widths=(96, 192, 384, 768), depths=(3, 3, 27, 3))
BASE = dict(widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3))

MODELS = {
    f"convnext_{size}{suffix}": functools.partial(ConvNeXt, stem=stem, **IMAGENET, **dimensions)
    for size, dimensions in dict(tiny=TINY, small=SMALL, base=BASE).items()
    for suffix, stem in (("", "patch"), ("_cvst", "conv"))
}
