"""Which points stand, which attack broke the others, and by which image."""

import numpy as np

from robust_vit.evaluation.points import Points, as_float
from robust_vit.evaluation.verification import BROKEN, NONFINITE, ROBUST


class Standings:
    """The state of every point, by row.

    Args:
      status: [N] after the clean pass.

    Attributes:
      status: [N] "robust", "broken", "misclassified" or "non-finite logits".
      suspect: rows where an attack met values that are not numbers.
    """

    def __init__(self, status: np.ndarray):
        self.status = status.copy()
        self.suspect: set[int] = set()
        self._by: dict[int, tuple[str, int]] = {}  # row -> (attack, item) that broke it
        self._images: dict[int, np.ndarray] = {}

    def robust(self) -> list[int]:
        """The rows that stand."""
        return [int(row) for row in np.flatnonzero(self.status == ROBUST)]

    def broke(self, row: int, attack: str, item: int, image: np.ndarray) -> None:
        """Takes a point as broken; of several items of an attack the lowest keeps the image, whichever came first."""
        if row not in self._by or (self._by[row][0] == attack and item < self._by[row][1]):
            self.status[row], self._by[row], self._images[row] = BROKEN, (attack, item), image

    def void_suspects(self) -> int:
        """Takes the points that stand, but whose attacks met values that are not numbers, as neither robust nor
        broken; returns how many.
        """
        void = [row for row in self.suspect if self.status[row] == ROBUST]
        self.status[void] = NONFINITE
        return len(void)

    @property
    def broken(self) -> int:
        """How many points an attack broke."""
        return len(self._images)

    def broken_by(self) -> list[str]:
        """[N] name of the attack that broke each point, or ""."""
        return [self._by.get(row, ("",))[0] for row in range(len(self.status))]

    def adversarial(self, points: Points) -> np.ndarray:
        """[N,H,W,C] float32: the image that broke each point, the clean one elsewhere."""
        images = as_float(points.images)
        for row, image in self._images.items():
            images[row] = image
        return images
