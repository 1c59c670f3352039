"""The suites "autoattack", "fast" and "quick" of the command line: an evaluation of a split, kept in the run folder.

Beside the entry in `result.json` there is a ledger, by which a killed evaluation goes on; on demand the adversarial
images, and the entry in the form of RobustBench's leaderboard.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import errors, models, parallel
from robust_vit.evaluation import pairs
from robust_vit.evaluation.autoattack import arguments, ensembles, runs
from robust_vit.evaluation.autoattack.driver import RESULT, autoattack
from robust_vit.evaluation.autoattack.over_hosts import autoattack_over_hosts
from robust_vit.evaluation.autoattack.quick import gap
from robust_vit.evaluation.autoattack.results import Result
from robust_vit.evaluation.leaderboard import save_adversarial
from robust_vit.evaluation.suites import leaderboard, options
from robust_vit.evaluation.suites.context import Context
from robust_vit.models.parts import forms
from robust_vit.typing import LogitsFn

FOLDER = "autoattack"
IMAGES = "adversarial.npz"
CHEAP = {"quick": (), "fast": ("quick",), "": ("quick", "fast")}  # what each version is compared with from above
# Option of the command line -> keyword of `autoattack`.
KEYWORDS = {"budget": "budget", "batch_size": "batch_size", "tile": "tile", "dtype": "compute_dtype"}

OPTIONS = {
    "autoattack_version": options.text(
        "Which attacks; standard by default, square for a model without gradients.",
        f"one of {', '.join(ensembles.VERSIONS)}, or of {', '.join(ensembles.CODES)}, joined by +",
    ),
    "autoattack_points": options.whole("The first so many points; all by default."),
    "autoattack_budget": options.positive("Multiplies steps and queries, for a quick upper bound; 1 by default."),
    "autoattack_batch_size": options.whole("Points in play at once; changes no result."),
    "autoattack_tile": options.whole("Examples in a compiled call: what memory allows."),
    "autoattack_dtype": options.choice(
        "Precision to attack in; every claim is verified in float32, the default.", arguments.DTYPES
    ),
    "autoattack_images": options.flag(f"Whether to keep the adversarial images, as {IMAGES} beside the ledger."),
    **leaderboard.OPTIONS,
}


def full(context: Context) -> dict[str, Any]:
    """Accuracy under AutoAttack: the pointwise worst case, every claim verified in float32, resumable."""
    return _run(context, version(context))


def quick(context: Context) -> dict[str, Any]:
    """An upper bound on AutoAttack's accuracy from 22 gradients a point; says the gap where the full one was run."""
    return _run(context, "quick")


def fast(context: Context) -> dict[str, Any]:
    """Close to AutoAttack for a fraction of its passes: APGD on PMA's loss, on the classes that MALT finds near, and a
    short Square; says the gap where the full one was run.
    """
    return _run(context, "fast")


def version(context: Context) -> str | list[str]:
    """The version asked for: a name, or a list of attacks."""
    name = context.options.get("autoattack_version", "standard")
    return name if name in ensembles.VERSIONS else name.split("+")


def check_threat(context: Context) -> None:
    """Raises ValueError, before anything compiles, where there is nothing to attack in."""
    errors.check("epsilon", context.epsilon, context.epsilon > 0, "above 0 for AutoAttack")


def check(context: Context) -> None:
    """Raises ValueError, before anything compiles, if the suite cannot be run in this context."""
    check_threat(context)
    ensembles.parts(version(context), context.norm, context.options.get("autoattack_budget", 1.0), None)
    leaderboard.check(context, version(context))


def gradient_free(context: Context) -> bool:
    """True if every attack asked for needs forward passes only."""
    return all(runs.gradient_free(part) for part in ensembles.parts(version(context), context.norm, 1.0, None))


def _run(context: Context, version: str | list[str]) -> dict[str, Any]:
    chosen = {word: context.options.get(f"autoattack_{name}") for name, word in KEYWORDS.items()}
    images, labels, indices = context.everywhere(context.options.get("autoattack_points"))
    folder = _folder(context, version, len(labels))
    run = autoattack if jax.process_count() == 1 else autoattack_over_hosts
    result = run(
        context.differentiated(_quick_to_compile(context)),
        images,
        labels,
        norm=context.norm,
        epsilon=context.epsilon,
        version=version,
        seed=context.seed,
        workdir=folder,
        indices=indices,
        mesh=_devices(context),
        on_event=lambda event: _tell(context, event),
        **{word: value for word, value in chosen.items() if value is not None},
    )
    if result is None:
        return json.loads(parallel.gather_text("")[0])
    for line in [*result.table().splitlines(), *_gaps(folder, result)]:
        context.say(line)
    entry = _entry(context, result, folder) | _files(context, result, labels, folder)
    if jax.process_count() > 1:  # the others have no result of their own
        parallel.gather_text(json.dumps(entry))
    return entry


def _devices(context: Context) -> Mesh | None:
    """What tiles are split over: the devices asked for, of this host; None for a single one."""
    if jax.process_count() == 1:
        return context.mesh or (parallel.mesh() if jax.device_count() > 1 else None)
    return parallel.mesh(jax.local_devices()) if jax.local_device_count() > 1 else None


def _files(context: Context, result: Result, labels: np.ndarray, folder: pathlib.Path | None) -> dict[str, Any]:
    """Writes what was asked for beside the ledger, and says where."""
    written = {}
    if context.options.get("autoattack_images") and folder is not None:
        save_adversarial(folder / IMAGES, result, labels)
        written["images"] = str(folder / IMAGES)
    if (path := leaderboard.write(context, result)) is not None:
        written["robustbench"] = str(path)
    for path in written.values():
        context.say(f"written to {path}")
    return written


def _quick_to_compile(context: Context) -> LogitsFn:
    """The classifier with its blocks scanned, where there is a model behind it: an ensemble compiles it many times."""
    if context.module is None:
        return context.logits_fn
    return models.logits_fn(*forms.scanned(context.module, context.variables))


def _folder(context: Context, version: str | list[str], points: int) -> pathlib.Path | None:
    """Where the ledger lies: one folder for each model, threat, version and number of points, so that newer weights
    start a new one.
    """
    if context.workdir is None:
        return None
    name = version if isinstance(version, str) else "+".join(version)
    name = "-".join([name, *([context.adaptive] if context.adaptive else []), str(points)])
    threat = f"{context.norm}-{context.epsilon:.6g}"
    return pathlib.Path(context.workdir) / FOLDER / f"{context.fingerprint[:12]}-{threat}" / name


def _tell(context: Context, event: Mapping[str, Any]) -> None:
    if event["event"] == "attack_done":
        context.say(f"{event['attack']}: broke {event['broken']} of {event['points']} in {event['seconds']:.1f} s")


def _gaps(folder: pathlib.Path | None, result: Result) -> list[str]:
    """A line on the difference to the other finished versions in the folder of the same model and threat."""
    lines = []
    for path in sorted(folder.parent.glob(f"*/{RESULT}")) if folder else []:
        other = json.loads(path.read_text())
        if path.parent == folder or len(other["points"]) != result.examples:
            continue
        pair = (other, result) if other["version"] in CHEAP.get(str(result.version), CHEAP[""]) else (result, other)
        lines.append(f"gap: {gap(*pair)}")
    return lines


def _entry(context: Context, result: Result, folder: pathlib.Path | None) -> dict[str, Any]:
    """The suite's part of result.json: everything but the points, which are in the ledger."""
    found = result.to_dict()
    del found["points"]
    packed = pairs.pack(result.indices, result.robust)
    found |= {"outcomes": packed} if packed else {}
    named = {"accuracy": result.robust_accuracy, "interval": list(result.robust_interval)}
    asked = {name: value for name, value in context.options.items() if name.startswith("autoattack_")}
    return named | found | {"options": asked, "ledger": str(folder) if folder else None}
