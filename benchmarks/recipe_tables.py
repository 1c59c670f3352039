"""The tables of `docs/recipes.md`, written from `docs/recipes.json`."""

import statistics
from typing import Any

from recipe_rows import ROWS, SWEEPS, command, sweep_command

from robust_vit.evaluation import intervals

TIMES = ("seconds", "processor seconds")
Runs = list[dict[str, Any]]


def written(page: str, report: dict[str, Any]) -> str:
    """The page with the report's tables between their marks."""
    rows = {row: runs for row, runs in report["rows"].items() if runs}
    small = {row: runs for row, runs in rows.items() if row.startswith("small/")}
    page = filled(page, "measured", rows_of({row: runs for row, runs in rows.items() if row not in small}))
    page = filled(page, "methods", rows_of(small))
    for name in SWEEPS:
        page = filled(page, name, variants_of(name, report["sweeps"].get(name, {})))
    return filled(page, "tried", tried(report))


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{text}\n{end}{after}"


def rows_of(rows: dict[str, Runs]) -> str:
    """Rows as markdown, the most robust first, and the command of each."""
    ordered = sorted(rows.items(), key=lambda pair: -middle(pair[1], "autoattack")["correct"])
    words = {row: ROWS[row].words for row in rows}
    madry = [runs[0]["cost"] for row, runs in ordered if row.rpartition("/")[2] == "adversarial"]
    table = markdown("row", {words[row]: runs for row, runs in ordered}, *madry)
    typed = [f"robust-vit {' '.join(command(row, runs[0]['seed']))}" for row, runs in ordered]
    notes = [
        f"{words[row]}, seed {run['seed']}: {run['note']}." for row, runs in ordered for run in runs if "note" in run
    ]
    return "\n".join([table, "", "```", *typed, "```", *(line for note in notes for line in ("", note))])


def variants_of(name: str, variants: dict[str, Runs]) -> str:
    """A sweep as markdown, in its own order, and its command."""
    if not any(variants.values()):
        return "Not measured: `" + " ".join(["robust-vit", *sweep_command(name, "0,1,2")]) + "`."
    seeds = sorted({run["seed"] for runs in variants.values() for run in runs})
    typed = " ".join(["robust-vit", *sweep_command(name, ",".join(map(str, seeds)))])
    return "\n".join(
        [markdown("variant", {variant: runs for variant, runs in variants.items() if runs}), "", "```", typed, "```"]
    )


def markdown(first: str, rows: dict[str, Runs], basis: float = 0.0) -> str:
    """Rows {words: runs} as a table, costs beside the basis, if any; times only where they were taken."""
    timed = [name for name in TIMES if any(name.replace(" ", "_") in run for runs in rows.values() for run in runs)]
    columns = (first, "seeds", "clean", "95 %", "AutoAttack", "95 %", "AutoAttack by seed", "cost", *timed)
    lines = [f"| {' | '.join(columns)} |", "|---|---" + (len(columns) - 2) * "|--:" + "|"]
    for words, runs in rows.items():
        seeds = ", ".join(str(run["seed"]) for run in runs)
        spread = " / ".join(f"{percent(run['autoattack']):.2f}" for run in runs)
        seconds = [spent(runs, name.replace(" ", "_")) for name in timed]
        cells = [
            words,
            seeds,
            *accuracy(runs, "clean"),
            *accuracy(runs, "autoattack"),
            spread,
            cost(runs[0], basis),
            *seconds,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(run: dict[str, Any], basis: float) -> str:
    """Forward passes on an image, those of what the run begins with beside them; all beside the basis."""
    own, begun = run["cost"], run["begun"]
    words = f"{own:.0f} + {begun:.0f}" if begun else f"{own:.0f}"
    return f"{words} ({(own + begun) / basis:.2f}x)" if basis else words


def spent(runs: Runs, name: str) -> str:
    """The median of the runs that were timed."""
    timed = [run[name] for run in runs if name in run]
    return f"{statistics.median(timed):.0f}" if timed else ""


def middle(runs: Runs, suite: str) -> dict[str, int]:
    """The counts of the run in the middle by that suite: of an even number, the lower of the two."""
    return sorted((run[suite] for run in runs), key=lambda counts: counts["correct"])[(len(runs) - 1) // 2]


def accuracy(runs: Runs, suite: str) -> tuple[str, str]:
    """The median of the seeds, and the Wilson interval of the run that has it."""
    counts = middle(runs, suite)
    low, high = intervals.wilson(counts["correct"], counts["examples"])
    return f"{percent(counts):.2f} %", f"{100 * low:.1f} – {100 * high:.1f}"


def percent(counts: dict[str, int]) -> float:
    return 100 * counts["correct"] / counts["examples"]


def tried(report: dict[str, Any]) -> str:
    """What was selected from, on the validation split."""
    lines = ["| variant | epochs | cost | clean | PGD-20 |", "|---|--:|--:|--:|--:|"]
    for one in report.get("tried", []):
        figures = [f"{percent({'correct': one[name], 'examples': one['examples']}):.2f} %" for name in ("clean", "pgd")]
        lines.append(f"| {one['variant']} | {one['epochs']} | {one['cost']} | {' | '.join(figures)} |")
    return "\n".join(lines)
