"""Is one model more robust than another? The difference of two accuracies measured on the same examples.

Two models on one test set agree on most examples, so their accuracies rise and fall together and the difference is
known better than either: only the examples on which exactly one of them is right say anything about it.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

SPARSEST = 1000  # bits an example; a first thousand of ImageNet's validation images takes 50
Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Difference:
    """accuracy of the second minus accuracy of the first.

    Attributes:
      difference: a fraction in [-1, 1].
      interval: its 95 % interval.
      p: probability of a difference at least as large between equal models; None where the examples are not paired.
      examples: how many examples both were measured on; None where they are not paired.
      gained, lost: examples that only the second, only the first has right; None where they are not paired.
    """

    difference: float
    interval: tuple[float, float]
    p: float | None = None
    examples: int | None = None
    gained: int | None = None
    lost: int | None = None


def paired(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compares two models on the same N examples.

    With b examples that only the second has right and c that only the first has, the interval is Wald's on counts with
    half an example added to each of the four cells, (b' - c')/n' ± 1.96 sqrt(b' + c' - (b' - c')²/n')/n' (Agresti &
    Min), and p is the exact two-sided binomial probability of a split of b + c as uneven as b : c (McNemar's exact
    test).

    Args:
      first, second: [N] bool, whether each example is classified correctly.

    Raises:
      ValueError: if they are not of the same length, or empty.

    Reference: Agresti & Min, Simple improved confidence intervals for comparing matched proportions, Statistics in
      Medicine 24 (2005); McNemar, Psychometrika 12 (1947).
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"outcomes: {list(first.shape)} and {list(second.shape)}, must be [N] and [N] with N at least 1"
        )
    n = len(first)
    gained, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    b, c, padded = gained + 0.5, lost + 0.5, n + 2.0
    centre = (b - c) / padded
    half = Z95 * np.sqrt(b + c - (b - c) ** 2 / padded) / padded
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return Difference((gained - lost) / n, (float(interval[0]), float(interval[1])), float(p), n, gained, lost)


def unpaired(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    """Compares two measurements whose examples are not known one by one: Newcombe's interval from the two Wilson ones.

    Args:
      first, second: entries with "accuracy" and its 95 % Wilson "interval".

    Reference: Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine
      17 (1998), method 10.
    """
    (p, (low_p, high_p)), (q, (low_q, high_q)) = ((e["accuracy"], e["interval"]) for e in (first, second))
    d = q - p
    low = d - np.hypot(q - low_q, high_p - p)
    high = d + np.hypot(high_q - q, p - low_p)
    return Difference(d, (float(low), float(high)))


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    """Compares the same suite's entries of two results: paired on the examples that both know one by one."""
    known = [unpack(entry["outcomes"]) if entry.get("outcomes") else {} for entry in (first, second)]
    shared = sorted(known[0].keys() & known[1].keys())
    if not shared:
        return unpaired(first, second)
    return paired(*(np.array([outcome[index] for index in shared]) for outcome in known))


def pack(indices: np.ndarray, correct: np.ndarray) -> dict[str, str] | None:
    """Outcomes as result.json keeps them: two bit fields over the dataset index, in base64.

    Args:
      indices: [N] dataset indices, each once.
      correct: [N] bool.

    Returns:
      {"seen": ..., "correct": ...}: bit i (the highest bit of a byte first) is about the example of index i. None where
      the fields would be mostly empty: of indices far larger than their number.
    """
    indices, correct = np.asarray(indices, np.int64), np.asarray(correct, bool)
    if indices.max(initial=0) > SPARSEST * len(indices) + SPARSEST:
        return None
    fields = np.zeros((2, int(indices.max(initial=-1)) + 1), bool)
    fields[0, indices], fields[1, indices] = True, correct
    return {name: base64.b64encode(np.packbits(field)).decode() for name, field in zip(("seen", "correct"), fields)}


def unpack(outcomes: Mapping[str, str]) -> dict[int, bool]:
    """{dataset index: whether it was classified correctly} of what `pack` made."""
    seen, correct = (
        np.unpackbits(np.frombuffer(base64.b64decode(outcomes[name]), np.uint8)) for name in ("seen", "correct")
    )
    return {int(index): bool(correct[index]) for index in np.flatnonzero(seen)}
