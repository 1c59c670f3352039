"""What moves pixels: perspective, the lens, another resolution. All sample bilinearly."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from robust_vit.errors import check
from robust_vit.typing import Array, Keys


def perspective(most: float):
    """Seen from aside: every corner moves by up to `most` of the image's size, to both sides; outside is grey.

    Args:
      most: in [0, 0.3].
    """
    check("most", most, 0 <= most <= 0.3, "in [0, 0.3] of the image's size")

    def stage(keys: Keys, images: Array) -> Array:
        if most == 0:
            return images
        height, width = images.shape[1:3]
        size = jnp.array([height, width], images.dtype)

        def one(key: Array, image: Array) -> Array:
            moved = jax.random.uniform(key, (4, 2), jnp.float32, -most, most).astype(image.dtype)
            corners = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], image.dtype)
            return warped(image, homography(corners * size[None], (corners + moved) * size[None]))

        return jax.vmap(one)(keys, images)

    return stage


def homography(seen: Array, shown: Array) -> Array:
    """The 3x3 matrix that takes four points (row, column) [4,2] to four others: shown ~ H seen."""
    (r, c), (u, v) = seen.T, shown.T
    zero, one = jnp.zeros_like(r), jnp.ones_like(r)
    rows = jnp.stack([r, c, one, zero, zero, zero, -u * r, -u * c], -1)
    columns = jnp.stack([zero, zero, zero, r, c, one, -v * r, -v * c], -1)
    found = jnp.linalg.solve(jnp.concatenate([rows, columns]), jnp.concatenate([u, v]))
    return jnp.concatenate([found, jnp.ones(1, found.dtype)]).reshape(3, 3)


def warped(image: Array, matrix: Array, outside: float = 0.5) -> Array:
    """[H,W,C]: what is at a point is what was at matrix * (row, column, 1); pixels are centred at halves."""
    height, width = image.shape[:2]
    rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    points = jnp.stack([rows, columns, jnp.ones_like(rows)]).astype(image.dtype)
    row, column, scale = jnp.einsum("ij,jhw->ihw", matrix, points)
    return sampled(image, row / scale - 0.5, column / scale - 0.5, outside)


def sampled(image: Array, rows: Array, columns: Array, outside: float | None) -> Array:
    """[H,W,C] at fractional places, bilinearly; outside of the image one value, or that of its nearest pixel."""
    given = {"mode": "nearest"} if outside is None else {"mode": "constant", "cval": outside}
    take = lambda channel: map_coordinates(channel, [rows, columns], order=1, **given)  # noqa: E731
    return jax.vmap(take, in_axes=-1, out_axes=-1)(image)


def lens(most: float):
    """Barrel and pincushion: a point at radius r (1 in the corners) shows what is at r (1 + k r^2), k in [-most, most].

    Args:
      most: in [0, 0.3].
    """
    check("most", most, 0 <= most <= 0.3, "in [0, 0.3]")

    def stage(keys: Keys, images: Array) -> Array:
        if most == 0:
            return images
        draw = lambda key: jax.random.uniform(key, (), jnp.float32, -most, most)  # noqa: E731
        return jax.vmap(distorted)(images, jax.vmap(draw)(keys).astype(images.dtype))

    return stage


def distorted(image: Array, k: Array) -> Array:
    """[H,W,C] through a lens of distortion k; edges are repeated."""
    height, width = image.shape[:2]
    down = (jnp.arange(height) - (height - 1) / 2).astype(image.dtype)
    across = (jnp.arange(width) - (width - 1) / 2).astype(image.dtype)
    squared = (down[:, None] ** 2 + across[None, :] ** 2) / (down[0] ** 2 + across[0] ** 2)
    factor = 1.0 + k * squared
    rows, columns = down[:, None] * factor, across[None, :] * factor
    return sampled(image, rows + (height - 1) / 2, columns + (width - 1) / 2, None)


def resampled(share: float):
    """To a resolution of `share` in either direction, and back: what a camera further away has left.

    Args:
      share: in (0, 1]; the size is rounded, and at least 1 pixel.
    """
    check("share", share, 0 < share <= 1, "above 0 and at most 1")

    def stage(keys: Keys, images: Array) -> Array:
        del keys
        return scaled(scaled(images, share), None, images.shape[1:3])

    return stage


def scaled(images: Array, share: float | None, size: tuple[int, int] | None = None) -> Array:
    """[B,H,W,C] at another size, with a triangle filter as wide as the shrinking asks for (Pillow's BILINEAR)."""
    if size is None:
        size = tuple(max(1, round(share * side)) for side in images.shape[1:3])
    return jax.image.resize(images, (images.shape[0], *size, images.shape[3]), "linear", antialias=True)
