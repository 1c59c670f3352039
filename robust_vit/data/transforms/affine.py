"""Rotation, shift and zoom by fractions of a pixel: what a small image, such as a digit of 8x8, is moved by."""

import dataclasses
import math

import numpy as np
from PIL import Image

from robust_vit.data.decoding import load
from robust_vit.data.transforms.images import INTERPOLATIONS, HostImage, as_pil, check_range, check_whole, like
from robust_vit.errors import check, lookup

WARPS = {name: INTERPOLATIONS[name] for name in ("nearest", "bilinear", "bicubic")}  # what Pillow transforms with


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Turns about the centre by an angle uniform in [-degrees, degrees]; corners that come in show `fill`.

    Attributes:
      degrees: in [0, 180].
      interpolation: nearest, bilinear or bicubic.
      fill: grey level of 0..255.
    """

    degrees: float
    interpolation: str = "bilinear"
    fill: int = 0

    def __post_init__(self) -> None:
        check("rotation degrees", self.degrees, 0 <= self.degrees <= 180, "in [0, 180]")
        check_look("rotation", self.interpolation, self.fill)

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        pil = load(as_pil(image))
        angle = rng.uniform(-self.degrees, self.degrees)
        return like(image, warp(pil, inverse_map(pil.size, angle), self.interpolation, self.fill))


@dataclasses.dataclass(frozen=True)
class RandomAffine:
    """Turns, shifts and zooms about the centre, in one interpolation; what comes in from outside shows `fill`.

    Attributes:
      degrees: the angle is uniform in [-degrees, degrees].
      translate: the shifts to the right and down are uniform in [-translate, translate], in pixels, fractions too.
      scale: range of the zoom, uniform.
      interpolation: nearest, bilinear or bicubic.
      fill: grey level of 0..255.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    interpolation: str = "bilinear"
    fill: int = 0

    def __post_init__(self) -> None:
        check("random_affine degrees", self.degrees, 0 <= self.degrees <= 180, "in [0, 180]")
        check("random_affine translate", self.translate, 0 <= self.translate < math.inf, ">= 0, in pixels")
        check_range("random_affine scale", self.scale)
        check_look("random_affine", self.interpolation, self.fill)

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        pil = load(as_pil(image))
        allowed = f"below the image's {min(pil.size)} pixels, or nothing of it is left"
        check("random_affine translate", self.translate, self.translate < min(pil.size), allowed)
        angle, scale = rng.uniform(-self.degrees, self.degrees), rng.uniform(*self.scale)
        shift = rng.uniform(-self.translate, self.translate, 2)
        return like(image, warp(pil, inverse_map(pil.size, angle, shift, scale), self.interpolation, self.fill))


def inverse_map(
    size: tuple[int, int], angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0
) -> tuple[float, ...]:
    """Returns (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).

    Args:
      size: (width, height); pixel centres lie at halves.
      angle: in degrees, counterclockwise about the centre.
      shift: to the right and down, in pixels.
      scale: zoom about the centre, 2 shows everything twice as large.
    """
    x, y = size[0] / 2, size[1] / 2
    cosine, sine = (
        round(function(math.radians(angle)), 15) for function in (math.cos, math.sin)
    )  # a right angle is one
    a, b = cosine / scale, -sine / scale
    x_moved, y_moved = x + shift[0], y + shift[1]
    return a, b, x - a * x_moved - b * y_moved, -b, a, y + b * x_moved - a * y_moved


def warp(image: Image.Image, matrix: tuple[float, ...], interpolation: str, fill: int) -> Image.Image:
    """Shows at (x, y) what the image has at `matrix` of it, and `fill` where it has nothing."""
    colour = fill if image.mode == "L" else (fill,) * len(image.getbands())
    return image.transform(image.size, Image.Transform.AFFINE, matrix, WARPS[interpolation], fillcolor=colour)


def check_look(name: str, interpolation: str, fill: int) -> None:
    """Raises ValueError unless images can be warped with these."""
    lookup(f"{name} interpolation", interpolation, WARPS)
    check_whole(f"{name} fill", fill, 0)
    check(f"{name} fill", fill, fill <= 255, "a grey level of 0..255")
