"""The table of a sweep: one row a suite and variant, of several seeds the median, with the difference to the first."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from robust_vit.analysis import comparison
from robust_vit.evaluation import record

HEADS = (*comparison.HEADS[:3], "lowest – highest", *comparison.HEADS[3:])


@dataclasses.dataclass(frozen=True)
class Row:
    """One suite of one variant.

    Attributes:
      median: of the run whose accuracy is the median of the seeds, the lower one of two in the middle.
      accuracies: of all seeds, in their order.
    """

    median: comparison.Row
    accuracies: tuple[float, ...]


def rows(runs: Mapping[str, Sequence[str | pathlib.Path]], suites: Sequence[str] = ()) -> list[Row]:
    """Lines up the variants of a sweep.

    Args:
      runs: {variant: its run folders, one a seed}; all are compared with the first variant.
      suites: which suites; by default all that have an accuracy in every run of some variant.

    Raises:
      ValueError: if a run has no result.
    """
    results = {variant: [comparison.read(run) for run in folders] for variant, folders in runs.items()}
    found: list[Row] = []
    for suite in suites or _suites(results):
        first: dict[str, Any] | None = None
        for variant, of_seeds in results.items():
            if all(suite in record.suites_of(result) for result in of_seeds):
                row, median = _row(suite, variant, of_seeds, first)
                first = first or median
                found.append(row)
    return found


def _suites(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """All suites with an accuracy, in the order in which they were measured."""
    entries = [record.suites_of(result).items() for of_seeds in results.values() for result in of_seeds]
    return list(dict.fromkeys(name for one in entries for name, entry in one if entry.get("accuracy") is not None))


def _row(
    suite: str, variant: str, results: Sequence[dict[str, Any]], first: dict[str, Any] | None
) -> tuple[Row, dict[str, Any]]:
    """A row, and the result that is its median."""
    accuracies = tuple(result[suite]["accuracy"] for result in results)
    median = results[sorted(range(len(results)), key=accuracies.__getitem__)[(len(results) - 1) // 2]]
    if first is not None and any(median.get(key) != first.get(key) for key in ("split", "data")):
        return Row(comparison.Row(suite, variant, median[suite], None, "other data"), accuracies), median
    entry = None if first is None else first[suite]
    return Row(comparison.row(suite, variant, median[suite], entry), accuracies), median


def cells(row: Row) -> list[str]:
    """A row as text, in the order of HEADS."""
    told = comparison.cells(row.median)
    low, high = min(row.accuracies), max(row.accuracies)
    spread = f"{100 * low:.2f} – {100 * high:.2f}" if len(row.accuracies) > 1 else ""
    return [*told[:3], spread, *told[3:]]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as a file holds them."""
    return [
        {
            "suite": row.median.suite,
            "variant": row.median.run,
            "accuracy": row.median.entry["accuracy"],
            "interval": list(row.median.entry["interval"]),
            "accuracies": list(row.accuracies),
            "difference": row.median.difference and dataclasses.asdict(row.median.difference),
            "note": row.median.note,
        }
        for row in rows
    ]
