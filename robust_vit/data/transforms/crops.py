"""Where an image is looked at: crops, resizing, mirroring."""

import dataclasses
import math

import numpy as np
from PIL import Image

from robust_vit.data.decoding import load
from robust_vit.data.transforms.images import (
    INTERPOLATIONS,
    HostImage,
    as_array,
    as_pil,
    check_probability,
    check_range,
    check_size,
    check_whole,
    crop,
    like,
    resized_crop,
    size_of,
)
from robust_vit.errors import check


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect, resized to size x size (Szegedy et al. 2015; as in torchvision).

    Attributes:
      size: output height and width.
      scale: range of the box's area, as a fraction of the image; a box that does not fit is drawn again, so that a high
        end above 1 means more of the largest boxes.
      ratio: range of width / height, drawn log-uniformly.
      interpolation: nearest, bilinear, bicubic or lanczos.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        check_size(self.size, self.interpolation)
        check_range("random_resized_crop scale", self.scale)
        check("random_resized_crop scale", self.scale, self.scale[0] <= 1, "at most 1 at its low end")
        check_range("random_resized_crop ratio", self.ratio)

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        return resized_crop(image, self.box(*size_of(image), rng), self.size, self.interpolation)

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width); after ten that do not fit, the largest centred box of allowed aspect."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Pads every side by `padding` pixels and cuts size x size at random, as for CIFAR.

    Attributes:
      size: output height and width.
      padding: pixels on every side.
      reflect: whether they mirror the image; else they show `fill`.
      fill: grey level of 0..255.
    """

    size: int
    padding: int = 0
    reflect: bool = False
    fill: int = 0

    def __post_init__(self) -> None:
        check_whole("random_crop size", self.size, 1)
        check_whole("random_crop padding", self.padding, 0)
        check_whole("random_crop fill", self.fill, 0)
        check("random_crop fill", self.fill, self.fill <= 255, "a grey level of 0..255")
        check("random_crop fill", self.fill, not (self.reflect and self.fill), "left out with reflect")

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        pixels = as_array(image)
        if self.reflect:
            mirrored = min(pixels.shape[:2]) - 1
            check("random_crop padding", self.padding, self.padding <= mirrored, f"at most {mirrored}, to be mirrored")
        border = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        look = dict(mode="reflect") if self.reflect else dict(constant_values=self.fill)
        pixels = np.pad(pixels, border, **look)
        height, width = pixels.shape[:2]
        check("random_crop size", self.size, self.size <= min(height, width), f"at most the padded {height}x{width}")
        top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        return crop(pixels, int(top), int(left), self.size, self.size)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability("flip p", self.p)

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        if rng.random() >= self.p:
            return image
        if isinstance(image, Image.Image):
            return load(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image[:, ::-1]


@dataclasses.dataclass(frozen=True)
class ResizeCentreCrop:
    """Resizes the shorter side to floor(size / crop_fraction) and cuts the central size x size: for evaluation.

    crop_fraction 0.875 at size 224 is RobustBench's Resize(256) + CenterCrop(224), pixel for pixel with torchvision
    on PIL images; 1.0 only resizes and cuts. The JPEG is decoded in full, as published evaluations do.
    """

    size: int
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        check_size(self.size, self.interpolation)
        check("resize_centre_crop crop_fraction", self.crop_fraction, 0 < self.crop_fraction <= 1, "in (0, 1]")

    def __call__(self, image: HostImage, rng: np.random.Generator | None = None) -> HostImage:
        pil = load(as_pil(image))
        short = math.floor(self.size / self.crop_fraction)
        scale = short / min(pil.width, pil.height)
        # torchvision truncates the longer side: int(size * long / short).
        width, height = (
            (short, int(short * pil.height / pil.width))
            if scale * pil.width <= scale * pil.height
            else (int(short * pil.width / pil.height), short)
        )
        if (width, height) != pil.size:
            pil = pil.resize((width, height), INTERPOLATIONS[self.interpolation])
        top, left = int(round((height - self.size) / 2.0)), int(round((width - self.size) / 2.0))
        return like(image, crop(pil, top, left, self.size, self.size))
