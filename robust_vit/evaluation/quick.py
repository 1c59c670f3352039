"""The quick suite: a robust accuracy good enough to steer a training run, and how far it is from the full one.

APGD on cross-entropy, then on targeted DLR towards the best wrong class, 10 steps each: 22 gradients a point that
survives, against about 1,900 gradients and 5,900 further forward passes of AutoAttack. It can only err upwards; `gap`
says by how much, where both were run.
"""

from typing import Any

import numpy as np

from robust_vit.evaluation.autoattack import autoattack
from robust_vit.evaluation.results import Result
from robust_vit.typing import LogitsFn


def quick(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, *, norm: str, epsilon: float, **keywords: Any
) -> Result:
    """`autoattack` with version "quick"; see there for the arguments. The compiled programs are kept for the next
    call.
    """
    return autoattack(logits_fn, images, labels, norm=norm, epsilon=epsilon, version="quick", **keywords)


def gap(quick: Result, full: Result) -> str:
    """Says how much a cheaper evaluation of the same points overstated the robust accuracy.

    Raises:
      ValueError: if the two have no point in common.
    """
    _, left, right = np.intersect1d(quick.indices, full.indices, return_indices=True)
    if not len(left):
        raise ValueError(f"gap: the evaluations {quick.version} and {full.version} have no point in common")
    few, many = quick.robust[left], full.robust[right]
    above = 100 * (few.mean() - many.mean())
    missed = int((few & ~many).sum())
    cheap, dear = f"{_name(quick)} {100 * few.mean():.2f} %", f"{_name(full)} {100 * many.mean():.2f} %"
    return f"{cheap}, {dear} on {len(left)} points: {above:+.2f} points apart, {missed} stood only in the cheaper one"


def _name(result: Result) -> str:
    return result.version if isinstance(result.version, str) else "+".join(result.version)
