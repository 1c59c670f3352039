"""CaiT: self-attention among patches with talking heads, then class attention, every branch scaled.

Names and weights are timm's; `cait_s12_224` is the Light Recipe's size, with branches that start at full strength
(`layer_scale=1.0`). For 32x32 images: `models.build("cait_s12_224", image_size=32, patch_size=4, num_classes=10)`.

References: Touvron et al., Going deeper with Image Transformers, 2021; Shazeer et al., Talking-Heads Attention, 2020;
Debenedetti et al., A Light Recipe to Train Robust Vision Transformers, 2022.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.models.parts import attention, captures, initializers, layers, scanning, taps
from robust_vit.typing import Array

EPSILON = 1e-6  # of every layer norm


class HeadMixer(nn.Module):
    """A linear map over the heads of [B,A,Q,K]: one [A,A] product an image instead of Dense over a transposed copy."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        b, heads, q, k = maps.shape
        kernel = self.param("kernel", initializers.trunc_normal(0.02), (heads, heads), self.param_dtype)  # [in,out]
        bias = self.param("bias", nn.initializers.zeros, (heads,), self.param_dtype)
        dtype = layers.wide(self.dtype)
        mixed = kernel.T.astype(dtype) @ maps.astype(dtype).reshape(b, heads, q * k)
        return mixed.reshape(b, heads, q, k) + bias.astype(dtype)[None, :, None, None]


class TalkingHeadsAttention(nn.Module):
    """Self-attention [B,N,D] -> [B,N,D] whose heads are mixed before (`proj_l`) and after (`proj_w`) the softmax.

    Records the softmax's map: rows sum to 1 there, and no longer after the second mixing.
    """

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        qkv = layers.Dense(3 * x.shape[-1], use_bias=self.qkv_bias, name="qkv", **policy)(x)
        q, k, v = attention.split_heads(taps.tap(self, "qkv", qkv), 3, self.heads)
        scale = q.shape[-1] ** -0.5
        scores = jnp.einsum("baqd,bakd->baqk", q * scale, k, preferred_element_type=layers.wide(self.dtype))
        weights = jax.nn.softmax(HeadMixer(name="proj_l", **policy)(scores), axis=-1)
        weights = taps.tap(self, "attention_probabilities", weights)
        captures.record(self, "attention", weights)
        weights = HeadMixer(name="proj_w", **policy)(weights).astype(v.dtype)
        out = attention.merge_heads(jnp.einsum("baqk,bakd->baqd", weights, v))
        return layers.Dense(x.shape[-1], name="proj", **policy)(out)


class ClassAttention(nn.Module):
    """The class token asks, all tokens answer: [B,1+N,D] -> [B,1,D]; q, k and v are separate. XCiT has it too."""

    heads: int
    qkv_bias: bool = True
    implementation: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x.shape[-1]
        dense = functools.partial(layers.Dense, width, use_bias=self.qkv_bias, **policy)
        (q,) = attention.split_heads(dense(name="q")(x[:, :1]), 1, self.heads)  # [B,A,1,d]
        (k,) = attention.split_heads(dense(name="k")(x), 1, self.heads)
        (v,) = attention.split_heads(dense(name="v")(x), 1, self.heads)
        out = attention.merge_heads(attention.attend(self, q, k, v, implementation=self.implementation))
        return layers.Dense(width, name="proj", **policy)(out)


class Block(nn.Module):
    """x += gamma_1 TalkingHeadsAttention(LN(x)); x += gamma_2 MLP(LN(x))."""

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None = None, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gamma_1, gamma_2 = (
            self.param(name, nn.initializers.constant(self.layer_scale), (x.shape[-1],), self.param_dtype)
            for name in ("gamma_1", "gamma_2")
        )
        branch = layers.LayerNorm(EPSILON, name="norm1", **policy)(x)
        branch = TalkingHeadsAttention(self.heads, self.qkv_bias, name="attn", **policy)(branch)
        branch = taps.tap(self, "attention_output", branch)
        x = x + layers.DropPath(name="drop_path1")(branch * layers.by_channel(gamma_1, branch), rate, train)
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(x)
        branch = layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch)
        branch = taps.tap(self, "mlp_output", branch)
        x = x + layers.DropPath(name="drop_path2")(branch * layers.by_channel(gamma_2, branch), rate, train)
        x = taps.tap(self, "residual", x)
        captures.record(self, "tokens", x)
        return x


class ClassBlock(nn.Module):
    """Updates the class token [B,1,D] from the patches [B,N,D], which stay as they are; it never drops a branch."""

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float = 1e-5
    attention: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token: Array, patches: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gamma_1, gamma_2 = (
            self.param(name, nn.initializers.constant(self.layer_scale), (token.shape[-1],), self.param_dtype)
            for name in ("gamma_1", "gamma_2")
        )
        branch = layers.LayerNorm(EPSILON, name="norm1", **policy)(jnp.concatenate([token, patches], 1))
        branch = ClassAttention(self.heads, self.qkv_bias, self.attention, name="attn", **policy)(branch)
        branch = taps.tap(self, "attention_output", branch)
        token = token + branch * layers.by_channel(gamma_1, branch)
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(token)
        branch = layers.Mlp(int(token.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch)
        branch = taps.tap(self, "mlp_output", branch)
        token = token + branch * layers.by_channel(gamma_2, branch)
        token = taps.tap(self, "residual", token)
        captures.record(self, "tokens", token)
        return token


class PatchEmbed(nn.Module):
    """Images [B,H,W,C] -> a grid of tokens [B,h,w,D]."""

    width: int
    patch_size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return layers.Patchify(self.width, self.patch_size, name="proj", **policy)(images)


class CaiT(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "attention" [B,A,N,N] of the blocks (after the softmax, before the second mixing of heads) and [B,A,1,1+N]
    of the class blocks, "tokens" [B,N,D] and [B,1,D], "features" [B,D].

    Fields:
      num_classes, image_size (int or (H, W)), channels, patch_size: pixels.
      width, depth, heads, mlp_ratio, qkv_bias: the transformer.
      class_depth: class-attention blocks after it.
      layer_scale: initial factor of each branch.
      attention: formulation of the class attention, see `attention.IMPLEMENTATIONS`; talking heads have one only.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of every block, not growing with depth; class blocks have none.
      remat, scan: recompute blocks in the backward pass; compile one block for all (class blocks are not scanned).
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_depth: int = 2
    layer_scale: float = 1e-5
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
        check("attention", self.attention, self.attention in ("einsum", "xla"), "'einsum' or 'xla'")
        check("width", self.width, self.width % self.heads == 0, f"divisible by heads = {self.heads}")
        check("class_depth", self.class_depth, self.class_depth > 0, "at least 1: the class token enters there")
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        divides = self.patch_size > 0 and not any(side % self.patch_size for side in size)
        check("patch_size", self.patch_size, divides, f"a divisor of image_size = {self.image_size}")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = PatchEmbed(self.width, self.patch_size, name="patch_embed", **policy)(x)
        x = x.reshape(images.shape[0], -1, self.width)  # [B,N,D]
        embedding = self.param("pos_embed", initializers.trunc_normal(0.02), (1, *x.shape[1:]), self.param_dtype)
        x = x + taps.tap(self, "positions", embedding.astype(x.dtype))
        sizes = (self.heads, self.mlp_ratio, self.qkv_bias, self.layer_scale)
        x = scanning.apply_blocks(
            functools.partial(Block, *sizes, **policy),
            "blocks",
            self.depth,
            x,
            rates=[self.drop_path] * self.depth if self.drop_path else None,
            train=train,
            scan=self.scan,
            remat=self.remat,
        )
        token = self.param("cls_token", initializers.trunc_normal(0.02), (1, 1, self.width), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
        for i in range(self.class_depth):
            token = ClassBlock(*sizes, self.attention, name=f"blocks_token_only_{i}", **policy)(token, x)
        features = layers.LayerNorm(EPSILON, name="norm", **policy)(token)[:, 0]
        captures.record(self, "features", features)
        return layers.Head(self.num_classes, name="head", **policy)(features)


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

MODELS = {
    "cait": functools.partial(CaiT),
    "cait_xxs24_224": functools.partial(CaiT, width=192, depth=24, heads=4, **IMAGENET),
    "cait_s12_224": functools.partial(CaiT, layer_scale=1.0),  # trained on plain [0,1] pixels
    "cait_s24_224": functools.partial(CaiT, depth=24, **IMAGENET),
}
