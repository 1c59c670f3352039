"""RandAugment as timm has it: so many operations of fifteen at one magnitude, each with a probability.

    rand-m9-mstd0.5-inc1        2 operations, magnitude 9 with noise of 0.5, those whose strength grows with it

Reference: Cubuk et al. 2020, RandAugment, arXiv 1909.13719; github.com/huggingface/pytorch-image-models,
timm/data/auto_augment.py (the op list, the magnitudes, the grammar).
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from robust_vit.data.decoding import load
from robust_vit.data.transforms import operations
from robust_vit.data.transforms.affine import check_look
from robust_vit.data.transforms.images import HostImage, as_pil, check_probability, check_whole, like
from robust_vit.data.transforms.operations import Look, Operation
from robust_vit.errors import check, lookup

FULL = 10.0  # the magnitude that the ranges below are written for
UNIFORM = 100.0  # a deviation above it means: uniform in [0, magnitude]

Section = tuple[str, Callable[[str], Any], Any]  # (keyword, how it is read, what it means when it is left out)
Argument = Callable[[float, int], Any]  # (level = magnitude / 10, drawn sign -1 or 1) -> what the operation takes


def _enhance(level: float, sign: int) -> float:
    return 0.1 + 1.8 * level


def _enhance_increasing(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * level)


# Operation -> what a level means to it, where strength does not have to grow with the level ...
PLAIN: dict[Operation, Argument] = {
    operations.auto_contrast: lambda level, sign: None,
    operations.equalize: lambda level, sign: None,
    operations.invert: lambda level, sign: None,
    operations.rotate: lambda level, sign: sign * 30.0 * level,
    operations.posterize: lambda level, sign: int(4 * level),
    operations.solarize: lambda level, sign: min(256, int(256 * level)),
    operations.solarize_add: lambda level, sign: min(128, int(110 * level)),
    operations.color: _enhance,
    operations.contrast: _enhance,
    operations.brightness: _enhance,
    operations.sharpness: _enhance,
    operations.shear_x: lambda level, sign: sign * 0.3 * level,
    operations.shear_y: lambda level, sign: sign * 0.3 * level,
    operations.translate_x: lambda level, sign: sign * 0.45 * level,
    operations.translate_y: lambda level, sign: sign * 0.45 * level,
}
# ... and where it does ("inc1").
INCREASING: dict[Operation, Argument] = PLAIN | {
    operations.posterize: lambda level, sign: 4 - int(4 * level),
    operations.solarize: lambda level, sign: 256 - min(256, int(256 * level)),
    operations.color: _enhance_increasing,
    operations.contrast: _enhance_increasing,
    operations.brightness: _enhance_increasing,
    operations.sharpness: _enhance_increasing,
}


# The letters of the grammar.
SECTIONS: dict[str, Section] = {
    "m": ("magnitude", float, FULL),
    "mstd": ("deviation", float, 0.0),
    "mmax": ("largest", float, FULL),
    "n": ("operations", int, 2),
    "p": ("probability", float, 0.5),
    "inc": ("increasing", lambda text: bool(int(text)), False),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws `operations` of the fifteen, with replacement, and applies each with `probability`.

    The colour operation leaves images of 1 channel as they are.

    Attributes:
      magnitude: of every operation; 10 is full, in [0, largest].
      deviation: of the normal noise on each one's magnitude, which is cut to [0, largest]; above 100 the magnitude is
        uniform in [0, magnitude].
      increasing: use the forms whose strength grows with the magnitude.
      operations: how many are drawn.
      probability: of applying a drawn one.
      largest: where magnitudes are cut off.
      interpolation, fill: of those that move pixels.
    """

    magnitude: float = 9.0
    deviation: float = 0.5
    increasing: bool = True
    operations: int = 2
    probability: float = 0.5
    largest: float = FULL
    interpolation: str = "bicubic"
    fill: int = 128

    def __post_init__(self) -> None:
        check("rand_augment largest", self.largest, 0 < self.largest < math.inf, "> 0")
        fits = 0 <= self.magnitude <= self.largest
        check("rand_augment magnitude", self.magnitude, fits, f"in [0, {self.largest:g}], the largest (mmax)")
        check("rand_augment deviation", self.deviation, self.deviation >= 0, ">= 0")
        check_whole("rand_augment operations", self.operations, 1)
        check_probability("rand_augment probability", self.probability)
        check_look("rand_augment", self.interpolation, self.fill)

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads timm's grammar, `rand-m9-mstd0.5-inc1`; what is left out means what it means there.

        Raises:
          ValueError: an unknown or unreadable section, or a value outside its range.
        """
        return cls(**read_sections("rand", text, SECTIONS))

    def __call__(self, image: HostImage, rng: np.random.Generator) -> HostImage:
        out, look = load(as_pil(image)), Look(self.interpolation, self.fill)
        for apply, argument in self.draw(rng):
            out = apply(out, argument, look)
        return like(image, out)

    def draw(self, rng: np.random.Generator) -> list[tuple[Operation, Any]]:
        """Draws the operations that are applied, in their order, with their arguments."""
        table = list((INCREASING if self.increasing else PLAIN).items())
        drawn = [table[which] for which in rng.integers(len(table), size=self.operations)]
        kept = [one for one in drawn if rng.random() < self.probability]
        return [(apply, argument(self.level(rng), int(rng.choice((-1, 1))))) for apply, argument in kept]

    def level(self, rng: np.random.Generator) -> float:
        """Draws magnitude / 10."""
        if self.deviation > UNIFORM:
            return rng.uniform(0, self.magnitude) / FULL
        return float(np.clip(rng.normal(self.magnitude, self.deviation), 0, self.largest)) / FULL


def read_sections(family: str, text: str, sections: dict[str, Section]) -> dict[str, Any]:
    """Returns the keywords that `family-letters1-letters2` says, by a table such as `SECTIONS`.

    Raises:
      ValueError: for what it does not say, in one line.
    """
    first, *parts = text.strip().split("-")
    check("data transform", text, first == family, f"written like '{family}-m3'")
    values = {keyword: default for keyword, _, default in sections.values()}
    for part in parts:
        letters, number = re.fullmatch(r"([a-z]*)(.*)", part).groups()
        keyword, read, _ = lookup(f"data transform = {text!r}: section", letters, sections)
        try:
            values[keyword] = read(number)
        except ValueError:
            raise ValueError(f"data transform = {text!r}: section {part!r}: must end in a number") from None
    return values
