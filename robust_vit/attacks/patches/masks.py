"""Which pixels a patch covers."""

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.attacks.arguments import check_count
from robust_vit.errors import check
from robust_vit.typing import Array, Keys


def rectangle(height: int, width: int | None = None) -> np.ndarray:
    """[h,w] ones; a square without `width`."""
    check_count("height", height)
    return np.ones((height, height if width is None else width), bool)


def circle(diameter: int) -> np.ndarray:
    """[d,d], true where the centre of a pixel lies in the circle."""
    check_count("diameter", diameter)
    away = np.arange(diameter) - (diameter - 1) / 2
    return away[:, None] ** 2 + away[None, :] ** 2 <= (diameter / 2) ** 2


def check_mask(mask: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """A mask [h,w] that fits into images of shape (H,W,C).

    Raises:
      ValueError: if it is larger, empty, or no [h,w].
    """
    mask = np.asarray(mask, bool)
    height, width = image_shape[:2]
    fits = mask.ndim == 2 and mask.shape[0] <= height and mask.shape[1] <= width
    check("mask", mask.shape, fits, f"[h,w] within the image, {height} by {width} pixels")
    check("mask", "empty", bool(mask.any()), "true for a pixel at least")
    return mask


def where(mask: np.ndarray, image_shape: tuple[int, ...], place: tuple[int, int] | str) -> np.ndarray:
    """The mask in an image of shape (H,W,C), [H,W]: at (row, column) of its upper left corner, or at the "center".

    Raises:
      ValueError: if it sticks out of the image.
    """
    mask = check_mask(mask, image_shape)
    room = np.subtract(image_shape[:2], mask.shape)
    row, column = room // 2 if isinstance(place, str) else place
    inside = 0 <= row <= room[0] and 0 <= column <= room[1]
    check("place", (int(row), int(column)), inside, f"within the image: from (0, 0) to ({room[0]}, {room[1]})")
    found = np.zeros(image_shape[:2], bool)
    found[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
    return found


def anywhere(keys: Keys, mask: np.ndarray, image_shape: tuple[int, ...]) -> Array:
    """The mask at a uniformly drawn place of each image, [B,H,W]."""
    mask = check_mask(mask, image_shape)
    room = np.subtract(image_shape[:2], mask.shape)
    canvas = jnp.zeros(image_shape[:2], bool)

    def one(key: Array) -> Array:
        place = jax.random.randint(key, (2,), 0, jnp.asarray(room) + 1)
        return jax.lax.dynamic_update_slice(canvas, jnp.asarray(mask), (place[0], place[1]))

    return jax.vmap(one)(keys)
