"""AugMix: chains of operations, mixed with one another and with the image itself.

Reference: Hendrycks et al. 2020, AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty,
arXiv 1912.02781; github.com/google-research/augmix.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from robust_vit.data.decoding import load
from robust_vit.data.transforms import operations
from robust_vit.data.transforms.affine import check_look
from robust_vit.data.transforms.images import HostImage, as_pil, check_whole, like
from robust_vit.data.transforms.operations import Look, Operation
from robust_vit.data.transforms.rand_augment import Argument, Section, read_sections
from robust_vit.errors import check

DRAWN = -1  # depth: 1, 2 or 3 operations a chain
# The nine operations that are no corruption of ImageNet-C, and what a level of 0..1 means to each. The reference cuts
# angles and shifts down to whole degrees and pixels, which would leave none in small images.
TABLE: dict[Operation, Argument] = {
    operations.auto_contrast: lambda level, sign: None,
    operations.equalize: lambda level, sign: None,
    operations.posterize: lambda level, sign: 4 - int(4 * level),
    operations.rotate: lambda level, sign: sign * 30.0 * level,
    operations.solarize: lambda level, sign: 256 - int(256 * level),
    operations.shear_x: lambda level, sign: sign * 0.3 * level,
    operations.shear_y: lambda level, sign: sign * 0.3 * level,
    operations.translate_x: lambda level, sign: sign * level / 3,
    operations.translate_y: lambda level, sign: sign * level / 3,
}


# The letters of the grammar, as in timm.
SECTIONS: dict[str, Section] = {
    "m": ("severity", float, 3.0),
    "w": ("width", int, 3),
    "d": ("depth", int, DRAWN),
    "a": ("alpha", float, 1.0),
}


@dataclasses.dataclass(frozen=True)
class AugMix:
    """(1 - m) x + m sum_i w_i chain_i(x), with m ~ Beta(alpha, alpha) and w ~ Dirichlet(alpha, ...).

    Attributes:
      severity: each operation's level is uniform in [0.1, severity] of 10.
      width: how many chains.
      depth: operations a chain; -1 draws 1, 2 or 3 for each.
      alpha: of both distributions.
      interpolation, fill: of those that move pixels.
    """

    severity: float = 3.0
    width: int = 3
    depth: int = DRAWN
    alpha: float = 1.0
    interpolation: str = "bilinear"
    fill: int = 0

    def __post_init__(self) -> None:
        check("augmix severity", self.severity, 0.1 <= self.severity <= 10, "in [0.1, 10]")
        check_whole("augmix width", self.width, 1)
        check_whole("augmix depth", self.depth, DRAWN)
        check("augmix depth", self.depth, self.depth != 0, "at least 1, or -1: 1 to 3, drawn")
        check("augmix alpha", self.alpha, 0 < self.alpha < float("inf"), "> 0")
        check_look("augmix", self.interpolation, self.fill)

    @classmethod
    def parse(cls, text: str) -> "AugMix":
        """Reads `augmix-m3-w3-d2-a1`.

        Raises:
          ValueError: an unknown or unreadable section, or a value outside its range.
        """
        return cls(**read_sections("augmix", text, SECTIONS))

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        pil = load(as_pil(image))
        weights, m = rng.dirichlet([self.alpha] * self.width), rng.beta(self.alpha, self.alpha)
        mixed = (1 - m) * np.asarray(pil, np.float64)
        for weight in weights:
            mixed += m * weight * np.asarray(self.chain(pil, rng), np.float64)
        return like(image, Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8)))

    def chain(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Applies the operations of one chain, one after the other."""
        look = Look(self.interpolation, self.fill)
        for apply, argument in self.draw(rng):
            image = apply(image, argument, look)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[Operation, Any]]:
        """Draws the operations of one chain, with their arguments."""
        table = list(TABLE.items())
        depth = int(rng.integers(1, 4)) if self.depth == DRAWN else self.depth
        drawn = [table[which] for which in rng.integers(len(table), size=depth)]
        levels = rng.uniform(0.1, self.severity, depth) / 10
        return [(apply, argument(level, int(rng.choice((-1, 1))))) for (apply, argument), level in zip(drawn, levels)]
