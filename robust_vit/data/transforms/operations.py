"""The elementary operations that RandAugment and AugMix draw from, each (image, argument, look) -> image.

They are Pillow's, which the papers measured with; a look-up table takes the place of those that newer versions of it no
longer allow at the ends of their ranges. All take images of 1 and of 3 channels; `color` leaves the former as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from robust_vit.data.transforms.affine import inverse_map, warp


class Look(NamedTuple):
    """How an operation that moves pixels fills what it has to make up."""

    interpolation: str  # nearest, bilinear or bicubic
    fill: int  # grey level of 0..255


Operation = Callable[[Image.Image, Any, Look], Image.Image]


def auto_contrast(image: Image.Image, _: Any, look: Look) -> Image.Image:
    """Stretches the range of each channel to 0..255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, _: Any, look: Look) -> Image.Image:
    """Makes the histogram of each channel flat."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, _: Any, look: Look) -> Image.Image:
    """The negative."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, degrees: float, look: Look) -> Image.Image:
    """Turns counterclockwise about the centre."""
    return warp(image, inverse_map(image.size, degrees), *look)


def posterize(image: Image.Image, bits: int, look: Look) -> Image.Image:
    """Keeps the upper `bits` of 8; none of them leaves black."""
    mask = ~((1 << (8 - max(bits, 0))) - 1)
    return _mapped(image, [level & mask for level in range(256)])


def solarize(image: Image.Image, threshold: int, look: Look) -> Image.Image:
    """Inverts levels from `threshold` on."""
    return _mapped(image, [level if level < threshold else 255 - level for level in range(256)])


def solarize_add(image: Image.Image, addition: int, look: Look) -> Image.Image:
    """Adds to levels below 128."""
    return _mapped(image, [min(255, level + addition) if level < 128 else level for level in range(256)])


def color(image: Image.Image, factor: float, look: Look) -> Image.Image:
    """Saturation: 0 is grey, 1 the image."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float, look: Look) -> Image.Image:
    """Distance from the mean grey: 0 is that grey, 1 the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float, look: Look) -> Image.Image:
    """0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float, look: Look) -> Image.Image:
    """0 is smoothed, 1 the image, 2 sharpened."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def shear_x(image: Image.Image, slope: float, look: Look) -> Image.Image:
    """Moves each row by `slope` times its distance from the top."""
    return warp(image, (1, slope, 0, 0, 1, 0), *look)


def shear_y(image: Image.Image, slope: float, look: Look) -> Image.Image:
    """Moves each column by `slope` times its distance from the left."""
    return warp(image, (1, 0, 0, slope, 1, 0), *look)


def translate_x(image: Image.Image, share: float, look: Look) -> Image.Image:
    """Moves by a share of the width, to the left."""
    return warp(image, (1, 0, share * image.width, 0, 1, 0), *look)


def translate_y(image: Image.Image, share: float, look: Look) -> Image.Image:
    """Moves by a share of the height, up."""
    return warp(image, (1, 0, 0, 0, 1, share * image.height), *look)


def _mapped(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))
