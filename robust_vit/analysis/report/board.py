"""The table of many runs: clean and robust accuracy with intervals, cost, and what sets each configuration apart.

`robust-vit leaderboard runs/*` writes it; RobustBench's form of one result is `evaluation.leaderboard`.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from robust_vit import config as config_lib
from robust_vit import provenance
from robust_vit.analysis.report import content
from robust_vit.errors import check
from robust_vit.evaluation import record, tables

ROBUST = ("autoattack", "pgd")  # columns of their own, besides clean
# Fields that are set apart in every run and say nothing of its recipe.
UNSAID = ("seed", "parallel.devices", "data.workers", "training.trackers", "evaluation.report_examples")


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
      name: of the folder.
      folder: where it is.
      data: and split that it was measured on.
      threat: "Linf 0.1", "" where none is known.
      figures: {suite: (accuracy, low, high, examples)} of clean, autoattack and pgd.
      training_seconds: of its steps, without compilation; None where no metrics are left.
      evaluation_seconds: of AutoAttack, None where it was not run.
      apart: fields of the configuration that differ from the most common value among the runs.
    """

    name: str
    folder: pathlib.Path
    data: str
    threat: str
    figures: Mapping[str, tuple[float, float, float, int]]
    training_seconds: float | None
    evaluation_seconds: float | None
    apart: tuple[str, ...] = ()


def read(folder: str | os.PathLike[str]) -> Row | None:
    """The row of a run folder; None where it has no result.

    Raises:
      ValueError: if its result is damaged.
    """
    folder = pathlib.Path(folder)
    result = record.read(folder / record.RESULT)
    found = content.measured(result)
    if not found:
        return None
    config = content.stored(folder / "config.json")
    attacked = next((found[name] for name in (*ROBUST, "fgsm") if name in found and "norm" in found[name]), {})
    data = ", ".join(str(part) for part in ((config.get("data") or {}).get("name"), result.get("split")) if part)
    return Row(
        folder.resolve().name,
        folder,
        data,
        tables.threat({k: attacked[k] for k in ("norm", "epsilon")}) if attacked else "",
        {name: _figure(found[name]) for name in ("clean", *ROBUST) if name in found},
        training_seconds(folder / "metrics.jsonl"),
        found.get("autoattack", {}).get("measured", {}).get("seconds"),
    )


def _figure(entry: Mapping[str, Any]) -> tuple[float, float, float, int]:
    return (entry["accuracy"], *entry["interval"], entry["examples"])


def training_seconds(path: pathlib.Path) -> float | None:
    """The steps' time: each row's seconds a step times the steps since the row before; rows that a kill repeated count
    once.
    """
    if not path.is_file():
        return None
    steps = {row["step"]: row["step_seconds"] for row in provenance.read_lines(path) if row.get("step_seconds")}
    ends = sorted(steps)
    if not ends:
        return None
    return sum(steps[end] * (end - before) for before, end in zip([0, *ends], ends))


def gather(folders: Sequence[str | os.PathLike[str]]) -> list[Row]:
    """The rows of run folders, the most robust first; folders without a result are left out.

    Raises:
      ValueError: if none has a result; the line says which command makes one.
    """
    rows = [row for row in map(read, folders) if row is not None]
    allowed = "folders with results: robust-vit evaluate --workdir=RUN makes one"
    check("runs", [str(folder) for folder in folders], bool(rows), allowed)
    rows = [dataclasses.replace(row, apart=told) for row, told in zip(rows, differences([r.folder for r in rows]))]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        rows = [dataclasses.replace(row, name=str(row.folder)) for row in rows]
    return sorted(rows, key=lambda row: tuple(-_accuracy(row, suite) for suite in (*ROBUST, "clean")))


def _accuracy(row: Row, suite: str) -> float:
    return row.figures[suite][0] if suite in row.figures else -1.0


def differences(folders: Sequence[pathlib.Path]) -> list[tuple[str, ...]]:
    """Of each run the fields, as `name=value`, that differ from the most common value among all."""
    configs = [fields_of(folder) for folder in folders]
    known = [fields for fields in configs if fields]
    names = sorted({name for fields in known for name in fields} - set(UNSAID))
    told: list[list[str]] = [[] for _ in folders]
    for name in names:
        values = [repr(fields.get(name)) for fields in known]
        usual = max(dict.fromkeys(values), key=values.count)
        for fields, lines in zip(configs, told):
            if fields and repr(fields.get(name)) != usual:
                lines.append(f"{name}={fields.get(name)}")
    return [tuple(lines) for lines in told]


def fields_of(folder: pathlib.Path) -> dict[str, Any]:
    """A run's configuration by dotted names; what an earlier version did not write has today's default. {} of a folder
    without one.
    """
    stored = flat(content.stored(folder / "config.json"))
    defaults = flat(json.loads(json.dumps(config_lib.plain(config_lib.base()))))
    return defaults | stored if stored else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted names: {"attack.steps": 7, ...}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


# ------------------------------------------------------------------------------------------------------- as text


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the table: what is read, what it is sorted by, whether it is a number, and where it leads."""

    text: str
    value: Any = ""
    number: bool = False
    link: str = ""


HEAD_CELLS = ("run", "data", "threat model", "clean", "AutoAttack", "PGD", "training, s", "AutoAttack, s", "apart")
NUMBERS = ("clean", "AutoAttack", "PGD", "training, s", "AutoAttack, s")


def cells(row: Row, base: pathlib.Path | None = None) -> list[Cell]:
    """A row in the order of HEAD_CELLS; runs with a page link to it, relative to the folder `base`."""
    page = row.folder / "report" / "index.html"
    link = ""
    if base is not None and page.is_file():
        link = pathlib.Path(os.path.relpath(page.resolve(), base.resolve())).as_posix()
    figures = [_accuracy_cell(row.figures.get(suite)) for suite in ("clean", *ROBUST)]
    costs = [_seconds_cell(seconds) for seconds in (row.training_seconds, row.evaluation_seconds)]
    apart = "; ".join(row.apart)
    texts = [Cell(row.name, row.name, link=link), Cell(row.data, row.data), Cell(row.threat, row.threat)]
    return [*texts, *figures, *costs, Cell(apart, apart)]


def _accuracy_cell(figure: tuple[float, float, float, int] | None) -> Cell:
    if figure is None:
        return Cell("", number=True)
    accuracy, low, high, _ = figure
    return Cell(f"{content.percent(accuracy)} ({100 * low:.1f} – {100 * high:.1f})", accuracy, True)


def _seconds_cell(seconds: float | None) -> Cell:
    return Cell("", number=True) if seconds is None else Cell(f"{seconds:.0f}", seconds, True)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table as GitHub reads it."""
    aligned = ["--:" if head in NUMBERS else "---" for head in HEAD_CELLS]
    lines = [HEAD_CELLS, aligned, *([_plain(cell.text) for cell in cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _plain(text: str) -> str:
    """A text that neither ends its cell nor starts markup."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for mark, told in (("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(mark, told)
    return text


def as_csv(rows: Sequence[Row]) -> str:
    """The table with a column for each number, fractions as they are."""
    bounds = [f"{suite}{end}" for suite in ("clean", *ROBUST) for end in ("", "_low", "_high", "_examples")]
    heads = ["run", "folder", "data", "threat", *bounds, "training_seconds", "autoattack_seconds", "apart"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        figures = [number for suite in ("clean", *ROBUST) for number in row.figures.get(suite, ("",) * 4)]
        costs = ["" if s is None else s for s in (row.training_seconds, row.evaluation_seconds)]
        writer.writerow([row.name, row.folder, row.data, row.threat, *figures, *costs, "; ".join(row.apart)])
    return text.getvalue()


def as_html(rows: Sequence[Row], base: pathlib.Path) -> str:
    """The table as a page that sorts itself, with links to the runs' pages from the folder `base`."""
    from robust_vit.analysis.report import page

    return page.render(
        "board.html",
        title=f"{len(rows)} runs",
        note="Accuracies with 95 % intervals. “apart”: fields that differ from the most common value.",
        heads=[{"name": head, "number": head in NUMBERS} for head in HEAD_CELLS],
        rows=[[dataclasses.asdict(cell) for cell in cells(row, base)] for row in rows],
    )


def write(rows: Sequence[Row], out: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes `leaderboard.md`, `.csv` and `.html` into a folder, and returns the files."""
    folder = pathlib.Path(out)
    texts = {"md": as_markdown(rows), "csv": as_csv(rows), "html": as_html(rows, folder)}
    paths = [folder / f"leaderboard.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values()):
        provenance.write_atomically(path, text)
    return paths
