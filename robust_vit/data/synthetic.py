"""Coloured shapes rendered from a seed: a data set of any size and resolution, for tests and demonstrations."""

from typing import Any

import numpy as np

from robust_vit.data import catalogue, splits
from robust_vit.errors import check
from robust_vit.typing import Source

COLOURS = np.array(
    [[0.9, 0.2, 0.2], [0.2, 0.75, 0.3], [0.25, 0.4, 0.95], [0.9, 0.8, 0.2], [0.8, 0.3, 0.85], [0.2, 0.8, 0.85]],
)
COLOUR_NAMES = ("red", "green", "blue", "yellow", "purple", "cyan")

# Signed "distance" of a point (u, v) to a shape of radius one, u to the right and v down: inside where negative.
SHAPES = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.85,
    "triangle": lambda u, v: np.maximum(v - 0.7, abs(u) * 1.6 - v - 0.9),
    "cross": lambda u, v: np.maximum(np.minimum(abs(u), abs(v)) - 0.3, np.maximum(abs(u), abs(v)) - 1),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) - 0.25,
    "diamond": lambda u, v: abs(u) + abs(v) - 1.1,
}


def synthetic(
    split: str, *, size: int = 32, channels: int = 3, classes: int = 10, examples: int = 1000, seed: int = 0
) -> Source:
    """Opens shapes on a noisy background; the class is the shape (6) and, from the seventh class on, also its colour.

    Args:
      split: "train", "validation" or "test"; each its own draws.
      size: height and width in pixels.
      channels: 1 or 3.
      classes: at most 6 with one channel, 36 with three.
      examples: number in train; validation and test have a fifth each, at least one a class.
      seed: of the draws.
    """
    check("split", split, split in splits.SPLITS, f"one of {', '.join(splits.SPLITS)}")
    return Shapes(split, size, channels, classes, examples, seed)


class Shapes:
    """Renders example i when asked for it, from (seed, split, i)."""

    def __init__(self, split: str, size: int, channels: int, classes: int, examples: int, seed: int):
        most = len(SHAPES) * (1 if channels == 1 else len(COLOURS))
        check("data.options.channels", channels, channels in (1, 3), "1 or 3")
        check("data.options.classes", classes, 2 <= classes <= most, f"between 2 and {most}")
        check("data.options.size", size, size >= 4, "at least 4")
        check("data.options.examples", examples, examples >= 1, "at least 1")
        self.split, self.size, self.channels, self.num_classes, self.seed = split, size, channels, classes, seed
        self.class_names = tuple(_name(label, classes) for label in range(classes))
        self.origin = f"rendered for {split} from seed {seed}"
        self.examples = examples if split == "train" else max(classes, examples // 5)

    def __len__(self) -> int:
        return self.examples

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.examples) % self.num_classes

    def identify(self, index: int) -> str:
        return f"synthetic {self.split}[{index}]"

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        options = (self.split, self.size, self.channels, self.num_classes, self.seed, self.examples)
        return catalogue.sha256(options, indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.examples:
            raise IndexError(f"synthetic {self.split}[{index}] of {self.examples}")
        rng = np.random.default_rng([self.seed, splits.SPLITS.index(self.split), index])
        label = index % self.num_classes
        distance = list(SHAPES.values())[label % len(SHAPES)]
        centre, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0.25, 0.38)
        grid = (np.arange(self.size) + 0.5) / self.size
        u, v = (grid[None, :] - centre[0]) / radius, (grid[:, None] - centre[1]) / radius
        edge = radius * self.size  # one pixel in units of the radius, so that outlines are antialiased
        cover = np.clip(0.5 - distance(u, v) * edge, 0, 1)[..., None]
        colour = COLOURS[label // len(SHAPES) if self.num_classes > len(SHAPES) else index % len(COLOURS)]
        ink = colour * rng.uniform(0.85, 1.1) if self.channels == 3 else np.array([rng.uniform(0.7, 1)])
        background = rng.uniform(0, 0.25) + 0.06 * rng.standard_normal((self.size, self.size, self.channels))
        image = cover * ink + (1 - cover) * background
        return {"image": np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), "label": label}


def _name(label: int, classes: int) -> str:
    """What a label looks like: "disc", and where colour decides too "red disc"."""
    shape = list(SHAPES)[label % len(SHAPES)]
    return f"{COLOUR_NAMES[label // len(SHAPES)]} {shape}" if classes > len(SHAPES) else shape
