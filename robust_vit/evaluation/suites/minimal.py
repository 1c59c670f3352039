"""The suite "minimal": robust accuracy at every radius, from one run of a minimal-norm attack."""

import math
from typing import Any

import jax
import numpy as np

from robust_vit import errors
from robust_vit.attacks import minimal
from robust_vit.evaluation import pairs, security_curve
from robust_vit.evaluation.security_curve import SecurityCurve
from robust_vit.evaluation.suites import options
from robust_vit.evaluation.suites.context import Context

STEPS = 200
SHOWN = 33  # radii of the curve in result.json, from 0 to twice the threat model's

OPTIONS = {
    "minimal_attack": options.choice("Which search; ddn for l2, fmn else, by default.", minimal.SEARCHES),
    "minimal_steps": options.whole(f"Its gradient evaluations; {STEPS} by default."),
}


def check(context: Context) -> None:
    """Raises ValueError, before anything compiles, if the search does not know the norm."""
    minimal.search(_name(context), norm=context.norm)
    hosts = jax.process_count()
    errors.check("hosts", hosts, hosts == 1, "1 for the suite minimal")


def suite(context: Context) -> dict[str, Any]:
    """Accuracy in the threat model and at every other radius, by the nearest adversarial image of each example."""
    name, steps = _name(context), context.options.get("minimal_steps", STEPS)
    search = minimal.search(name, norm=context.norm, steps=steps)
    curve = security_curve.measure(
        search,
        context.norm,
        context.logits_fn,
        context.batches(),
        attacked=context.differentiated(),
        mesh=context.mesh,
        seed=context.seed,
    )
    settings = {"norm": context.norm, "epsilon": context.epsilon, "attack": name, "steps": steps}
    return settings | _entry(curve, context.epsilon)


def _entry(curve: SecurityCurve, epsilon: float) -> dict[str, Any]:
    limit = 2 * epsilon
    radii = np.linspace(0, limit, SHOWN) if epsilon else [0.0]
    packed = pairs.pack(curve.indices, curve.distances > epsilon)
    return {
        "accuracy": curve.robust_accuracy(epsilon),
        "interval": list(curve.interval(epsilon)),
        "examples": curve.examples,
        "correct": curve.standing(epsilon),
        "curve": [{"epsilon": float(r), **_point(curve, float(r))} for r in radii],
        "area": curve.area(limit),
        "median_distance": curve.median if math.isfinite(curve.median) else None,
        "distances": [float(f"{d:.6g}") if math.isfinite(d) else None for d in curve.distances],
        **({"outcomes": packed} if packed else {}),
    }


def _point(curve: SecurityCurve, epsilon: float) -> dict[str, Any]:
    return {"accuracy": curve.robust_accuracy(epsilon), "interval": list(curve.interval(epsilon))}


def _name(context: Context) -> str:
    return context.options.get("minimal_attack", "ddn" if context.norm == "l2" else "fmn")
