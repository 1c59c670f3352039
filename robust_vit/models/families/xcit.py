"""XCiT: attention among channels instead of tokens, local convolutions for the tokens, class attention at the end.

Names and weights are timm's; M12 and L12 are the Light Recipe's sizes. The stem is a chain of 3x3 convolutions that
halve the image; `patch_size` says how much of it they keep, so that small images have tokens enough and weights stay
those of patch 16: `models.build("xcit_small_12_p16_224", image_size=32, patch_size=4, num_classes=10)`, in short
`models.build("xcit_small_12_p4_32")`, strides only the last two of four. No parameter depends on the image's size.

References: El-Nouby et al., XCiT: Cross-Covariance Image Transformers, 2021; Debenedetti et al., A Light Recipe to
Train Robust Vision Transformers, 2022.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robust_vit.errors import check
from robust_vit.models.families import cait
from robust_vit.models.parts import activations, captures, initializers, layers, positions, scanning, taps
from robust_vit.typing import Array

EPSILON = 1e-6  # of every layer norm


class ConvPatchEmbed(nn.Module):
    """`depth` 3x3 convolutions with batch normalisation, GELU between them, widths doubling up to `features`.

    The last log2(patch_size) of them have stride 2: images [B,H,W,C] -> tokens [B,H/p,W/p,D].
    """

    features: int
    patch_size: int
    depth: int = 4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        strided = self.patch_size.bit_length() - 1
        for i in range(self.depth):
            width = self.features // 2 ** (self.depth - 1 - i)
            stride = 2 if i >= self.depth - strided else 1
            x = layers.Conv(width, 3, stride, use_bias=False, name=f"proj_{2 * i}_0", **policy)(x)
            x = layers.BatchNorm(name=f"proj_{2 * i}_1", **policy)(x, train)
            if i < self.depth - 1:
                x = activations.gelu(x)
        return x


def cross_covariance(
    q: Array,
    k: Array,
    v: Array,
    temperature: Array,
    through: Callable[[Array], Array] = lambda attention: attention,
) -> tuple[Array, Array]:
    """Attention among the channels of a head: softmax(temperature q^T k / (|q| |k|)) v^T, norms along the tokens.

    The product comes first and is divided by the norms then, which is the same and touches d^2 numbers instead of
    2 N d. A channel that is zero on all tokens has norm 1e-12, and gradient zero through it.

    Args:
      q, k, v: [B,N,A,d].
      temperature: [A,1,1].
      through: what the map goes through before it is used.

    Returns:
      values [B,N,A,d] and the map [B,A,d,d] (in `wide` precision).
    """
    dtype = layers.wide(q.dtype)

    def inverse_norm(x: Array) -> Array:  # [B,A,d]
        return lax.rsqrt(jnp.maximum(jnp.square(x.astype(dtype)).sum(1), 1e-24))

    scores = jnp.einsum("bnad,bnae->bade", q, k, preferred_element_type=dtype)
    scores = scores * inverse_norm(q)[..., :, None] * inverse_norm(k)[..., None, :]
    weights = through(jax.nn.softmax(scores * temperature.astype(dtype)[None], axis=-1))
    return jnp.einsum("bade,bnae->bnad", weights.astype(v.dtype), v), weights


class XCA(nn.Module):
    """Cross-covariance attention [B,h,w,D] -> [B,h,w,D]; linear in the number of tokens. Records its map [B,A,d,d]."""

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        temperature = self.param("temperature", nn.initializers.ones, (self.heads, 1, 1), self.param_dtype)
        width = x.shape[-1]
        qkv = layers.Dense(3 * width, use_bias=self.qkv_bias, name="qkv", **policy)(x)
        qkv = taps.tap(self, "qkv", qkv)
        qkv = qkv.reshape(x.shape[0], -1, 3, self.heads, width // self.heads)  # [B,N,3,A,d]
        tap = functools.partial(taps.tap, self, "attention_probabilities")
        out, weights = cross_covariance(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], temperature, tap)
        captures.record(self, "attention", weights)
        return layers.Dense(width, name="proj", **policy)(out.reshape(x.shape))


class LPI(nn.Module):
    """Local patch interaction: depthwise 3x3, GELU, batch normalisation, depthwise 3x3."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(layers.Conv, x.shape[-1], 3, groups=x.shape[-1], **policy)
        x = activations.gelu(conv(name="conv1")(x))
        x = layers.BatchNorm(name="bn", **policy)(x, train)
        return conv(name="conv2")(x)


class Block(nn.Module):
    """x += gamma1 XCA(LN(x)); x += gamma3 LPI(LN(x)); x += gamma2 MLP(LN(x)), in this order, x [B,h,w,D]."""

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float = 1.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array | None = None, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def add(x: Array, branch: Array, number: int, point: str) -> Array:
            branch = taps.tap(self, point, branch)
            gamma = self.param(
                f"gamma{number}", nn.initializers.constant(self.layer_scale), (x.shape[-1],), self.param_dtype
            )
            drop = layers.DropPath(name=f"drop_path{number}")
            return x + drop(branch * layers.by_channel(gamma, branch), rate, train)

        branch = layers.LayerNorm(EPSILON, name="norm1", **policy)(x)
        x = add(x, XCA(self.heads, self.qkv_bias, name="attn", **policy)(branch), 1, "attention_output")
        branch = layers.LayerNorm(EPSILON, name="norm3", **policy)(x)
        x = add(x, LPI(name="local_mp", **policy)(branch, train), 3, "local_output")
        branch = layers.LayerNorm(EPSILON, name="norm2", **policy)(x)
        x = add(x, layers.Mlp(int(x.shape[-1] * self.mlp_ratio), name="mlp", **policy)(branch), 2, "mlp_output")
        x = taps.tap(self, "residual", x)
        captures.record(self, "tokens", x)
        return x


class ClassBlock(nn.Module):
    """Class attention as XCiT released it, which is not CaiT's; it never drops a branch.

    The residual of the class token's MLP is the normalised token; the patches [B,N,D] gain their own normalised values,
    are normalised again where `tokens_norm` says so, and doubled.
    """

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float = 1.0
    tokens_norm: bool = True
    attention: str = "einsum"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token: Array, patches: Array) -> tuple[Array, Array]:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gamma1, gamma2 = (
            self.param(name, nn.initializers.constant(self.layer_scale), (token.shape[-1],), self.param_dtype)
            for name in ("gamma1", "gamma2")
        )
        gamma1, gamma2 = (layers.by_channel(gamma.astype(self.dtype), token) for gamma in (gamma1, gamma2))
        normed = layers.LayerNorm(EPSILON, name="norm1", **policy)(jnp.concatenate([token, patches], 1))
        attend = cait.ClassAttention(self.heads, self.qkv_bias, self.attention, name="attn", **policy)
        token = token + gamma1 * taps.tap(self, "attention_output", attend(normed))
        patches = patches + gamma1 * normed[:, 1:]
        norm2 = layers.LayerNorm(EPSILON, name="norm2", **policy)
        token = norm2(token)
        branch = layers.Mlp(int(token.shape[-1] * self.mlp_ratio), name="mlp", **policy)(token)
        token = token + gamma2 * taps.tap(self, "mlp_output", branch)
        patches = 2 * (norm2(patches) if self.tokens_norm else patches)
        token = taps.tap(self, "residual", token)
        if captures.recording(self):
            captures.record(self, "tokens", jnp.concatenate([token, patches], 1))
        return token, patches


class XCiT(nn.Module):
    """Images [B,H,W,C] in [0,1] -> logits [B,K] (float32 or wider).

    Captures: "attention" [B,A,d,d] among the channels of each head, then [B,A,1,1+N] of the class blocks; "tokens"
    [B,h,w,D], then [B,1+N,D]; "features" [B,D].

    Fields:
      num_classes, image_size (int or (H, W)), channels.
      patch_size: pixels of a token's side, a power of 2; the stem strides in its last log2(patch_size) convolutions.
      stem_depth: convolutions of the stem: 4 in models of patch 16 and what is adapted from them, 3 in those of 8.
      width, depth, heads, mlp_ratio, qkv_bias: the transformer.
      class_depth: class-attention blocks after it.
      layer_scale: initial factor of each branch.
      tokens_norm: whether class blocks normalise the patches a second time.
      attention: formulation of the class attention, see `attention.IMPLEMENTATIONS`; cross-covariance has one only.
      mean, std: normalisation of the pixels, per channel; empty for none.
      drop_path: rate of every block, not growing with depth; class blocks have none.
      remat, scan: recompute blocks in the backward pass; compile one block for all (class blocks are not scanned).
      dtype, param_dtype: compute and storage precision.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int = 16
    stem_depth: int = 4
    width: int = 384
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_depth: int = 2
    layer_scale: float = 1.0
    tokens_norm: bool = True
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
        check("stem_depth", self.stem_depth, self.stem_depth > 0, "at least 1 convolution")
        doublings = 2 ** (self.stem_depth - 1)
        check("width", self.width, self.width % doublings == 0, f"divisible by {doublings} = 2**(stem_depth - 1)")
        patches = [2**i for i in range(self.stem_depth + 1)]
        check("patch_size", self.patch_size, self.patch_size in patches, f"one of {patches} (stem_depth strides of 2)")
        check("class_depth", self.class_depth, self.class_depth > 0, "at least 1: the class token enters there")
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        divides = not any(side % self.patch_size for side in size)
        check("image_size", self.image_size, divides, f"divisible by patch_size = {self.patch_size}")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = ConvPatchEmbed(self.width, self.patch_size, self.stem_depth, name="patch_embed", **policy)(x, train)
        embedding = positions.FourierPositions(self.width, name="pos_embed", **policy)(*x.shape[1:3])
        x = x + taps.tap(self, "positions", embedding)
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
        patches = x.reshape(x.shape[0], -1, self.width)  # [B,N,D]
        token = self.param("cls_token", initializers.trunc_normal(0.02), (1, 1, self.width), self.param_dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
        for i in range(self.class_depth):
            block = ClassBlock(*sizes, self.tokens_norm, self.attention, name=f"cls_attn_blocks_{i}", **policy)
            token, patches = block(token, patches)
        features = layers.LayerNorm(EPSILON, name="norm", **policy)(token)[:, 0]
        captures.record(self, "features", features)
        return layers.Head(self.num_classes, name="head", **policy)(features)


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = {
    "nano_12": dict(width=128, heads=4, tokens_norm=False),
    "tiny_12": dict(width=192, heads=4),
    "small_12": dict(width=384, heads=8),
    "medium_12": dict(width=512, heads=8),
    "large_12": dict(width=768, heads=16),
    "large_12_h8": dict(width=768, heads=8),
}
DEEP = {
    "tiny_24": dict(width=192, heads=4),
    "small_24": dict(width=384, heads=8),
    "medium_24": dict(width=512, heads=8),
    "large_24": dict(width=768, heads=16),
}
OWN_NORMALISATION = ("medium_12", "large_12", "large_12_h8")  # the Light Recipe's: trained on plain [0,1] pixels

MODELS = {
    "xcit": functools.partial(XCiT),
    **{
        f"xcit_{size}_p{patch}_224": functools.partial(
            XCiT,
            patch_size=patch,
            stem_depth=patch.bit_length() - 1,
            **dimensions,
            **({} if size in OWN_NORMALISATION else IMAGENET),
        )
        for size, dimensions in SIZES.items()
        for patch in (16, 8)
    },
    **{
        f"xcit_{size}_p{patch}_224": functools.partial(
            XCiT,
            patch_size=patch,
            stem_depth=patch.bit_length() - 1,
            depth=24,
            layer_scale=1e-5,
            **dimensions,
            **IMAGENET,
        )
        for size, dimensions in DEEP.items()
        for patch in (16, 8)
    },
    **{
        f"xcit_{size}_p{patch}_32": functools.partial(
            XCiT, num_classes=10, image_size=32, patch_size=patch, **dimensions
        )
        for size, dimensions in SIZES.items()
        for patch in (8, 4, 2)
    },
}
