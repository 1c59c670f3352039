"""Which way of training makes the digits robust? Trains, evaluates with AutoAttack, and writes `docs/recipes.md`.

    python benchmarks/recipes.py --rows=best,adversarial --seeds=0,1,2      # what is measured already stays
    python benchmarks/recipes.py --rows=small --seeds=0,1,2                 # every method on the small model
    python benchmarks/recipes.py --sweeps=warmup,augmentation --seeds=0     # the variants of those sweeps
    python benchmarks/recipes.py                                            # the page's tables anew, from their JSON

A measurement is what the row's own command does: training, selection on the validation split, then clean accuracy and
AutoAttack on the test split. They run one after another in this process, which spares each the start of a program; a
command typed by itself gives the same figures. `docs/recipes.json` holds every one, and the tables of `docs/recipes.md`
are written from it. What a run begins from or learns from is trained first where its folder is not there.

Cost is counted in forward passes of one image: `robust_vit.training.cost`.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from recipe_rows import ROWS, RUNS, SUITES, SWEEPS, begins, chosen, command, needs, variants
from recipe_tables import Runs, written

from robust_vit import main as training
from robust_vit import provenance, sweep
from robust_vit.training import finish
from robust_vit.training.cost import forwards

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "recipes.json"
PAGE = ROOT / "docs" / "recipes.md"


def main() -> None:
    options = arguments()
    results, failed = options.results, []
    report = json.loads(results.read_text()) if results.exists() else {"rows": {}}
    for runs, seed, name, make in asked(options, report):
        if any(run["seed"] == seed for run in runs):
            continue
        try:
            runs.append(make())
        except Exception as error:
            failed.append(f"{name}, seed {seed}: {error}")
            traceback.print_exc()
            continue
        runs.sort(key=lambda run: run["seed"])
        provenance.write_json(results, report)
    if results == RESULTS:
        PAGE.write_text(written(PAGE.read_text(), report))
    if failed:
        sys.exit("\n".join(failed))


def asked(options: argparse.Namespace, report: dict[str, Any]) -> Iterator[tuple[Runs, int, str, Callable[[], Any]]]:
    """What is asked for, seed by seed: the runs that are there already, the seed, a name, and what makes one more."""
    for seed in map(int, options.seeds.split(",")):
        for row in chosen(options.rows):
            runs = report["rows"].setdefault(row, [])
            yield runs, seed, row, functools.partial(measure, row, seed, options.runs)
        for name in filter(None, options.sweeps.split(",")):
            of_sweep = report.setdefault("sweeps", {}).setdefault(name, {})
            for run in variants(name, seed, options.runs):
                runs = of_sweep.setdefault(run.variant, [])
                yield runs, seed, f"{name}: {run.variant}", functools.partial(measure_variant, run, seed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="", help=f"comma separated, of small (all of them), {', '.join(ROWS)}")
    parser.add_argument("--sweeps", default="", help=f"comma separated, of {', '.join(SWEEPS)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runs", type=pathlib.Path, default=RUNS, help="where run folders go")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="another file leaves the page as it is")
    return parser.parse_args()


# Runs -----------------------------------------------------------------------------------------------------------------


def train(row: str, seed: int, runs: pathlib.Path) -> None:
    """Runs a row's command, and before it those of what it needs, unless they have come to their end."""
    for other in needs(row):
        if not (runs / f"{other}-{seed}" / finish.FINISHED).is_file():
            train(other, seed, runs)
    training.train(command(row, seed, runs))


def measure(row: str, seed: int, runs: pathlib.Path) -> dict[str, Any]:
    """Runs a row's command and reads what it wrote."""
    print(f"{time.strftime('%H:%M:%S')} {row} {seed}", flush=True)
    with timed() as used:
        train(row, seed, runs)
    costs = {"cost": spent(command(row, seed)), "begun": sum(spent(command(other, seed)) for other in begins(row))}
    return found(seed, command(row, seed), runs / f"{row}-{seed}") | costs | used


def measure_variant(run: sweep.Run, seed: int) -> dict[str, Any]:
    """Runs a variant of a sweep and reads what it wrote."""
    print(f"{time.strftime('%H:%M:%S')} {run.folder}", flush=True)
    with timed() as used:
        training.train(run.command(["train"]))
    typed = run.command(["train"])
    return found(seed, typed, run.folder) | {"cost": spent(typed), "begun": 0.0} | used


def spent(typed: list[str]) -> float:
    """Forward passes on an image that a command trains for."""
    return round(forwards(training.parse(typed)[0]), 1)


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """What the block took of the processor, and how busy the machine was before; filled in at its end."""
    used = {"load_before": round(os.getloadavg()[0], 2)}
    before = time.process_time()
    yield used
    used["processor_seconds"] = round(time.process_time() - before, 1)


def found(seed: int, typed: list[str], folder: pathlib.Path) -> dict[str, Any]:
    """The entry of a run that is evaluated, but for its time."""
    result = provenance.read_json(folder / "result.json")
    counts = {suite: counted(result[suite]) for suite in SUITES}
    where = {"hardware": hardware(), "versions": result["versions"], "git": result["git"]}
    return {"seed": seed, "command": " ".join(["robust-vit", *typed])} | counts | where


def counted(entry: dict[str, Any]) -> dict[str, int]:
    return {"correct": round(entry["accuracy"] * entry["examples"]), "examples": entry["examples"]}


def hardware() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count()}


if __name__ == "__main__":
    main()
