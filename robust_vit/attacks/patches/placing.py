"""A patch in an image: somewhere, turned, scaled and lit, differentiably."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from robust_vit.attacks.arguments import check_count
from robust_vit.errors import check
from robust_vit.typing import Array, Keys


class Patch(NamedTuple):
    """A patch.

    Attributes:
      pixels: [h,w,C] in [0,1].
      mask: [h,w] bool, which of them there are.
    """

    pixels: Array
    mask: np.ndarray


class Placement(NamedTuple):
    """What is drawn for each image.

    Attributes:
      scale: (least, most) of the patch's size.
      rotation: largest angle in degrees, to either side.
      brightness: largest change, to either side, added to all values.
      anywhere: whether the place is drawn, so that the whole patch is inside; otherwise the middle.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 22.5
    brightness: float = 0.05
    anywhere: bool = True

    def check(self) -> "Placement":
        """Itself.

        Raises:
          ValueError: for a field out of its range.
        """
        low, high = self.scale
        check("scale", self.scale, 0 < low <= high, "(least, most), above 0")
        check("rotation", self.rotation, 0 <= self.rotation <= 180, "in [0, 180] degrees")
        check("brightness", self.brightness, 0 <= self.brightness <= 1, "in [0, 1]")
        return self


USUAL = Placement()  # of Brown et al. 2017, but for the scale
STILL = Placement(rotation=0.0, brightness=0.0, anywhere=False)


def placed(keys: Keys, patch: Patch, images: Array, placement: Placement = USUAL) -> Array:
    """The images with the patch on each.

    Args:
      keys: [B] typed keys.
      patch: the patch.
      images: [B,H,W,C] in [0,1].
      placement: what is drawn; see `Placement`.

    Returns:
      [B,H,W,C]; sampled bilinearly, and mixed with the image at the patch's edge.
    """
    height, width, _ = images.shape[1:]
    h, w = patch.mask.shape
    solid = jnp.asarray(patch.mask, images.dtype)[..., None]
    layers = jnp.concatenate([patch.pixels.astype(images.dtype) * solid, solid], -1)  # [h,w,C+1]

    def one(key: Array, image: Array) -> Array:
        sizing, turning, lighting, down, across = jax.random.split(key, 5)
        scale = jax.random.uniform(sizing, minval=placement.scale[0], maxval=placement.scale[1])
        angle = jnp.deg2rad(jax.random.uniform(turning, minval=-1.0, maxval=1.0) * placement.rotation)
        light = jax.random.uniform(lighting, minval=-1.0, maxval=1.0) * placement.brightness
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        half = 0.5 * scale * jnp.array([h * jnp.abs(cos) + w * jnp.abs(sin), w * jnp.abs(cos) + h * jnp.abs(sin)])
        room = jnp.maximum(jnp.array([height, width]) - 2 * half, 0.0) if placement.anywhere else jnp.zeros(2)
        shift = room * (jnp.stack([jax.random.uniform(down), jax.random.uniform(across)]) - 0.5)
        rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
        y, x = rows - height / 2 - shift[0], columns - width / 2 - shift[1]
        into = [(cos * y + sin * x) / scale + h / 2 - 0.5, (cos * x - sin * y) / scale + w / 2 - 0.5]
        sample = jax.vmap(lambda layer: map_coordinates(layer, into, order=1, mode="constant"), in_axes=-1, out_axes=-1)
        found = sample(layers)  # [H,W,C+1], premultiplied by the mask
        shown, cover = found[..., :-1], found[..., -1:]
        return jnp.clip(image * (1 - cover) + shown + light.astype(image.dtype) * cover, 0.0, 1.0)

    return jax.vmap(one)(keys, images)


def random_patch(key: Array, mask: np.ndarray, channels: int) -> Patch:
    """A patch of uniform noise: what any found one has to beat."""
    check_count("channels", channels)
    return Patch(jax.random.uniform(key, (*mask.shape, channels)), mask)
