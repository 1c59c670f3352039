"""Runs side by side: one row a suite and run, with the paired difference to the first run, as a table and a picture."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robust_vit.errors import check
from robust_vit.evaluation import pairs, record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#333333")  # Okabe and Ito's


@dataclasses.dataclass(frozen=True)
class Row:
    """One suite of one run.

    Attributes:
      suite: its name.
      run: the run's name.
      entry: of result.json.
      difference: to the first run; None for the first, and where the two were not measured alike.
      note: why there is no difference, or "".
    """

    suite: str
    run: str
    entry: Mapping[str, Any]
    difference: pairs.Difference | None
    note: str = ""


def read(run: str | pathlib.Path) -> dict[str, Any]:
    """Reads the result of a run folder (or of a result.json), and beside it the data that the run was configured with.

    Raises:
      ValueError: if there is none; the line says which command makes it.
    """
    path = pathlib.Path(run)
    path = path / record.RESULT if path.is_dir() else path
    check(
        "run", str(run), path.is_file(), f"a folder with {record.RESULT}: robust-vit evaluate --workdir={run} makes it"
    )
    result = record.read(path)
    check("run", str(run), bool(record.suites_of(result)), f"evaluated: robust-vit evaluate --workdir={run}")
    config = path.parent / "config.json"
    stored = json.loads(config.read_text()) if config.is_file() else {}
    return result | {"data": {k: stored["data"].get(k) for k in ("name", "options")} if "data" in stored else None}


def compare(runs: Sequence[str | pathlib.Path], suites: Sequence[str] = ()) -> list[Row]:
    """Lines up what two or more runs have in common.

    Args:
      runs: run folders; every other run is compared with the first.
      suites: which suites; by default all that have an accuracy in the first run and in another.

    Raises:
      ValueError: if a run has no result, the runs were measured on other data, or share no suite.
    """
    check("runs", [str(run) for run in runs], len(runs) >= 2, "two run folders or more")
    results = [read(run) for run in runs]
    names = _names(runs)
    for name, result in zip(names[1:], results[1:]):
        _check_same_data(names[0], results[0], name, result)
    entries = [{k: v for k, v in record.suites_of(r).items() if _has_accuracy(v)} for r in results]
    shared = [k for k in entries[0] if any(k in other for other in entries[1:])]
    known = ", ".join(sorted({k for other in entries for k in other}))
    for suite in suites:
        check("suite", suite, suite in shared, f"measured in {names[0]} and in another run, which have {known}")
    check(
        "suites", known, bool(shared), f"shared: {names[0]} has {', '.join(entries[0])}, the others have none of them"
    )
    chosen = list(suites) or shared
    return [
        row(suite, name, entry[suite], None if i == 0 else entries[0][suite])
        for suite in chosen
        for i, (name, entry) in enumerate(zip(names, entries))
        if suite in entry
    ]


def _has_accuracy(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("accuracy") is not None


def _names(runs: Sequence[str | pathlib.Path]) -> list[str]:
    """The folders' last parts, or the whole paths where those repeat."""
    short = [pathlib.Path(run).resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _check_same_data(first: str, a: Mapping[str, Any], second: str, b: Mapping[str, Any]) -> None:
    allowed = f"those of {first}, {a.get('split')!r} of {a['data']}"
    same = a.get("split") == b.get("split") and (a["data"] is None or b["data"] is None or a["data"] == b["data"])
    check(f"data of {second}", (b.get("split"), b["data"]), same, allowed)


def row(suite: str, name: str, entry: Mapping[str, Any], first: Mapping[str, Any] | None) -> Row:
    if first is None:
        return Row(suite, name, entry, None)
    a, b = record.settings(first), record.settings(entry)
    apart = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if apart:
        return Row(suite, name, entry, None, f"other {', '.join(apart)}")
    return Row(suite, name, entry, pairs.compare(first, entry))


def cells(row: Row) -> list[str]:
    """A row as text: suite, run, accuracy, interval, difference, its interval, p."""
    low, high = row.entry["interval"]
    told = [row.suite, row.run, f"{100 * row.entry['accuracy']:.2f} %", f"{100 * low:.2f} – {100 * high:.2f}"]
    d = row.difference
    if d is None:
        return [*told, row.note, "", ""]
    p = "unpaired" if d.p is None else "< 0.0001" if d.p < 1e-4 else f"{d.p:.4f}"
    return [*told, f"{100 * d.difference:+.2f}", f"{100 * d.interval[0]:+.2f} – {100 * d.interval[1]:+.2f}", p]


HEADS = ("suite", "run", "accuracy", "95 % interval", "difference", "95 % interval", "p")


def plot(rows: Sequence[Row]) -> "Figure":
    """Accuracies with their 95 % intervals, a group a suite, a colour a run."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from robust_vit.analysis.plots import STYLE

    suites, runs = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("suite", "run"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            y = place + 0.6 * suites.index(row.suite)
            low, high = row.entry["interval"]
            accuracy, colour = row.entry["accuracy"], COLOURS[runs.index(row.run) % len(COLOURS)]
            error = [[accuracy - low], [high - accuracy]]
            first = row.suite == suites[0]
            axes.errorbar(accuracy, y, xerr=error, fmt="o", color=colour, capsize=3, label=row.run if first else None)
        at = [(i + 0.6 * suites.index(row.suite), f"{row.suite}, {row.run}") for i, row in enumerate(rows)]
        axes.set_yticks([y for y, _ in at], [label for _, label in at])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("accuracy on the same examples, with 95 % intervals")
        axes.grid(axis="y", visible=False)
    return figure
