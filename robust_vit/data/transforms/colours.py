"""What colours an image has: jitter, grey into colour."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from robust_vit.data.decoding import load
from robust_vit.data.transforms.images import HostImage, as_pil, like
from robust_vit.errors import check


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Scales brightness, contrast and saturation, in random order, by factors uniform in [1 - s, 1 + s]."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            check(f"color_jitter {name}", value, value >= 0, ">= 0")

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        out = load(as_pil(image))
        useless = self.saturation and out.mode == "L"
        check("color_jitter saturation", self.saturation, not useless, "0 for images of 1 channel, which have none")
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = (self.brightness, self.contrast, self.saturation)
        for which in rng.permutation(3):
            factor = rng.uniform(max(0.0, 1 - strengths[which]), 1 + strengths[which])
            if strengths[which]:
                out = enhancers[which](out).enhance(factor)
        return like(image, out)


@dataclasses.dataclass(frozen=True)
class Rgb:
    """Repeats a grey image into three channels."""

    def __call__(self, image: HostImage, rng: np.random.Generator | None = None) -> HostImage:
        if isinstance(image, Image.Image):
            return load(image).convert("RGB")
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
