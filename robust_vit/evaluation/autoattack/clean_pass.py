"""The pass before any attack: which points are there to be attacked, and what the logits look like."""

import dataclasses
import time

import numpy as np

from robust_vit.evaluation.autoattack import checks
from robust_vit.evaluation.autoattack.ledger import CLEAN
from robust_vit.evaluation.autoattack.results import AttackRow
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.verification import NONFINITE, ROBUST, WRONG, Judge, verdict


@dataclasses.dataclass(frozen=True)
class CleanPass:
    """What the model says of the clean images.

    Attributes:
      logits: [N,K].
      status: [N] "robust", "misclassified" or "non-finite logits".
      notes: what looked suspicious.
      row: what it cost.
    """

    logits: np.ndarray
    status: np.ndarray
    notes: list[str]
    row: AttackRow

    @property
    def correct(self) -> np.ndarray:
        """[N] classified correctly, with finite logits."""
        return self.status == ROBUST


def clean_pass(judge: Judge, points: Points, stochastic: bool) -> CleanPass:
    """Runs the model on every point once.

    Args:
      judge: gives logits.
      points: the examples.
      stochastic: whether the model is known to draw numbers.
    """
    began, count = time.perf_counter(), len(points.labels)
    logits = judge.logits(points.images, range(count))
    wrong, finite = verdict(logits, points.labels)
    status = np.where(~finite, NONFINITE, np.where(wrong, WRONG, ROBUST)).astype(object)
    notes = checks.clean(judge, points, logits, stochastic)
    broken = int((status != ROBUST).sum())
    spent = time.perf_counter() - began
    row = AttackRow(CLEAN, count, broken, spent, judge.compile_seconds, forwards=count, occupancy=1.0)
    return CleanPass(logits, status, notes, row)
