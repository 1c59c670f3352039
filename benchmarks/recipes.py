"""Which way of training makes the digits robust? Trains, evaluates with AutoAttack, and writes `docs/recipes.md`.

    python benchmarks/recipes.py --rows=best,adversarial,trades --seeds=0,1,2   # what is measured already stays
    python benchmarks/recipes.py                                                # the page's table anew, from its JSON

A measurement is the row's own command in a process of its own: training, selection on the validation split, then clean
accuracy and AutoAttack on the test split. `docs/recipes.json` holds every one; the table of `docs/recipes.md` is
written from it.

Cost is counted in forward passes of one image: 1 for a forward pass, 1 for a backward pass to the image, 2 for one to
image and weights. PGD-7 and a step on what it found are 7 (1 + 1) + 1 + 2 = 17 an image.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from robust_vit import provenance
from robust_vit.config import ConfigDict
from robust_vit.evaluation import intervals
from robust_vit.main import parse

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "recipes.json"
PAGE = ROOT / "docs" / "recipes.md"
SUITES = ("clean", "autoattack")
TIMES = ("seconds", "processor seconds")

# Name of a row -> its words in the table, and the arguments of `robust-vit train` beside seed, suite and run folder.
ROWS: dict[str, tuple[str, str]] = {
    "best": ("PGD-2 on turned, shifted, zoomed images, average of the weights, 100 epochs", "--config=digits:best"),
    "adversarial": ("Madry: PGD-7, 40 epochs", "--config=digits:adversarial"),
    "trades": ("TRADES, beta 6, PGD-7, 40 epochs", "--config=digits:trades"),
}


def main() -> None:
    options = arguments()
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for row in filter(None, options.rows.split(",")):
        for seed in map(int, options.seeds.split(",")):
            runs = report["rows"].setdefault(row, [])
            if not any(run["seed"] == seed for run in runs):
                runs.append(measure(row, seed, options.runs))
                runs.sort(key=lambda run: run["seed"])
                provenance.write_json(RESULTS, report)
    PAGE.write_text(written(PAGE.read_text(), report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="", help=f"comma separated, of {', '.join(ROWS)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"), help="where run folders go")
    return parser.parse_args()


def command(row: str, seed: int, runs: pathlib.Path = pathlib.Path("runs")) -> list[str]:
    """What is typed for a row, after `robust-vit`."""
    suite = f"--config.evaluation.suite={','.join(SUITES)}"
    return ["train", *ROWS[row][1].split(), f"--config.seed={seed}", suite, f"--workdir={runs / f'{row}-{seed}'}"]


def measure(row: str, seed: int, runs: pathlib.Path) -> dict[str, Any]:
    """Runs a row's command and reads what it wrote."""
    load, began, before = os.getloadavg()[0], time.perf_counter(), processor_seconds()
    subprocess.run([sys.executable, "-m", "robust_vit.main", *command(row, seed, runs)[1:]], check=True, cwd=ROOT)
    used = {"seconds": time.perf_counter() - began, "processor_seconds": processor_seconds() - before}
    return found(row, seed, runs / f"{row}-{seed}") | rounded(used) | {"load_before": load}


def found(row: str, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """The entry of a run that is evaluated, but for its time."""
    result = provenance.read_json(folder / "result.json")
    counts = {suite: counted(result[suite]) for suite in SUITES}
    where = {"hardware": hardware(), "versions": result["versions"], "git": result["git"]}
    return {"seed": seed, "command": " ".join(["robust-vit", *command(row, seed)])} | counts | where


def counted(entry: dict[str, Any]) -> dict[str, int]:
    return {"correct": round(entry["accuracy"] * entry["examples"]), "examples": entry["examples"]}


def rounded(used: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in used.items()}


def processor_seconds() -> float:
    """Of all processes that this one has waited for, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hardware() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count()}


# The cost -------------------------------------------------------------------------------------------------------------


def forwards(config: ConfigDict) -> float:
    """Forward passes that training spends on one image of the training split, over all epochs; validation is left out.

    Raises:
      ValueError: for an attack or an objective that is not counted here.
    """
    steps = {"pgd": 2 * config.attack.steps, "fgsm": 2}
    clean, attacked, passes = {
        "standard": (0, 0, 1),
        "adversarial": (0, 1, 1),
        "trades": (1, 1, 2),
    }[config.objective.name]
    perturbed = 2 if config.awp.gamma else 1
    if config.attack.name not in steps:
        raise ValueError(f"attack.name = {config.attack.name!r}: must be one of {', '.join(steps)}")
    return config.training.epochs * (clean + attacked * steps[config.attack.name] + 3 * passes * perturbed)


# The page -------------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The measured rows as markdown, the most robust first, and the command of each."""
    rows = [(row, runs) for row, runs in report["rows"].items() if runs]
    rows.sort(key=lambda pair: -middle(pair[1], "autoattack")["correct"])
    madry = forwards(parse(["train", *command("adversarial", 0)[1:]])[0])
    timed = TIMES if any("seconds" in run for _, runs in rows for run in runs) else ()
    columns = ("row", "seeds", "clean", "95 %", "AutoAttack", "95 %", "AutoAttack by seed", "cost", *timed)
    lines = [f"| {' | '.join(columns)} |", "|---|---" + (len(columns) - 2) * "|--:" + "|"]
    for row, runs in rows:
        cost = forwards(parse(["train", *command(row, 0)[1:]])[0])
        seeds = ", ".join(str(run["seed"]) for run in runs)
        spread = " / ".join(f"{percent(run['autoattack']):.2f}" for run in runs)
        seconds = [spent(runs, name.replace(" ", "_")) for name in timed]
        cells = [ROWS[row][0], seeds, *accuracy(runs, "clean"), *accuracy(runs, "autoattack"), spread]
        lines.append(f"| {' | '.join([*cells, f'{cost:.0f} ({cost / madry:.2f}x)', *seconds])} |")
    typed = [f"robust-vit {' '.join(command(row, runs[0]['seed']))}" for row, runs in rows]
    notes = [
        f"{ROWS[row][0]}, seed {run['seed']}: {run['note']}." for row, runs in rows for run in runs if "note" in run
    ]
    return "\n".join([*lines, "", "```", *typed, "```", *(line for note in notes for line in ("", note))])


def spent(runs: list[dict[str, Any]], name: str) -> str:
    """The median of the runs that were timed."""
    timed = [run[name] for run in runs if name in run]
    return f"{statistics.median(timed):.0f}" if timed else ""


def middle(runs: list[dict[str, Any]], suite: str) -> dict[str, int]:
    """The counts of the run in the middle by that suite: of an even number, the lower of the two."""
    return sorted((run[suite] for run in runs), key=lambda counts: counts["correct"])[(len(runs) - 1) // 2]


def accuracy(runs: list[dict[str, Any]], suite: str) -> tuple[str, str]:
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


def written(page: str, report: dict[str, Any]) -> str:
    """The page with the report's tables between their marks."""
    return filled(filled(page, "measured", table(report)), "tried", tried(report))


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    main()
