"""The transforms of images on the host by name: crops, colours, affine maps, RandAugment, AugMix.

A transform is a small picklable callable (image, rng) -> image. An image is a uint8 array [H,W,C] or a PIL image:
encoded files stay PIL until the end, so that a JPEG is decoded no larger than the crop needs (`draft`), and resizing
is Pillow's, which published accuracies were measured with. To add one: write it in `data.transforms`, and its line in
TRANSFORMS.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from robust_vit.data.transforms.affine import RandomAffine, Rotation
from robust_vit.data.transforms.augmix import AugMix
from robust_vit.data.transforms.colours import ColorJitter, Rgb
from robust_vit.data.transforms.crops import Flip, RandomCrop, RandomResizedCrop, ResizeCentreCrop
from robust_vit.data.transforms.images import HostImage, Transform, as_array, crop, resized_crop
from robust_vit.data.transforms.rand_augment import RandAugment
from robust_vit.errors import check, lookup, nearest

__all__ = [
    "AugMix",
    "ColorJitter",
    "Flip",
    "HostImage",
    "Image",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomResizedCrop",
    "ResizeCentreCrop",
    "Rgb",
    "Rotation",
    "Transform",
    "as_array",
    "build",
    "crop",
    "names",
    "resized_crop",
]

TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "augmix": AugMix,
    "color_jitter": ColorJitter,
    "flip": Flip,
    "rand_augment": RandAugment,
    "random_affine": RandomAffine,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "resize_centre_crop": ResizeCentreCrop,
    "rgb": Rgb,
    "rotation": Rotation,
}
# What timm and papers write with dashes: `rand-m9-mstd0.5-inc1`, `augmix-m3-w3`.
GRAMMARS: dict[str, Any] = {"rand": RandAugment, "augmix": AugMix}


def names() -> list[str]:
    """Returns the names that `build` knows."""
    return sorted(TRANSFORMS)


def build(specifications: Sequence[str | Transform]) -> tuple[Transform, ...]:
    """Makes transforms from their names.

    Args:
      specifications: each "flip", or with arguments as in Python "random_crop(size=32, padding=4)", or as timm writes
        them "rand-m9-mstd0.5-inc1", or a transform itself.

    Raises:
      ValueError: unknown name or argument, or a value outside its range.
    """
    if isinstance(specifications, str):
        raise ValueError(f"data transforms = {specifications!r}: must be a list of such strings")
    for spec in specifications:
        check("data transform", spec, isinstance(spec, str) or callable(spec), "text such as 'flip', or a function")
    return tuple(_build(spec) if isinstance(spec, str) else spec for spec in specifications)


def _build(specification: str) -> Transform:
    """One transform from "name", "name(argument, keyword=value)", literals only, or a grammar with dashes."""
    family, dash, _ = specification.strip().partition("-")
    if dash and family in GRAMMARS:
        return GRAMMARS[family].parse(specification)
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
    if factory in GRAMMARS.values() and not keywords and len(positional) == 1 and isinstance(positional[0], str):
        return factory.parse(positional[0])
    try:
        inspect.signature(factory).bind(*positional, **keywords)
    except TypeError as error:
        known = inspect.signature(factory).parameters
        hint = "".join(nearest(keyword, known) for keyword in keywords if keyword not in known)
        raise ValueError(f"data transform = {specification!r}: {error}; it takes {', '.join(known)}{hint}") from error
    try:
        return factory(*positional, **keywords)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"data transform = {specification!r}: a value of the wrong kind ({error})") from error
