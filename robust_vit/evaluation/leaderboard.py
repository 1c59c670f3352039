"""RobustBench's form of a result, and the adversarial images that go with it.

Apart from `robustbench`, which reads ImageNet's images as the leaderboard does: this needs no image decoder.

Reference: Croce et al., RobustBench: a standardized adversarial robustness benchmark, 2021
(https://arxiv.org/abs/2010.09670); https://github.com/RobustBench/robustbench.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robust_vit import errors
from robust_vit.evaluation.autoattack.results import Result

POINTS = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}  # of the leaderboards
THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# The string fields of an entry that only its author knows.
AUTHOR_FIELDS = ("link", "name", "authors", "venue", "architecture")


def entry(
    result: Result,
    *,
    dataset: str,
    additional_data: bool = False,
    number_forward_passes: int = 1,
    reported: float | None = None,
    external: float | None = None,
    **author: str,
) -> dict[str, Any]:
    """The result in the form of RobustBench's `model_info/<dataset>/<threat>/<id>.json`.

    Args:
      result: of version "standard": the benchmark takes no other.
      dataset: "cifar10", "cifar100" or "imagenet".
      additional_data: whether the model saw data beyond the dataset's training set.
      number_forward_passes: a prediction takes.
      reported: robust accuracy in the paper, in [0,1]; the evaluated one if None.
      external: a lower robust accuracy found by another attack, in [0,1].
      **author: `AUTHOR_FIELDS`; those not given are left empty. `footnote` is allowed.

    Raises:
      ValueError: for another version, radii that differ between points, or an unknown field.
    """
    errors.check("version", result.version, result.version == "standard", "'standard', the one that RobustBench lists")
    errors.check("epsilon", "one a point", len(np.unique(result.epsilon)) == 1, "the same for all points")
    for name in author:
        errors.lookup("field", name, dict.fromkeys((*AUTHOR_FIELDS, "footnote")))
    robust = _percent(result.robust_accuracy)
    form: dict[str, Any] = {field: author.get(field, "") for field in AUTHOR_FIELDS}
    form |= {
        "dataset": dataset,
        "eps": _radius(float(result.epsilon[0]), result.norm),
        "clean_acc": _percent(result.clean_accuracy),
        "reported": robust if reported is None else _percent(reported),
        "autoattack_acc": robust,
        "additional_data": additional_data,
        "unreliable": False,
        "number_forward_passes": number_forward_passes,
    }
    if external is not None:
        form["external"] = _percent(external)
    return form | {name: value for name, value in author.items() if name == "footnote"}


def write_entry(folder: str | os.PathLike[str], model_id: str, norm: str, form: Mapping[str, Any]) -> pathlib.Path:
    """Writes an entry to `<folder>/<dataset>/<threat>/<id>.json` and returns the path."""
    path = pathlib.Path(folder) / form["dataset"] / THREATS[norm] / f"{model_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(form, indent=2) + "\n")
    return path


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _radius(epsilon: float, norm: str) -> str:
    """ "4/255" for Linf where it is one, a decimal number elsewhere."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if norm == "linf" and abs(levels - round(levels)) < 1e-4 else f"{epsilon:.6g}"


def save_adversarial(path: str | os.PathLike[str], result: Result, labels: np.ndarray) -> None:
    """Writes the images, clean ones where nothing broke the point, with what they claim.

    Args:
      path: an .npz file: adversarial [N,H,W,C] float32, labels, indices, robust, epsilon, norm, weights (the hash).
      result: the evaluation.
      labels: [N].
    """
    np.savez(
        path,
        adversarial=result.adversarial,
        labels=np.asarray(labels),
        indices=result.indices,
        robust=result.robust,
        epsilon=result.epsilon,
        norm=result.norm,
        weights=result.header["weights"],
    )
