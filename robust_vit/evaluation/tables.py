"""The tables of a result that a reader sees, in a terminal, a log file or a notebook.

Apart from `record`, because an evaluation needs no more than JAX: this file alone needs rich.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from robust_vit.evaluation.record import RESULT, Result, pixels, suites_of

ROWS = 20  # a per-class table longer than this shows the weakest classes only
WARNING = "warning"  # the verdict of a finding of the masking report


def console() -> rich.console.Console:
    """A console that is plain and wide enough for a log file when the output is not a terminal."""
    plain = not sys.stdout.isatty()
    return rich.console.Console(width=120 if plain else None, no_color=plain or None, highlight=False)


def show(result: Result, to: rich.console.Console | None = None, class_names: Iterable[str] | None = None) -> None:
    """Prints a result: one row a suite, the per-class table, and each suite's own details.

    Args:
      result: the content of result.json.
      to: where to; standard output by default.
      class_names: K names; those of the result by default.
    """
    to = to or console()
    class_names = result.get("class_names") if class_names is None else class_names
    box = rich.box.ROUNDED if to.is_terminal else rich.box.ASCII2
    for made in (summary(result), per_class(result, class_names), *_details(result)):
        if made is not None and made.row_count:
            made.box, title, made.title = box, made.title, None  # rich would break a title at the table's width
            to.print(title, style="bold", soft_wrap=True)
            to.print(made)
    if result.get("previous"):
        to.print(f"{RESULT} keeps {len(result['previous'])} earlier results of other weights, splits or settings")


def summary(result: Result) -> rich.table.Table:
    """One row for every suite that has an accuracy."""
    weights = result.get("weights", {})
    where = f"step {weights['step']}, " if weights.get("step") is not None else ""
    split, *more = str(result.get("split", "test")).split(", ")
    title = ", ".join([f"{where}weights {str(weights.get('hash'))[:12]}", f"{split} split", *more])
    columns = ["suite", "threat model", "accuracy", "95 % interval", "examples", "seconds"]
    table = _table(title, columns, left=2)
    for name, entry in suites_of(result).items():
        if entry.get("accuracy") is None:
            continue
        seconds = entry.get("measured", {}).get("seconds")
        cells = [f"{100 * entry['accuracy']:.2f} %", _interval(entry), str(entry["examples"])]
        table.add_row(name, threat(entry), *cells, "" if seconds is None else f"{seconds:.1f}")
        for note in entry.get("notes") or () if "rows" not in entry else ():
            table.add_row("", rich.text.Text(note))
        if entry.get("nonfinite"):
            table.add_row("", f"{entry['nonfinite']} examples with non-finite logits, counted as wrong")
    return table


def threat(entry: Mapping[str, Any]) -> str:
    """`Linf 8/255, 50 steps of 0.4/255 x 5` from a suite's settings."""
    if "norm" not in entry:
        return "none"
    words = [f"{entry['norm'].capitalize()} {pixels(entry['epsilon'])}"]
    if entry.get("steps"):
        size = f" of {pixels(entry['step_size'])}" if entry.get("step_size") is not None else ""
        words.append(f"{entry['steps']} step{'s' if entry['steps'] > 1 else ''}{size}")
    if entry.get("restarts", 1) > 1:
        words.append(f"{entry['restarts']} restarts")
    return ", ".join(words)


def per_class(result: Result, class_names: Iterable[str] | None = None) -> rich.table.Table | None:
    """One row a class, one column a suite; of many classes only those weakest under the last suite."""
    entries = {name: entry for name, entry in suites_of(result).items() if entry.get("per_class")}
    if not entries:
        return None
    last = list(entries.values())[-1]["per_class"]
    order = [k for k, row in enumerate(last) if row["examples"]]
    title = "accuracy by class, %"
    if len(order) > ROWS:
        order = sorted(order, key=lambda k: last[k]["accuracy"])[:ROWS]
        title = f"{title} (the {ROWS} weakest of {len(last)} under {list(entries)[-1]})"
    names = list(class_names) if class_names is not None else [str(k) for k in range(len(last))]
    table = _table(title, ["class", "examples", *entries], left=1)
    for k in order:
        rows = [entry["per_class"][k] for entry in entries.values()]
        table.add_row(names[k], str(last[k]["examples"]), *(_percent(row["accuracy"]) for row in rows))
    return table


def sweep(entry: Mapping[str, Any]) -> rich.table.Table:
    """One row an epsilon."""
    columns = ["epsilon", "accuracy", "95 % interval"]
    table = _table(f"accuracy against epsilon, {threat(entry)} at most", columns, left=0)
    for row in entry["curve"]:
        table.add_row(pixels(row["epsilon"]), f"{100 * row['accuracy']:.2f} %", _interval(row))
    return table


def masking(entry: Mapping[str, Any]) -> rich.table.Table:
    """One row a finding of the masking report; a warning also tells its rule and what to do."""
    title = f"masking report, {len(entry['warnings'])} warnings, {entry['points']} points"
    made = rich.table.Table(title=title, title_justify="left")
    for column in ("verdict", "finding", "seen"):
        made.add_column(column)
    for found in entry["findings"]:
        lines = [found["saw"]]
        if found["verdict"] == WARNING:
            lines += [f"rule: {found['threshold']}", f"do: {found['advice']}"]
        made.add_row(found["verdict"], found["name"], rich.text.Text("\n".join(lines)))
    return made


# Tables that belong to one suite: name -> function(entry) -> a rich table, or None. Suites add theirs here.
DETAILS: dict[str, Callable[[Mapping[str, Any]], rich.table.Table | None]] = {"sweep": sweep, "masking": masking}


def _details(result: Result) -> list[rich.table.Table | None]:
    entries = [(name.partition(":")[0], entry) for name, entry in suites_of(result).items()]
    return [DETAILS[name](entry) for name, entry in entries if name in DETAILS]


def _table(title: str, columns: list[str], left: int) -> rich.table.Table:
    table = rich.table.Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * low:.2f} – {100 * high:.2f}"
