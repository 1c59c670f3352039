"""A masked autoencoder on a ViT: the encoder reads some patches, a light decoder paints the others.

Called with images it is the ViT that it will become: the same weights under the same names, so that fine-tuning takes
them from here and leaves the decoder. Called with `Masked`, it reconstructs; see `objectives.mimir`.

References: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377; the light decoder:
Xu et al., MIMIR, 2023, arXiv 2312.04960. Positions are those of the ViT (there: fixed, in two dimensions).
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.models.families import vit
from robust_vit.models.parts import initializers, layers, positions
from robust_vit.typing import Array

DECODER = ("decoder_", "mask_token")  # begin the names of what only paints


class Masked(NamedTuple):
    """Images of which the encoder sees some patches."""

    images: Array  # [B,H,W,C] in [0,1]
    visible: Array  # [B,V] int: numbers of the patches, row by row; as many in every image


class Reconstruction(NamedTuple):
    """What comes back for `Masked`."""

    patches: Array  # [B,N,p*p*C]: the predicted pixels of every patch, as `patchify` orders them
    latent: Array  # [B,prefix+V,D]: the encoder's last tokens


def patchify(images: Array, size: int) -> Array:
    """[B,H,W,C] -> [B,N,p*p*C]: patches row by row, and in each the pixels row by row."""
    b, height, width, c = images.shape
    h, w = height // size, width // size
    x = images[:, : h * size, : w * size].reshape(b, h, size, w, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, size * size * c)


class MaskedAutoencoder(vit.ViT):
    """Images [B,H,W,C] in [0,1] -> logits [B,K], as a ViT; `Masked` -> `Reconstruction`.

    Fields:
      those of ViT; positions must not be "relative".
      decoder_width, decoder_depth, decoder_heads: of the decoder, a ViT of its own on all patches.
    """

    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 16

    @nn.nowrap
    def validate(self) -> None:
        """Raises ValueError, in one line, where the fields do not make a model."""
        super().validate()
        check("positions", self.positions, self.positions != "relative", "'learned', 'sinusoidal' or 'none'")
        divides = self.decoder_width % self.decoder_heads == 0
        check("decoder_width", self.decoder_width, divides, f"divisible by decoder_heads = {self.decoder_heads}")

    @nn.compact
    def __call__(self, images: Array | Masked, train: bool = False) -> Array | Reconstruction:
        masked = isinstance(images, Masked)
        pixels = images.images if masked else images
        x = self._embed(pixels)  # [B,prefix+N,D]
        if masked:
            patches = jnp.take_along_axis(x[:, self.prefix :], images.visible[..., None], axis=1)
            x = jnp.concatenate([x[:, : self.prefix], patches], axis=1)  # [B,prefix+V,D]
        x = self._transform(x, train)
        logits = None if masked else self._classify(x)
        if not masked and not self.is_initializing():
            return logits
        every = jnp.broadcast_to(jnp.arange(x.shape[1] - self.prefix)[None], (len(x), x.shape[1] - self.prefix))
        found = self._decode(x, images.visible if masked else every, pixels.shape)
        return found if masked else logits

    def _decode(self, x: Array, visible: Array, shape: tuple[int, ...]) -> Reconstruction:
        """Puts the encoded patches where they belong and the mask token elsewhere, and predicts every patch."""
        policy = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = policy | dict(kernel_init=initializers.INITS[self.initializer])
        width, prefix = self.decoder_width, self.prefix
        latent = layers.LayerNorm(self.norm_epsilon, name="decoder_input_norm", **policy)(x)
        x = layers.Dense(width, name="decoder_embed", **dense)(latent)
        token = self.param("mask_token", initializers.trunc_normal(0.02), (1, 1, width), self.param_dtype)
        count = self.grid[0] * self.grid[1]
        canvas = jnp.broadcast_to(token.astype(x.dtype), (len(x), count, width))
        canvas = canvas.at[jnp.arange(len(x))[:, None], visible].set(x[:, prefix:])
        x = jnp.concatenate([x[:, :prefix], canvas], axis=1)  # [B,prefix+N,width]
        x = x + jnp.asarray(positions.sinusoidal(prefix + count, width), x.dtype)[None]
        block = functools.partial(vit.Block, self.decoder_heads, self.mlp_ratio, self.qkv_bias, **_like(self))
        for i in range(self.decoder_depth):
            x = block(name=f"decoder_blocks_{i}")(x)
        x = layers.LayerNorm(self.norm_epsilon, name="decoder_norm", **policy)(x[:, prefix:])
        out = self.patch_size**2 * shape[-1]
        return Reconstruction(layers.Head(out, name="decoder_pred", **dense)(x), latent)


def _like(module: vit.ViT) -> dict[str, Any]:
    """What the decoder's blocks have of the encoder's."""
    names = ("norm_epsilon", "attention", "initializer", "dtype", "param_dtype")
    return {name: getattr(module, name) for name in names}


MODELS = {
    "masked_autoencoder": functools.partial(MaskedAutoencoder),
    **{
        f"masked_autoencoder_{size}_patch16_224": functools.partial(MaskedAutoencoder, **dimensions)
        for size, dimensions in dict(tiny=vit.TINY, small=vit.SMALL, base=vit.BASE).items()
    },
}
