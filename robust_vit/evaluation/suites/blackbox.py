"""The suite "blackbox": accuracy against the number of queries of an attack that differentiates nothing."""

import math
from typing import Any

import jax
import numpy as np

from robust_vit import errors
from robust_vit.attacks import blackbox
from robust_vit.evaluation import pairs, query_curve
from robust_vit.evaluation.suites import options
from robust_vit.evaluation.suites.context import Context

QUERIES = 1000
LAST = float(np.finfo(np.float64).max)  # after every query
POINTS = 24  # of the curve in result.json, spaced evenly in the logarithm

OPTIONS = {
    "blackbox_attack": options.choice("Which hunt; square by default.", blackbox.HUNTS),
    "blackbox_queries": options.whole(f"Queries an image, about; {QUERIES} by default.", minimum=100),
}


def check(context: Context) -> None:
    """Raises ValueError, before anything compiles, if the hunt does not know the norm."""
    _hunt(context)
    errors.check("epsilon", context.epsilon, context.epsilon > 0, "above 0 for the suite blackbox")
    hosts = jax.process_count()
    errors.check("hosts", hosts, hosts == 1, "1 for the suite blackbox")


def suite(context: Context) -> dict[str, Any]:
    """Accuracy after all queries, and after fewer."""
    name, queries = _name(context), context.options.get("blackbox_queries", QUERIES)
    given = dict(mesh=context.mesh, seed=context.seed)
    curve = query_curve.measure(_hunt(context), context.epsilon, context.logits_fn, context.batches(), **given)
    shown = sorted({0, *np.unique(np.geomspace(1, queries, POINTS).astype(int)).tolist()})
    packed = pairs.pack(curve.indices, np.isinf(curve.queries))
    return {
        "norm": context.norm,
        "epsilon": context.epsilon,
        "attack": name,
        "queries": queries,
        "accuracy": curve.accuracy(LAST),
        "interval": list(curve.interval(LAST)),
        "examples": curve.examples,
        "correct": curve.standing(LAST),
        "curve": [{"queries": q, "accuracy": curve.accuracy(q), "interval": list(curve.interval(q))} for q in shown],
        "median_queries": curve.median if math.isfinite(curve.median) else None,
        **({"outcomes": packed} if packed else {}),
    }


def _name(context: Context) -> str:
    return context.options.get("blackbox_attack", "square")


def _hunt(context: Context) -> blackbox.Hunt:
    """The hunt that spends about the queries asked for."""
    name, queries = _name(context), context.options.get("blackbox_queries", QUERIES)
    budget = {
        "square": {"queries": queries},
        "nes": {"steps": max(1, queries // 51)},  # 25 pairs, and a look at each point
        "boundary": {"steps": max(1, queries // 2)},
        "hop_skip_jump": {"steps": _jumps(queries)},
    }
    return blackbox.hunt(name, norm=context.norm, **budget[name])


def _jumps(queries: int) -> int:
    """How many steps of HopSkipJump the queries pay: 50 sqrt(t) + 20 for step t."""
    cost = np.cumsum(20 + np.minimum(50 * np.sqrt(np.arange(1, 5000)), 500))
    return max(1, int((cost <= queries - 36).sum()))
