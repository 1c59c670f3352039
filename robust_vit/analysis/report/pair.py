"""Two runs on one page: robust-vit explain --compare RUN1 RUN2"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from robust_vit import provenance
from robust_vit.analysis import comparison
from robust_vit.analysis.report import board, content, page, pictures
from robust_vit.evaluation import pairs, record


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str], out: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a page with both claims, the paired difference, what the configurations have apart, and both browsers.

    Args:
      first, second: run folders with results on the same data.
      out: the HTML file.

    Returns:
      The file.

    Raises:
      ValueError: if a run has no result, or the two were measured on other data or share no suite.
    """
    folders = [pathlib.Path(run) for run in (first, second)]
    rows = comparison.compare(folders)
    results = [record.read(folder / record.RESULT) for folder in folders]
    runs = [page.gathered(folder, budget=pictures.BUDGET // 2) for folder in folders]
    names = list(dict.fromkeys(row.run for row in rows))
    text = page.render(
        "pair.html",
        title=f"{names[0]} and {names[1]}: robust_vit",
        runs=[run | {"name": name} for run, name in zip(runs, names)],
        heads=comparison.HEADS,
        rows=[comparison.cells(row) for row in rows],
        differences=differences(folders, names),
        apart=apart(results, names),
    )
    provenance.write_atomically(out, text)
    return pathlib.Path(out)


def differences(folders: list[pathlib.Path], names: list[str]) -> list[str]:
    """A line for each field in which the configurations differ; none where one has no configuration."""
    found = [board.fields_of(folder) for folder in folders]
    if not all(found):
        return []
    both = [(name, *(fields.get(name, "absent") for fields in found)) for name in sorted(found[0] | found[1])]
    return [f"{name} = {a!r} in {names[0]}, {b!r} in {names[1]}" for name, a, b in both if a != b]


def apart(results: list[Mapping[str, Any]], names: list[str]) -> str:
    """A sentence on the examples that only one of them stands, under the strongest attack that measured both."""
    chosen = [content.strongest(result) for result in results]
    if chosen[0] is None or chosen[0] != chosen[1]:
        return ""
    entries = [record.suites_of(result)[name] for result, name in zip(results, chosen)]
    if record.settings(entries[0]) != record.settings(entries[1]) or not all(
        entry.get("outcomes") for entry in entries
    ):
        return ""
    known = [pairs.unpack(entry["outcomes"]) for entry in entries]
    shared = sorted(known[0].keys() & known[1].keys())
    only = [[i for i in shared if known[a][i] and not known[1 - a][i]] for a in (0, 1)]
    parts = [f"{len(found)} only {name} ({_listed(found)})" for found, name in zip(only, names) if found]
    both = sum(known[0][i] and known[1][i] for i in shared)
    told = "; ".join(parts) if parts else "there is none that only one of them stands"
    return f"Of {len(shared)} examples under {content.title_of(chosen[0])}, {both} stand in both; {told}."


def _listed(found: list[int], most: int = 12) -> str:
    return ", ".join(map(str, found[:most])) + (f" and {len(found) - most} more" if len(found) > most else "")
