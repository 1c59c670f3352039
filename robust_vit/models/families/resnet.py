"""ResNet-50: the convolutional network that robust transformers are compared with.

Names and weights are timm's. This is version 1.5, with the stride in the 3x3 convolution. `resnet50_gelu` replaces
every ReLU by the exact GELU, which makes adversarial training smoother; `resnet50_32` has the stem for small images: a
3x3 convolution without stride, and no pooling.

References: He et al., Deep Residual Learning for Image Recognition, 2016; Debenedetti et al., A Light Recipe to Train
Robust Vision Transformers, 2022.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check, lookup
from robust_vit.models.parts import activations, captures, initializers, layers
from robust_vit.typing import Array

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": activations.gelu}
STEMS = ("strided", "plain")
EXPANSION = 4  # output channels of a bottleneck over its inner width
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1, each normalised; activation after the first two and after adding the shortcut."""

    width: int
    stride: int = 1
    activation: str = "relu"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: float | None = None, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(layers.Conv, use_bias=False, kernel_init=KAIMING, **policy)
        activation = ACTIVATIONS[self.activation]
        branch = conv(self.width, 1, name="conv1")(x)
        branch = activation(layers.BatchNorm(name="bn1", **policy)(branch, train))
        branch = conv(self.width, 3, self.stride, name="conv2")(branch)
        branch = activation(layers.BatchNorm(name="bn2", **policy)(branch, train))
        branch = conv(EXPANSION * self.width, 1, name="conv3")(branch)
        branch = layers.BatchNorm(scale_init=nn.initializers.zeros, name="bn3", **policy)(branch, train)
        if self.stride > 1 or x.shape[-1] != branch.shape[-1]:
            x = conv(EXPANSION * self.width, 1, self.stride, name="downsample_0")(x)
            x = layers.BatchNorm(name="downsample_1", **policy)(x, train)
        x = activation(x + layers.DropPath(name="drop_path")(branch, rate, train))
        captures.record(self, "tokens", x)
        return x


class ResNet(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "tokens" (each bottleneck's output [B,h,w,D]) and "features" [B,D]; there is no attention.

    Fields:
      num_classes, image_size (int or (H, W)), channels.
      depths, widths: bottlenecks of each stage and their inner width; a stage has 4 width channels.
      stem_width: channels of the first convolution.
      stem: "strided" (7x7 with stride 2, then a 3x3 maximum with stride 2) or "plain" (3x3, for small images).
      activation: "relu" or "gelu" (exact).
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of the last block, linear over all blocks.
      remat: recompute blocks in the backward pass.
      scan: must be False, a stage's blocks are not equal.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    stem: str = "strided"
    activation: str = "relu"
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
        lookup("activation", self.activation, ACTIVATIONS)
        lookup("stem", self.stem, dict.fromkeys(STEMS))
        check("scan", self.scan, not self.scan, "False: the blocks of a ResNet stage are not equal")
        check("depths", self.depths, all(depth > 0 for depth in self.depths), "at least 1 block in every stage")
        check("widths", self.widths, len(self.widths) == len(self.depths), f"as long as depths = {self.depths}")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = self._stem(layers.normalize(images, self.mean, self.std, self.dtype), train)
        rates = layers.drop_path_rates(self.drop_path, sum(self.depths))
        first = np.cumsum((0, *self.depths))
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                rate = rates and rates[first[i] + j]

                def step(block: nn.Module, x: Array, rate: float | None = rate) -> Array:
                    return block(x, rate, train)

                stride = 2 if i > 0 and j == 0 else 1
                block = Bottleneck(width, stride, self.activation, name=f"layer{i + 1}_{j}", **policy)
                x = (nn.remat(step) if self.remat else step)(block, x)
        features = x.astype(layers.wide(self.dtype)).mean((1, 2))
        captures.record(self, "features", features)
        return layers.Head(self.num_classes, initializers.torch_default, name="fc", **policy)(features)

    def _stem(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        kernel_size, stride = (7, 2) if self.stem == "strided" else (3, 1)
        conv = layers.Conv(
            self.stem_width, kernel_size, stride, use_bias=False, kernel_init=KAIMING, name="conv1", **policy
        )
        x = ACTIVATIONS[self.activation](layers.BatchNorm(name="bn1", **policy)(conv(x), train))
        return x if self.stem == "plain" else nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # the Light Recipe's

MODELS = {
    "resnet50": functools.partial(ResNet, **IMAGENET),
    "resnet50_gelu": functools.partial(ResNet, activation="gelu", **HALF),
    "resnet50_32": functools.partial(ResNet, image_size=32, num_classes=10, stem="plain"),
    "resnet50_gelu_32": functools.partial(ResNet, image_size=32, num_classes=10, stem="plain", activation="gelu"),
}
