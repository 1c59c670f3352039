"""ViT and DeiT: plain transformers on patches.

Names and weights are timm's. Beside the published sizes, `vit` and `deit` take free dimensions:
`models.build("vit", depth=4, width=64, heads=4, patch_size=2, image_size=8, channels=1, num_classes=10,
pooling="mean")`.

References: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; Touvron et al., Training data-efficient image
transformers, 2021; ConvStem: Singh et al., Revisiting Adversarial Training for ImageNet, 2023.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_vit.errors import check, lookup
from robust_vit.models.parts import activations, attention, captures, initializers, layers, positions, scanning, taps
from robust_vit.typing import Array

POOLINGS = ("token", "mean")
POSITIONS = ("learned", "sinusoidal", "relative", "none")
STEMS = ("patch", "conv")


class Block(nn.Module):
    """x += Attention(LN(x)); x += MLP(LN(x)), each branch optionally scaled and dropped."""

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    attention: str = "einsum"
    relative: tuple[int, int, int] | None = None  # (h, w, prefix) of the token grid, for a relative position bias
    initializer: str = "timm"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None = None, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        bias = None
        if self.relative is not None:
            *grid, prefix = self.relative
            bias = positions.RelativeBias(tuple(grid), self.heads, prefix, self.param_dtype, name="rel_pos")()

        branch = layers.LayerNorm(self.norm_epsilon, name="norm1", **policy)(x)
        dense = policy | dict(kernel_init=initializers.INITS[self.initializer])
        branch = attention.Attention(self.heads, self.qkv_bias, self.attention, name="attn", **dense)(branch, bias)
        branch = taps.tap(self, "attention_output", branch)
        if self.layer_scale is not None:
            branch = layers.LayerScale(self.layer_scale, name="ls1", **policy)(branch)
        x = x + layers.DropPath(name="drop_path1")(branch, rate, train)

        branch = layers.LayerNorm(self.norm_epsilon, name="norm2", **policy)(x)
        branch = layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **dense)(branch)
        branch = taps.tap(self, "mlp_output", branch)
        if self.layer_scale is not None:
            branch = layers.LayerScale(self.layer_scale, name="ls2", **policy)(branch)
        x = x + layers.DropPath(name="drop_path2")(branch, rate, train)
        x = taps.tap(self, "residual", x)
        captures.record(self, "tokens", x)
        return x


class ConvStem(nn.Module):
    """Four 3x3 stride-2 convolutions, each with LayerNorm and GELU, then a 1x1: patch 16 from overlapping windows."""

    features: int
    stem_width: int = 48
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for i in range(4):
            x = layers.Conv(self.stem_width * 2**i, 3, stride=2, name=f"stem_{3 * i}", **policy)(x)
            x = activations.gelu(layers.LayerNorm(1e-6, name=f"stem_{3 * i + 1}", **policy)(x))
        return layers.Conv(self.features, 1, name="stem_12", **policy)(x)


class PatchEmbed(nn.Module):
    """Images [B,H,W,C] -> a grid of tokens [B,h,w,D]."""

    width: int
    patch_size: int
    stem: str = "patch"
    stem_width: int = 48
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype, name="proj")
        if self.stem == "conv":
            return ConvStem(self.width, self.stem_width, **policy)(images)
        return layers.Patchify(self.width, self.patch_size, **policy)(images)


class ViT(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider); with `heads` those of each head, [B,heads,K].

    Fields:
      num_classes, image_size (int or (H, W)), channels, patch_size: pixels.
      width, depth, heads, mlp_ratio, qkv_bias, norm_epsilon: the transformer.
      pooling: "token" (class token, final norm before it) or "mean" (mean of the patch tokens, norm after it).
      class_token: whether there is one; None means "when pooling uses it".
      distilled: a second token and head; logits are the mean of both.
      positions: "learned", "sinusoidal", "relative" (a learned bias in every block's attention) or "none".
      layer_scale: initial factor of each branch, None for none.
      stem: "patch", or "conv" (patch 16 by four strided convolutions of `stem_width` 1, 2, 4, 8).
      attention: formulation, see `attention.IMPLEMENTATIONS`.
      initializer: of the dense kernels, "timm" (N(0, 0.02)) or "lecun" (N(0, 1/fan_in)), which narrow models need.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of the last block, linear over depth.
      remat, scan: recompute blocks in the backward pass; compile one block for all.
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6
    pooling: str = "token"
    class_token: bool | None = None
    distilled: bool = False
    positions: str = "learned"
    layer_scale: float | None = None
    stem: str = "patch"
    stem_width: int = 48
    attention: str = "einsum"
    initializer: str = "timm"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) tokens."""
        height, width = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return height // self.patch_size, width // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token, distillation token."""
        has_class = self.pooling == "token" if self.class_token is None else self.class_token
        return int(has_class) + int(self.distilled)

    @nn.nowrap
    def validate(self) -> None:
        """Raises ValueError, in one line, where the fields do not make a model."""
        lookup("pooling", self.pooling, dict.fromkeys(POOLINGS))
        lookup("positions", self.positions, dict.fromkeys(POSITIONS))
        lookup("stem", self.stem, dict.fromkeys(STEMS))
        lookup("attention", self.attention, attention.IMPLEMENTATIONS)
        lookup("initializer", self.initializer, initializers.INITS)
        check("width", self.width, self.width % self.heads == 0, f"divisible by heads = {self.heads}")
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        divides = self.patch_size > 0 and not any(side % self.patch_size for side in size)
        check("patch_size", self.patch_size, divides, f"a divisor of image_size = {self.image_size}")
        check("patch_size", self.patch_size, self.stem == "patch" or self.patch_size == 16, "16 with stem = 'conv'")
        token = self.pooling == "token"
        check("class_token", self.class_token, not token or self.class_token is not False, "True for pooling = 'token'")
        check("distilled", self.distilled, token or not self.distilled, "False unless pooling = 'token'")

    @nn.compact
    def __call__(self, images: Array, train: bool = False, heads: bool = False) -> Array:
        x = self._transform(self._embed(images), train)
        return jnp.stack(self._heads(x), 1) if heads else self._classify(x)

    def _embed(self, images: Array) -> Array:
        """Images [B,H,W,C] -> tokens [B,prefix+N,D] with their positions."""
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        embed = PatchEmbed(self.width, self.patch_size, self.stem, self.stem_width, name="patch_embed", **policy)
        x = embed(x).reshape(images.shape[0], -1, self.width)  # [B,N,D]
        return self._add_positions(self._prepend_tokens(x))

    def _transform(self, x: Array, train: bool) -> Array:
        """Tokens through all blocks."""
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        block = functools.partial(
            Block,
            self.heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.layer_scale,
            self.norm_epsilon,
            self.attention,
            (*self.grid, self.prefix) if self.positions == "relative" else None,
            self.initializer,
            **policy,
        )
        rates = layers.drop_path_rates(self.drop_path, self.depth)
        return scanning.apply_blocks(
            block, "blocks", self.depth, x, rates=rates, train=train, scan=self.scan, remat=self.remat
        )

    def _prepend_tokens(self, x: Array) -> Array:
        """[B,N,D] -> [B,prefix+N,D]: class token, distillation token, patches."""
        tokens = []
        if self.prefix > int(self.distilled):
            tokens.append(
                self.param("cls_token", initializers.trunc_normal(1e-6), (1, 1, self.width), self.param_dtype)
            )
        if self.distilled:
            tokens.append(
                self.param("dist_token", initializers.trunc_normal(0.02), (1, 1, self.width), self.param_dtype)
            )
        tokens = [jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], 1, self.width)) for t in tokens]
        return jnp.concatenate([*tokens, x], 1) if tokens else x

    def _add_positions(self, x: Array) -> Array:
        n = x.shape[1]
        if self.positions == "learned":
            embedding = self.param("pos_embed", initializers.trunc_normal(0.02), (1, n, self.width), self.param_dtype)
            return x + taps.tap(self, "positions", embedding.astype(x.dtype))
        if self.positions == "sinusoidal":
            return x + taps.tap(self, "positions", jnp.asarray(positions.sinusoidal(n, self.width), x.dtype)[None])
        return x

    def _classify(self, x: Array) -> Array:
        """[B,prefix+N,D] -> logits [B,K], the mean of the heads."""
        logits = self._heads(x)
        return (logits[0] + logits[1]) / 2 if self.distilled else logits[0]

    def _heads(self, x: Array) -> list[Array]:
        """[B,prefix+N,D] -> logits [B,K] of each head. The norm is per token: only those that are read are normed."""
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = policy | dict(kernel_init=initializers.INITS[self.initializer])
        if self.pooling == "mean":
            x = x[:, self.prefix :].astype(layers.wide(self.dtype)).mean(1).astype(self.dtype)
            features = layers.LayerNorm(self.norm_epsilon, name="fc_norm", **policy)(x)
            captures.record(self, "features", features)
            return [layers.Head(self.num_classes, name="head", **dense)(features)]
        x = layers.LayerNorm(self.norm_epsilon, name="norm", **policy)(x[:, : self.prefix])
        captures.record(self, "features", x[:, 0])
        logits = [layers.Head(self.num_classes, name="head", **dense)(x[:, 0])]
        if self.distilled:
            logits.append(layers.Head(self.num_classes, name="head_dist", **dense)(x[:, 1]))
        return logits


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # the pretrained vit_* weights of timm
TINY = dict(width=192, depth=12, heads=3)
SMALL = dict(width=384, depth=12, heads=6)
BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
HUGE = dict(width=1280, depth=32, heads=16, num_classes=0)  # timm has this size without a head: say num_classes

MODELS = {
    "vit": functools.partial(ViT),
    "deit": functools.partial(ViT),
    **{
        f"vit_{size}_patch{patch}_224": functools.partial(ViT, patch_size=patch, **HALF, **dimensions)
        for size, dimensions in dict(tiny=TINY, small=SMALL, base=BASE, large=LARGE, huge=HUGE).items()
        for patch in (16, 14, 8, 4)
    },
    **{
        f"deit_{size}{distilled}_patch16_224": functools.partial(
            ViT, distilled=bool(distilled), **IMAGENET, **dimensions
        )
        for size, dimensions in dict(tiny=TINY, small=SMALL, base=BASE).items()
        for distilled in ("", "_distilled")
    },
    "vit_small_cvst": functools.partial(ViT, stem="conv", **IMAGENET, **SMALL),
    "vit_base_cvst": functools.partial(ViT, stem="conv", **IMAGENET, **BASE),
}
