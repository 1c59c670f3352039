"""What an evaluation leaves behind: `result.json`.

`result.json` has one entry a suite, the identity of what was measured (weights, split), and where the figures come
from. Nothing measured is ever lost: results of other weights, of another split, or of the same suite under other
settings move to the list "previous", each with the identity it belongs to, and come back to the front when the same
weights are measured again. Its form is described by `schemas/result.schema.json`.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from robust_vit import locks, parallel, provenance
from robust_vit.errors import check

RESULT = "result.json"
SCHEMA = 2  # of result.json; files without one are of the first, and are read as well
# Keys of result.json that are not suites.
IDENTITY = ("weights", "split")
ENVIRONMENT = ("command", "versions", "devices", "git", "platform")
RESERVED = ("schema", *IDENTITY, "class_names", *ENVIRONMENT, "previous")
# What a suite measures. Everything else in its entry is a setting, and so is a word that nobody listed here: when a
# setting differs, an older result is kept beside the new one instead of being replaced.
FIGURES = frozenset(
    "accuracy interval correct loss nonfinite per_class outcomes notes measured curve reaches_zero "
    "clean_accuracy clean_interval robust_accuracy robust_interval claimed_robust_accuracy counts seconds rows "
    "verification area median_distance median_queries distances canary header ledger images robustbench findings "
    "warnings ok".split()
)

Result = dict[str, Any]


@functools.cache
def _environment() -> dict[str, Any]:
    return provenance.environment()


def environment() -> dict[str, Any]:
    """Where a figure comes from; asked once a process."""
    return dict(_environment())


def stamp(seconds: float) -> dict[str, Any]:
    """What every suite's entry says about its own measurement."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "seconds": round(seconds, 2), **environment()}


def head(weights: Mapping[str, Any], split: str, class_names: Iterable[str] | None = None) -> Result:
    """A result without suites: what was measured, and on what."""
    names = {} if class_names is None else {"class_names": list(map(str, class_names))}
    return {"schema": SCHEMA, "weights": dict(weights), "split": split, **names, **environment()}


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
    except ValueError as error:  # of JSON, and of text that is not UTF-8
        raise ValueError(f"{path}: is not JSON ({error}); move it away to evaluate anew") from None
    if not isinstance(result, dict):
        raise ValueError(f"{path}: holds a {type(result).__name__}, not a result; move it away to evaluate anew")
    schema = result.get("schema", 1)
    known = isinstance(schema, int) and 1 <= schema <= SCHEMA
    check("schema", schema, known, f"at most {SCHEMA} ({path} is of a newer robust_vit; move it away to evaluate anew)")
    return result


def write(path: str | os.PathLike[str], result: Result) -> None:
    """Writes a result file in one step: a reader, or a kill, sees the old file or the new one and nothing between."""
    provenance.write_json(path, result, indent=2)


def update(path: str | os.PathLike[str] | None, known: Result, new: Result) -> Result:
    """Merges a new result into a file, one process after the other, and returns what the file then holds.

    Args:
      path: of result.json; None merges with `known` alone.
      known: the content that the file had; read anew where there is a file.
      new: see `merge`.
    """
    if path is None:
        return merge(known, new)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with locks.alone(pathlib.Path(path).parent):
        merged = merge(read(path), new)
        if parallel.is_main():
            write(path, merged)
    return merged


def suites_of(result: Mapping[str, Any]) -> Result:
    """The suites' entries of a result."""
    return {k: v for k, v in result.items() if k not in RESERVED and isinstance(v, Mapping)}


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
            elif settings(entry) != settings(replaced):
                previous.append({**{k: record[k] for k in IDENTITY if k in record}, name: entry})
    merged = {**{k: new[k] for k in RESERVED if k in new and k != "previous"}, **known, **suites_of(new)}
    return merged | ({"previous": previous} if previous else {})


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("weights", {}).get("hash"), record.get("split")


def settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry was measured under: all of it but what was measured."""
    return {k: v for k, v in entry.items() if k not in FIGURES}


def pixels(epsilon: float) -> str:
    """Epsilon as people write it: 0.1, 0.025, 8/255, and a rounded decimal where it is neither."""
    levels = 255 * epsilon
    short = abs(epsilon - round(epsilon, 3)) < 1e-7
    if not short and levels <= 64 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{epsilon:.4g}"
