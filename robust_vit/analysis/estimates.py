"""Figures with their 95 % intervals: shares, means, and differences between two models on the same examples."""

from typing import Any, NamedTuple

import numpy as np

from robust_vit.errors import check
from robust_vit.evaluation import intervals, pairs


class Estimate(NamedTuple):
    """A figure that was measured on some examples.

    Attributes:
      value: the figure.
      interval: its 95 % interval.
      examples: how many it is of.
    """

    value: float
    interval: tuple[float, float]
    examples: int

    def as_json(self) -> dict[str, Any]:
        """As a file holds it."""
        return {"value": self.value, "interval": list(self.interval), "examples": self.examples}

    def text(self, scale: float = 1.0, unit: str = "", digits: int = 2) -> str:
        """`83.1 % (78.8 – 86.6)` of scale 100, unit " %" and one digit."""
        low, high = (f"{scale * end:.{digits}f}" for end in self.interval)
        return f"{scale * self.value:.{digits}f}{unit} ({low} – {high})"


def share(hits: Any) -> Estimate:
    """The share of True among [N] booleans, with Wilson's interval."""
    hits = np.asarray(hits, bool)
    check("examples", len(hits), len(hits) > 0, "at least 1")
    return Estimate(float(hits.mean()), intervals.wilson(int(hits.sum()), len(hits)), len(hits))


def mean(values: Any) -> Estimate:
    """The mean of [N] numbers, with Student's interval, mean ± t s / sqrt(N); of one number it is the number."""
    from scipy import stats  # which JAX brings

    values = np.asarray(values, np.float64)
    check("examples", len(values), len(values) > 0, "at least 1")
    centre, count = float(values.mean()), len(values)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
    return Estimate(centre, (centre - float(half), centre + float(half)), count)


def difference(first: Any, second: Any) -> Estimate:
    """second - first, paired example by example: of booleans as `evaluation.pairs`, of numbers the mean difference."""
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype == bool:
        found = pairs.paired(first, second)
        return Estimate(found.difference, found.interval, len(first))
    return mean(second - first)
