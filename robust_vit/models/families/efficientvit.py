"""EfficientViT (of MIT): convolutions with ReLU-linear attention in the last two stages.

Names and weights are timm's. The attention is sim(q, k) = ReLU(q) ReLU(k)^T, which needs no softmax: it costs the
number of tokens, not its square. There is no map in memory; asked for "attention", the model computes the one that this
is equal to.

For 32x32 images it runs as it is (the last grid is 1x1: batch normalisation then needs more than one image in
training); `strides=(1, 2, 2, 2, 2)` keeps 2x2.

Reference: Cai et al., EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction, 2023; timm 1.0.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.models.parts import activations, captures, initializers, layers, taps
from robust_vit.typing import Array

ATTENTION_EPSILON = 1e-5  # timm's, and its weights'; the first release had 1e-15


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and activation, the last two optional: [B,h,w,C] -> [B,h',w',features]."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    norm: bool = True
    activation: Callable[[Array], Array] | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        groups = x.shape[-1] if self.depthwise else 1
        x = layers.Conv(
            self.features, self.kernel_size, self.stride, groups, use_bias=self.use_bias, name="conv", **policy
        )(x)
        if self.norm:
            x = layers.BatchNorm(name="norm", **policy)(x, train)
        return x if self.activation is None else self.activation(x)


class DSConv(nn.Module):
    """Depthwise 3x3 with Hardswish, then a linear 1x1."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(ConvNormAct, dtype=self.dtype, param_dtype=self.param_dtype)
        x = conv(x.shape[-1], 3, depthwise=True, activation=activations.hardswish, name="depth_conv")(x, train)
        return conv(self.features, name="point_conv")(x, train)


class MBConv(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; `fewer_norm`: biases instead of normalisation in the first two."""

    features: int
    stride: int = 1
    expansion: float = 4.0
    fewer_norm: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = round(x.shape[-1] * self.expansion)
        conv = functools.partial(ConvNormAct, dtype=self.dtype, param_dtype=self.param_dtype)
        inner = dict(use_bias=self.fewer_norm, norm=not self.fewer_norm, activation=activations.hardswish)
        x = conv(hidden, name="inverted_conv", **inner)(x, train)
        x = conv(hidden, 3, self.stride, depthwise=True, name="depth_conv", **inner)(x, train)
        return conv(self.features, name="point_conv")(x, train)


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """(q k^T) v / (q k^T 1 + eps) with ReLU on q and k, products from the right: [B,A,N,d] each, float32 or wider."""
    q, k, v = (x.astype(layers.wide(x.dtype)) for x in (q, k, v))
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    values = jnp.einsum("band,bane->bade", k, v)
    out = jnp.einsum("band,bade->bane", q, values)
    total = jnp.einsum("band,bad->ban", q, k.sum(2))
    return out / (total[..., None] + ATTENTION_EPSILON)


def attention_map(q: Array, k: Array) -> Array:
    """The map [B,A,Q,K] with which `linear_attention` is map @ v; its rows sum to 1, but for the epsilon."""
    q, k = (jax.nn.relu(x.astype(layers.wide(x.dtype))) for x in (q, k))
    scores = jnp.einsum("baqd,bakd->baqk", q, k)
    return scores / (scores.sum(-1, keepdims=True) + ATTENTION_EPSILON)


class LiteMLA(nn.Module):
    """Multi-scale linear attention, [B,h,w,C] -> [B,h,w,C].

    Queries, keys and values once from each place and once from its 5x5 surroundings give twice the heads. Channels are
    ordered (scale, head, part, d): unlike in the packed `qkv` of ViT, the head comes first.

    Records "attention" [B, 2*heads, N, N], see `attention_map`.
    """

    head_dim: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        b, h, w, c = x.shape
        heads = c // self.head_dim
        width = 3 * heads * self.head_dim
        near = ConvNormAct(width, norm=False, name="qkv", **policy)(x, train)
        far = layers.Conv(width, 5, groups=width, use_bias=False, name="aggreg_0_0", **policy)(near)
        far = layers.Conv(width, 1, groups=3 * heads, use_bias=False, name="aggreg_0_1", **policy)(far)
        parts = jnp.concatenate([near, far], -1).reshape(b, h * w, 2 * heads, 3, self.head_dim)
        q, k, v = parts.transpose(3, 0, 2, 1, 4)  # [B,2A,N,d] each
        if captures.recording(self):
            captures.record(self, "attention", attention_map(q, k))
        if taps.tapped("attention_probabilities"):  # the same values from the map, which is quadratic in the tokens
            attention = taps.tap(self, "attention_probabilities", attention_map(q, k))
            out = jnp.einsum("baqk,bakd->baqd", attention, v.astype(attention.dtype))
        else:
            out = linear_attention(q, k, v)
        out = out.astype(self.dtype).swapaxes(1, 2).reshape(b, h, w, -1)
        return ConvNormAct(c, name="proj", **policy)(out, train)


class Residual(nn.Module):
    """x + main(x), or main(x) alone; timm keeps the inner module under `main`."""

    make: Callable[..., nn.Module]
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        branch = self.make(name="main")(x, train)
        return x + branch if self.shortcut else branch


class Block(nn.Module):
    """Context by linear attention, then a local MBConv, each with a shortcut."""

    head_dim: int
    expansion: float = 4.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        context = functools.partial(LiteMLA, self.head_dim, **policy)
        local = functools.partial(MBConv, x.shape[-1], expansion=self.expansion, fewer_norm=True, **policy)
        x = Residual(context, name="context_module")(x, train)
        x = Residual(local, name="local_module")(x, train)
        return x


class Stem(nn.Module):
    """A strided 3x3 convolution, then `depth` separable ones with shortcuts."""

    features: int
    depth: int
    stride: int = 2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = ConvNormAct(self.features, 3, self.stride, activation=activations.hardswish, name="in_conv", **policy)
        x = conv(x, train)
        for i in range(self.depth):
            x = Residual(functools.partial(DSConv, self.features, **policy), name=f"res{i}")(x, train)
        return x


class Stage(nn.Module):
    """A strided MBConv without shortcut, then MBConvs (to `depth` in all) or, with attention, `depth` Blocks."""

    features: int
    depth: int
    stride: int
    attends: bool
    head_dim: int
    expansion: float = 4.0
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        mbconv = functools.partial(MBConv, self.features, expansion=self.expansion, **policy)
        strided = functools.partial(mbconv, self.stride, fewer_norm=self.attends)
        blocks = [functools.partial(Residual, strided, shortcut=False)]
        if self.attends:
            blocks += [functools.partial(Block, self.head_dim, self.expansion, **policy)] * self.depth
        else:
            blocks += [functools.partial(Residual, mbconv)] * (self.depth - 1)
        for i, block in enumerate(blocks):

            def step(module: nn.Module, x: Array) -> Array:
                return module(x, train)

            x = (nn.remat(step) if self.remat else step)(block(name=f"blocks_{i}"), x)
            captures.record(self, "tokens", x)
        return x


class Head(nn.Module):
    """1x1 convolution, mean, Dense, LayerNorm, Hardswish, classifier: [B,h,w,C] -> features [B,D], logits [B,K]."""

    num_classes: int
    widths: tuple[int, int]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = ConvNormAct(self.widths[0], activation=activations.hardswish, name="in_conv", **policy)(x, train)
        x = x.astype(layers.wide(self.dtype)).mean((1, 2)).astype(self.dtype)
        x = layers.Dense(
            self.widths[1], use_bias=False, kernel_init=initializers.torch_default, name="classifier_0", **policy
        )(x)
        features = activations.hardswish(layers.LayerNorm(1e-5, name="classifier_1", **policy)(x))
        head = layers.Head(self.num_classes, initializers.torch_default, name="classifier_4", **policy)
        return features, head(features)


class EfficientViT(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "attention" [B, 2*heads, N, N] of the blocks that attend (computed when asked for), "tokens" [B,h,w,D],
    "features" [B,D].

    Fields:
      num_classes, image_size (int or (H, W)), channels.
      widths: channels of the stem and of each stage; heads are width / head_dim.
      depths: blocks of the stem and of each stage; the last two stages attend.
      strides: of the stem and of each stage.
      head_dim, expansion: of attention and of MBConv.
      head_widths: of the convolution and of the hidden layer before the classifier.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: must be 0, the family has none.
      remat: recompute blocks in the backward pass.
      scan: must be False, a stage's blocks are not equal.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    depths: tuple[int, ...] = (1, 2, 2, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    head_dim: int = 16
    expansion: float = 4.0
    head_widths: tuple[int, int] = (1024, 1280)
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
        check("scan", self.scan, not self.scan, "False: the blocks of an EfficientViT stage are not equal")
        check("drop_path", self.drop_path, self.drop_path == 0, "0: EfficientViT has no drop path")
        for field in ("depths", "strides"):
            value = getattr(self, field)
            check(field, value, len(value) == len(self.widths), f"as long as widths = {self.widths}")
        check("widths", self.widths, len(self.widths) >= 3, "the stem and at least two stages")
        fits = all(width % self.head_dim == 0 for width in self.widths[-2:])
        check("head_dim", self.head_dim, fits, f"a divisor of the last two widths, {self.widths[-2:]}")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = Stem(self.widths[0], self.depths[0], self.strides[0], name="stem", **policy)(x, train)
        stages = len(self.widths) - 1
        for i in range(stages):
            x = Stage(
                self.widths[i + 1],
                self.depths[i + 1],
                self.strides[i + 1],
                i >= stages - 2,
                self.head_dim,
                self.expansion,
                self.remat,
                name=f"stages_{i}",
                **policy,
            )(x, train)
        features, logits = Head(self.num_classes, self.head_widths, name="head", **policy)(x, train)
        captures.record(self, "features", features)
        return logits


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

MODELS = {
    "efficientvit_b0": functools.partial(EfficientViT, **IMAGENET),
    "efficientvit_b1": functools.partial(
        EfficientViT, widths=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 4), head_widths=(1536, 1600), **IMAGENET
    ),
    "efficientvit_b2": functools.partial(
        EfficientViT,
        widths=(24, 48, 96, 192, 384),
        depths=(1, 3, 4, 4, 6),
        head_dim=32,
        head_widths=(2304, 2560),
        **IMAGENET,
    ),
    "efficientvit_b3": functools.partial(
        EfficientViT,
        widths=(32, 64, 128, 256, 512),
        depths=(1, 4, 6, 6, 9),
        head_dim=32,
        head_widths=(2304, 2560),
        **IMAGENET,
    ),
}
