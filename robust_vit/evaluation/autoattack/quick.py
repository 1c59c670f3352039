"""The quick suite: a robust accuracy good enough to steer a training run, and how far it is from the full one.

APGD on cross-entropy, then on targeted DLR towards the best wrong class, 10 steps each: 22 gradients a point that
survives, against about 1,900 gradients and 5,900 further forward passes of AutoAttack. It can only err upwards; `gap`
says by how much, where both were run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robust_vit.evaluation.autoattack.driver import autoattack
from robust_vit.evaluation.autoattack.results import Result
from robust_vit.evaluation.verification import ROBUST
from robust_vit.typing import LogitsFn


def quick(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, *, norm: str, epsilon: float, **keywords: Any
) -> Result:
    """`autoattack` with version "quick"; see there for the arguments. The compiled programs are kept for the next
    call.
    """
    return autoattack(logits_fn, images, labels, norm=norm, epsilon=epsilon, version="quick", **keywords)


def gap(cheap: Result | Mapping[str, Any], full: Result | Mapping[str, Any]) -> str:
    """Says how much a cheaper evaluation overstated the robust accuracy of the same points.

    Args:
      cheap, full: results, or their JSON form (`Result.to_dict`).

    Raises:
      ValueError: if the two have no point in common.
    """
    (name, few), (other, many) = _standing(cheap), _standing(full)
    both = sorted(few.keys() & many.keys())
    if not both:
        raise ValueError(f"gap: the evaluations {name} and {other} have no point in common")
    shares = [100 * sum(stands[index] for index in both) / len(both) for stands in (few, many)]
    missed = sum(few[index] and not many[index] for index in both)
    figures = f"{name} {shares[0]:.2f} %, {other} {shares[1]:.2f} % of {len(both)} points"
    return f"{figures}: {shares[0] - shares[1]:+.2f} points apart, {missed} stood only in {name}"


def _standing(result: Result | Mapping[str, Any]) -> tuple[str, dict[int, bool]]:
    """The version's name, and for each dataset index whether the point is robust."""
    told = result.to_dict() if isinstance(result, Result) else result
    name = told["version"] if isinstance(told["version"], str) else "+".join(told["version"])
    return name, {point["index"]: point["status"] == ROBUST for point in told["points"]}
