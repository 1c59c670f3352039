"""What a reader of a robust accuracy should be told: signs that the attack did not see the model as it is.

AutoAttack's own checks, and what the verification found. They are cheap by-products of the evaluation; `masking` asks
the question in earnest.
"""

from collections.abc import Sequence

import numpy as np

from robust_vit.evaluation.autoattack.results import AttackRow
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.verification import WRONG, Judge

SQUARE_MARGIN = 0.002  # the reference warns when Square gains more than 0.2 points on all others together
SOFTMAX_TOLERANCE = 1e-5
RANDOM_TOLERANCE = 1e-4  # between L2-normalised logits of the same images


def clean(judge: Judge, points: Points, logits: np.ndarray, stochastic: bool) -> list[str]:
    """Checks of the logits on clean images.

    Args:
      judge: gives logits.
      points: the examples.
      logits: [N,K] of them all.
      stochastic: whether the model is known to draw numbers.
    """
    notes = []
    rows = list(range(min(len(logits), judge.slots)))
    first = logits[rows]
    if not stochastic:
        apart = np.linalg.norm(_unit(judge.logits(points.images[rows], rows)) - _unit(first), axis=1)
        if np.nanmax(apart, initial=0.0) > RANDOM_TOLERANCE:
            notes.append(
                "randomised: two forward passes of the same images differ; use stochastic=True and version 'rand'"
            )
    finite = logits[np.isfinite(logits).all(axis=1)]
    if len(finite) and _probabilities(finite):
        notes.append(
            "the model returns probabilities: losses that expect logits see vanishing gradients; remove the softmax"
        )
    bad = len(logits) - len(finite)
    if bad:
        notes.append(
            f"{bad} points have logits that are not finite without any attack; they count as neither robust nor broken"
        )
    return notes


def _unit(logits: np.ndarray) -> np.ndarray:
    return logits / np.maximum(np.linalg.norm(logits, axis=1, keepdims=True), 1e-12)


def _probabilities(logits: np.ndarray) -> bool:
    inside = logits.min() > -SOFTMAX_TOLERANCE and logits.max() < 1 + SOFTMAX_TOLERANCE
    return bool(inside and np.abs(logits.sum(axis=1) - 1).max() < SOFTMAX_TOLERANCE)


def final(rows: Sequence[AttackRow], status: np.ndarray, void: int, faults: Sequence[str]) -> list[str]:
    """Checks of what the attacks did.

    Args:
      rows: one an attack, in order.
      status: [N] what became of each point.
      void: points left over whose attacks met values that are not finite.
      faults: of every claim, "" for none.
    """
    notes = []
    count = len(status)
    for row in rows:
        if row.zero_gradients:
            notes.append(
                f"{row.attack}: {row.zero_gradients} runs ended with a gradient of exactly zero: rounding, saturation "
                "or a blocked gradient"
            )
        if row.attack == "square" and len(rows) > 2 and row.broken > SQUARE_MARGIN * count:
            notes.append(
                f"square broke {row.broken} points that the attacks before it did not: a sign of masked gradients"
            )
    if void:
        notes.append(
            f"{void} points met values that are not finite under attack and did not break; "
            "they count as neither robust nor broken"
        )
    for fault in sorted(set(faults) - {""}):
        notes.append(f"{list(faults).count(fault)} claims were refused by the float32 check: {fault}")
    if (status == WRONG).all():
        notes.append("no point is classified correctly: there was nothing to attack")
    return notes
