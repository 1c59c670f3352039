"""What an evaluation attacks: the examples, and the items (restarts and targets) that an attack runs on each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from robust_vit.pixels import as_float


@dataclasses.dataclass(frozen=True)
class Points:
    """The examples under attack, on the host.

    Attributes:
      images: [N,H,W,C] floats in [0,1], or uint8, which is divided by 255.
      labels: [N] integers.
      epsilon: [N] float32 radii.
      indices: [N] dataset indices, from which the keys are folded.
    """

    images: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    indices: np.ndarray

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Images [len(rows),H,W,C] as float32 in [0,1]."""
        return as_float(self.images[np.asarray(rows, int)])


@dataclasses.dataclass(frozen=True)
class Chain:
    """The items that an attack runs on each point, in order.

    Attributes:
      restarts: [I] restart number of each item.
      ranks: [I] rank of the target class (1 is the best wrong class), 0 for untargeted items.
      targets: [N,I] class aimed at, -1 for none.
      code: stable number of the attack, folded into every key.
    """

    restarts: np.ndarray
    ranks: np.ndarray
    targets: np.ndarray
    code: int

    def __len__(self) -> int:
        return len(self.restarts)
