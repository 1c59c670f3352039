"""The two forms an image has on the host, uint8 array and PIL image, and what every transform needs of them."""

import math
import numbers
from collections.abc import Callable

import numpy as np
from PIL import Image

from robust_vit.data.decoding import MODES, load
from robust_vit.errors import check, lookup

HostImage = np.ndarray | Image.Image
Transform = Callable[[HostImage, np.random.Generator], HostImage]
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def as_pil(image: HostImage) -> Image.Image:
    """Returns a PIL image; an array must have 1 or 3 channels."""
    if isinstance(image, Image.Image):
        return image
    check("channels of an image to resize", image.shape[-1], image.shape[-1] in MODES, "1 or 3")
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def as_array(image: HostImage, channels: int | None = None) -> np.ndarray:
    """Returns uint8 [H,W,C]; a PIL image becomes grey or colour as `channels` asks."""
    if isinstance(image, Image.Image):
        image = load(image)
        pixels = np.asarray(image if channels is None else image.convert(MODES[channels]))
        return pixels[..., None] if pixels.ndim == 2 else pixels
    return image


def like(image: HostImage, made: Image.Image) -> HostImage:
    """Returns `made` in the form that `image` came in."""
    return made if isinstance(image, Image.Image) else as_array(made)


def size_of(image: HostImage) -> tuple[int, int]:
    """Returns (height, width)."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def crop(image: HostImage, top: int, left: int, height: int, width: int) -> HostImage:
    """Cuts a box out of an image."""
    if isinstance(image, Image.Image):
        return load(image).crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


def resized_crop(image: HostImage, box: tuple[int, int, int, int], size: int, interpolation: str) -> HostImage:
    """Cuts `box` (top, left, height, width) and resizes it to size x size.

    A JPEG is first decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that still has `size` pixels in the box. That costs a
    little sharpness, which augmentation can spare, and saves most of the time on large photographs.
    """
    pil = as_pil(image)
    top, left, height, width = box
    full_height, full_width = pil.height, pil.width
    if getattr(pil, "format", None) == "JPEG":
        shrink = max(1.0, min(height, width) / size)
        pil.draft(None, (math.ceil(full_width / shrink), math.ceil(full_height / shrink)))
    pil = load(pil)
    y, x = pil.height / full_height, pil.width / full_width
    area = (left * x, top * y, (left + width) * x, (top + height) * y)
    return like(image, pil.resize((size, size), INTERPOLATIONS[interpolation], box=area))


def check_size(size: int, interpolation: str) -> None:
    """Raises ValueError unless images can be resized so."""
    check_whole("crop size", size, 1)
    lookup("interpolation", interpolation, INTERPOLATIONS)


def check_whole(field: str, value: int, low: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least `low`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    check(field, value, whole and value >= low, "at least 1" if low == 1 else f"a whole number >= {low}")


def check_probability(field: str, value: float) -> None:
    """Raises ValueError unless `value` is a probability."""
    check(field, value, 0 <= value <= 1, "a probability, in [0, 1]")


def check_range(field: str, value: tuple[float, float], top: float = math.inf) -> None:
    """Raises ValueError unless `value` is (low, high) with 0 < low <= high <= top."""
    two = isinstance(value, tuple | list) and len(value) == 2
    allowed = "0 < low <= high" if top == math.inf else f"0 < low <= high <= {top:g}"
    check(field, value, two and 0 < value[0] <= value[1] <= top and math.isfinite(value[1]), allowed)
