"""What an evaluation leaves behind: `result.json`, and the tables that a reader sees.

`result.json` has one entry a suite, the identity of what was measured (weights, split), and where the figures come
from. Nothing measured is ever lost: results of other weights, of another split, or of the same suite under other
settings move to the list "previous", each with the identity it belongs to, and come back to the front when the same
weights are measured again.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import rich.box
import rich.console
import rich.table

from robust_vit.evaluation import fingerprint, masking

RESULT = "result.json"
# Keys of result.json that are not suites.
IDENTITY = ("weights", "split")
ENVIRONMENT = ("command", "versions", "devices")
# Settings of a suite: when they differ, an older result is kept beside the new one instead of being replaced.
SETTINGS = ("norm", "epsilon", "steps", "restarts", "step_size", "epsilons", "version", "seed")
ROWS = 20  # a per-class table longer than this shows the weakest classes only

Result = dict[str, Any]


def environment() -> dict[str, Any]:
    """The command line, the package versions and the devices: where a figure comes from."""
    first = jax.devices()[0]
    return {
        "command": " ".join([pathlib.Path(sys.executable).name, *_program()]),
        "versions": {"python": platform.python_version(), **fingerprint.packages()},
        "devices": f"{jax.device_count()} x {first.device_kind}",
    }


def stamp(seconds: float) -> dict[str, Any]:
    """What every suite's entry says about its own measurement."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "seconds": round(seconds, 2), **environment()}


def _program() -> list[str]:
    """sys.argv as it was typed: `-m package.module` where Python was started so."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return [*(["-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]]


# ---------------------------------------------------------------------------------------------------- result.json


def read(path: str | os.PathLike[str]) -> Result:
    """Reads a result file; a missing one is an empty result.

    Raises:
      ValueError: if the file is not a JSON object; it is left alone.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return {}
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error}); move it away to evaluate anew") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path}: holds a {type(result).__name__}, not a result; move it away to evaluate anew")
    return result


def write(path: str | os.PathLike[str], result: Result) -> None:
    """Writes a result file in one step: a reader, or a kill, sees the old file or the new one and nothing between."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w") as file:
        json.dump(result, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def suites_of(result: Mapping[str, Any]) -> Result:
    """The suites' entries of a result."""
    return {k: v for k, v in result.items() if k not in (*IDENTITY, *ENVIRONMENT, "previous")}


def merge(old: Result, new: Result) -> Result:
    """Adds a new result to what is known.

    Args:
      old: the content of result.json, or {}.
      new: "weights" {"hash", "step", ...}, "split", the environment, and one entry a suite.

    Returns:
      The new result with the suites that `old` knows of the same weights and split, and under "previous" everything
      else, newest first.
    """
    records = [{k: v for k, v in old.items() if k != "previous"}] if suites_of(old) else []
    records += old.get("previous", [])
    same = [record for record in records if _identity(record) == _identity(new)]
    previous = [record for record in records if _identity(record) != _identity(new)]
    known: Result = {}
    for record in same:  # newest first: the first entry of a suite wins, other settings of it stay behind
        for name, entry in suites_of(record).items():
            replaced = {**known, **suites_of(new)}.get(name)
            if replaced is None:
                known[name] = entry
            elif _settings(entry) != _settings(replaced):
                previous.append({**{k: record[k] for k in IDENTITY if k in record}, name: entry})
    merged = {**{k: new[k] for k in (*IDENTITY, *ENVIRONMENT) if k in new}, **known, **suites_of(new)}
    return merged | ({"previous": previous} if previous else {})


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("weights", {}).get("hash"), record.get("split")


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: entry[k] for k in SETTINGS if k in entry}


# --------------------------------------------------------------------------------------------------------- tables


def console() -> rich.console.Console:
    """A console that is plain and wide enough for a log file when the output is not a terminal."""
    plain = not sys.stdout.isatty()
    return rich.console.Console(width=120 if plain else None, no_color=plain or None, highlight=False)


def show(result: Result, to: rich.console.Console | None = None, class_names: Iterable[str] | None = None) -> None:
    """Prints a result: one row a suite, the per-class table, and each suite's own details."""
    to = to or console()
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
    title = f"{where}weights {str(weights.get('hash'))[:12]}, {result.get('split', 'test')} split"
    columns = ["suite", "threat model", "accuracy", "95 % interval", "examples", "seconds"]
    table = _table(title, columns, left=2)
    for name, entry in suites_of(result).items():
        if entry.get("accuracy") is None:
            continue
        seconds = entry.get("measured", {}).get("seconds")
        cells = [f"{100 * entry['accuracy']:.2f} %", _interval(entry), str(entry["examples"])]
        table.add_row(name, threat(entry), *cells, "" if seconds is None else f"{seconds:.1f}")
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


def pixels(epsilon: float) -> str:
    """Epsilon as people write it: 0.1, 0.025, 8/255, and a rounded decimal where it is neither."""
    levels = 255 * epsilon
    short = abs(epsilon - round(epsilon, 3)) < 1e-7
    if not short and levels <= 64 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{epsilon:.4g}"


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


# Tables that belong to one suite: name -> function(entry) -> a rich table, or None. Suites add theirs here.
DETAILS: dict[str, Callable[[Mapping[str, Any]], rich.table.Table | None]] = {
    "sweep": sweep,
    "masking": masking.details,
}


def _details(result: Result) -> list[rich.table.Table | None]:
    return [DETAILS[name](entry) for name, entry in suites_of(result).items() if name in DETAILS]


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
