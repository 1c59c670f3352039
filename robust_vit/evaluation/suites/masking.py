"""The suite "masking" of the command line: is this robustness real? The report on the first points of the split."""

from typing import Any

from robust_vit import errors
from robust_vit.evaluation.masking.report import report
from robust_vit.evaluation.suites import options
from robust_vit.evaluation.suites.context import Context, identify
from robust_vit.pixels import as_float

POINTS, QUERIES = 128, 500

OPTIONS = {
    "masking_points": options.whole(f"Points of the masking report; the first {POINTS} by default."),
    "masking_queries": options.whole(f"Queries of its black-box attack; {QUERIES} by default."),
}


def check(context: Context) -> None:
    """Raises ValueError, before anything compiles, where there is nothing to attack in."""
    errors.check("epsilon", context.epsilon, context.epsilon > 0, "above 0 for the masking report")


def suite(context: Context) -> dict[str, Any]:
    """Signs of masked gradients: differences, weaker attacks, black-box, transfer, a sweep that must end at 0 %."""
    images, labels, indices = context.first(context.options.get("masking_points", POINTS))
    queries, other = context.options.get("masking_queries", QUERIES), context.transfer_from
    made = report(
        context.logits_fn,
        as_float(images),
        labels,
        norm=context.norm,
        epsilon=context.epsilon,
        seed=context.seed,
        queries=queries,
        indices=indices,
        transfer_from=other,
    )
    transfer = None if other is None else identify(other, images.shape[1:])
    return made.to_dict() | {"queries": queries, "transfer_from": transfer}
