"""Per-image transforms on the host: crop, flip, resize; uint8 in, uint8 out.

A transform is a small picklable callable (image, rng) -> image. An image is a uint8 array [H,W,C] or a PIL image:
encoded files stay PIL until the end, so that a JPEG is decoded no larger than the crop needs (`draft`), and resizing
is Pillow's, which published accuracies were measured with.
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

from robust_vit.data.decoding import MODES, load
from robust_vit.errors import check, lookup, nearest

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


def size_of(image: HostImage) -> tuple[int, int]:
    """Returns (height, width)."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


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
    out = pil.resize((size, size), INTERPOLATIONS[interpolation], box=area)
    return out if isinstance(image, Image.Image) else as_array(out)


def crop(image: HostImage, top: int, left: int, height: int, width: int) -> HostImage:
    """Cuts a box out of an image."""
    if isinstance(image, Image.Image):
        return load(image).crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect, resized to size x size (Szegedy et al. 2015; as in torchvision).

    Attributes:
      size: output height and width.
      scale: range of the box's area, as a fraction of the image.
      ratio: range of width / height, drawn log-uniformly.
      interpolation: nearest, bilinear, bicubic or lanczos.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _check_size(self.size, self.interpolation)
        check("random_resized_crop scale", self.scale, 0 < self.scale[0] <= self.scale[1] <= 1, "0 < low <= high <= 1")
        check("random_resized_crop ratio", self.ratio, 0 < self.ratio[0] <= self.ratio[1], "0 < low <= high")

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
    """Pads every side by `padding` zeros (or mirrored pixels) and cuts size x size at random, as for CIFAR."""

    size: int
    padding: int = 0
    reflect: bool = False

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        pixels = as_array(image)
        border = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        pixels = np.pad(pixels, border, mode="reflect" if self.reflect else "constant")
        height, width = pixels.shape[:2]
        check("random_crop size", self.size, self.size <= min(height, width), f"at most the padded {height}x{width}")
        top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        return crop(pixels, int(top), int(left), self.size, self.size)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with probability p."""

    p: float = 0.5

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
        _check_size(self.size, self.interpolation)
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
        out = crop(pil, top, left, self.size, self.size)
        return out if isinstance(image, Image.Image) else as_array(out)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Scales brightness, contrast and saturation, in random order, by factors uniform in [1 - s, 1 + s]."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        out = load(as_pil(image))
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = (self.brightness, self.contrast, self.saturation)
        for which in rng.permutation(3):
            factor = rng.uniform(max(0.0, 1 - strengths[which]), 1 + strengths[which])
            if strengths[which]:
                out = enhancers[which](out).enhance(factor)
        return out if isinstance(image, Image.Image) else as_array(out)


@dataclasses.dataclass(frozen=True)
class Rgb:
    """Repeats a grey image into three channels."""

    def __call__(self, image: HostImage, rng: np.random.Generator | None = None) -> HostImage:
        if isinstance(image, Image.Image):
            return load(image).convert("RGB")
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


TRANSFORMS = {
    "random_resized_crop": RandomResizedCrop,
    "random_crop": RandomCrop,
    "flip": Flip,
    "resize_centre_crop": ResizeCentreCrop,
    "color_jitter": ColorJitter,
    "rgb": Rgb,
}


def names() -> list[str]:
    """Returns the names that `build` knows."""
    return sorted(TRANSFORMS)


def build(specifications: Sequence[str | Transform]) -> tuple[Transform, ...]:
    """Makes transforms from their names.

    Args:
      specifications: each "flip", or with arguments as in Python "random_crop(size=32, padding=4)", or a transform
        itself.

    Raises:
      ValueError: unknown name or argument.
    """
    if isinstance(specifications, str):
        raise ValueError(f"data transforms = {specifications!r}: must be a list of such strings")
    return tuple(_build(spec) if isinstance(spec, str) else spec for spec in specifications)


def _build(specification: str) -> Transform:
    """One transform from "name" or "name(argument, keyword=value)", literals only."""
    try:
        tree = ast.parse(specification.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        name, positional = call.func.id, [ast.literal_eval(node) for node in call.args]
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(
            f"data transform = {specification!r}: must read like 'flip' or 'random_crop(32, padding=4)'"
        ) from error
    factory = lookup("data transform", name, TRANSFORMS)
    try:
        inspect.signature(factory).bind(*positional, **keywords)
    except TypeError as error:
        known = inspect.signature(factory).parameters
        hint = "".join(nearest(keyword, known) for keyword in keywords if keyword not in known)
        raise ValueError(f"data transform = {specification!r}: {error}; it takes {', '.join(known)}{hint}") from error
    return factory(*positional, **keywords)


def _check_size(size: int, interpolation: str) -> None:
    check("crop size", size, size >= 1, "at least 1")
    lookup("interpolation", interpolation, INTERPOLATIONS)
