"""The suites "autoattack" and "quick" of the command line: an evaluation of a split, kept in the run folder.

Options: `autoattack_version` ("standard", ... or names joined by "+"), `autoattack_points` (the first so many; all by
default), `autoattack_budget`, `autoattack_batch_size`, `autoattack_tile`, `autoattack_dtype` ("bfloat16" attacks in
that precision and verifies in float32).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from robust_vit import models, parallel
from robust_vit.evaluation import fingerprint
from robust_vit.evaluation.autoattack.driver import RESULT, autoattack
from robust_vit.evaluation.autoattack.quick import gap
from robust_vit.evaluation.autoattack.results import Result
from robust_vit.models.parts import forms
from robust_vit.typing import LogitsFn

FOLDER = "autoattack"
# Option of the command line -> keyword of `autoattack`.
KEYWORDS = {"budget": "budget", "batch_size": "batch_size", "tile": "tile", "dtype": "compute_dtype"}


def full(context: Any) -> dict[str, Any]:
    """Accuracy under AutoAttack: the pointwise worst case, every claim verified in float32, resumable."""
    version = context.options.get("autoattack_version", "standard")
    return _run(context, version.split("+") if "+" in version else version)


def quick(context: Any) -> dict[str, Any]:
    """An upper bound on it from 22 gradients a point, for use in training; says the gap where the full suite was
    run.
    """
    return _run(context, "quick")


def _run(context: Any, version: str | list[str]) -> dict[str, Any]:
    options = {word: context.options.get(f"autoattack_{name}") for name, word in KEYWORDS.items()}
    images, labels, indices = context.arrays()
    count = context.options.get("autoattack_points") or len(labels)
    images, labels, indices = images[:count], labels[:count], indices[:count]
    devices = context.mesh or (parallel.mesh() if jax.device_count() > 1 else None)
    folder = _folder(context, version, images)
    result = autoattack(
        _quick_to_compile(context),
        images,
        labels,
        norm=context.norm,
        epsilon=context.epsilon,
        version=version,
        seed=context.seed,
        workdir=folder,
        indices=indices,
        mesh=devices,
        on_event=lambda event: _tell(context, event),
        **{word: value for word, value in options.items() if value is not None},
    )
    for line in [*result.table().splitlines(), *_gaps(folder, result)]:
        context.say(line)
    return _entry(result, folder)


def _quick_to_compile(context: Any) -> LogitsFn:
    """The classifier with its blocks scanned, where there is a model behind it: an ensemble compiles it many times."""
    if context.module is None:
        return context.logits_fn
    return models.logits_fn(*forms.scanned(context.module, context.variables))


def _folder(context: Any, version: str | list[str], images: np.ndarray) -> pathlib.Path | None:
    """Where the ledger lies: one folder for each model, threat, version and number of points, so that newer weights
    start a new one.
    """
    if context.workdir is None:
        return None
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    model = fingerprint.identify(context.logits_fn, shape)[:12]
    name = version if isinstance(version, str) else "+".join(version)
    threat = f"{context.norm}-{context.epsilon:.6g}"
    return pathlib.Path(context.workdir) / FOLDER / f"{model}-{threat}" / f"{name}-{len(images)}"


def _tell(context: Any, event: Mapping[str, Any]) -> None:
    if event["event"] == "attack_done":
        context.say(f"{event['attack']}: broke {event['broken']} of {event['points']} in {event['seconds']:.1f} s")


def _gaps(folder: pathlib.Path | None, result: Result) -> list[str]:
    """A line on the difference to the other finished versions in the folder of the same model and threat."""
    lines = []
    for path in sorted(folder.parent.glob(f"*/{RESULT}")) if folder else []:
        other = json.loads(path.read_text())
        if path.parent == folder or len(other["points"]) != result.examples:
            continue
        pair = (other, result) if other["version"] == "quick" else (result, other)
        lines.append(f"gap: {gap(*pair)}")
    return lines


def _entry(result: Result, folder: pathlib.Path | None) -> dict[str, Any]:
    """The suite's part of result.json: everything but the points, which are in the ledger."""
    told = result.to_dict()
    del told["points"]
    named = {"accuracy": result.robust_accuracy, "interval": list(result.robust_interval)}
    return named | told | {"ledger": str(folder) if folder else None}
