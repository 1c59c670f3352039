"""Variants of a run: robust-vit sweep --config=ablations/digits --sweep=weight_decay --workdir=runs/weight_decay

Trains the variants one after another, each in a process and a folder of its own, and ends with one table of medians,
intervals and paired differences to the first variant, `sweep.png` and `table.json`. The same command again goes on
where it was stopped: a finished variant is not run again, a killed one resumes. `--print` prints the command lines of
those that are left, for a cluster; once they have run, the command without it makes the table.

    robust-vit sweep --config=ablations/digits --sweep=augmentation --seeds=0,1,2 --workdir=runs/augmentation
    robust-vit sweep --config=digits --over=attack.steps=1,7 --over=optimizer.weight_decay=0,0.1 --workdir=runs/grid
    robust-vit sweep --config=ablations/imagenet100 --sweep=scale --workdir=runs/scale --print

`--over` may be given more than once: all combinations are run. Other flags are those of `robust-vit train`
(`--config.NAME=VALUE`, `--data`), and hold for every variant. A configuration file names its sweeps in a function
`sweeps()`, which returns {name: {variant: {field: value}}}, the field "config" being another configuration.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from robust_vit import commands, errors, locks, provenance
from robust_vit import config as config_lib
from robust_vit import main as training

_FLAGS = flags.FlagValues()
_CONFIG = flags.DEFINE_string(
    "config", training.DEFAULT, "What is varied: a file, or the name of a shipped one.", flag_values=_FLAGS
)
_SWEEP = flags.DEFINE_string("sweep", "", "Which of the configuration's sweeps.", flag_values=_FLAGS)
_OVER = flags.DEFINE_multi_string("over", [], "FIELD=VALUE,VALUE,...: a field and its values.", flag_values=_FLAGS)
_SEEDS = flags.DEFINE_string("seeds", "", "Comma-separated; every variant is run with each.", flag_values=_FLAGS)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of all run folders, made if needed. Required.", flag_values=_FLAGS
)
_PRINT = flags.DEFINE_bool("print", False, "Print the command lines and run nothing.", flag_values=_FLAGS)
_SUITE = flags.DEFINE_string("suite", "", "Of the table, comma-separated; all by default.", flag_values=_FLAGS)

PLAN = "sweep.json"
Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      variant: its name in the table.
      folder: its run folder.
      flags: of `robust-vit train`, but for the folder.
      config: what they make, not yet resolved.
    """

    variant: str
    folder: pathlib.Path
    flags: tuple[str, ...]
    config: config_lib.ConfigDict

    @property
    def finished(self) -> bool:
        """Whether training and evaluation have come to their end."""
        from robust_vit.training import finish

        return (self.folder / finish.FINISHED).is_file()

    def command(self, program: Sequence[str] = ("robust-vit", "train")) -> list[str]:
        """Its command line."""
        return [*program, *self.flags, f"--workdir={self.folder}"]


def variants(config: str, sweep: str, over: Sequence[str]) -> dict[str, Overrides]:
    """The variants that a command line asks for, by name: of a sweep, or of fields and their values, or of both.

    Raises:
      ValueError: for a sweep that the configuration does not have, or an `--over` that cannot be read.
    """
    known = config_lib.sweeps(config)
    sweep = next(iter(known)) if len(known) == 1 and not (sweep or over) else sweep
    errors.check(
        "sweep", sweep, sweep or over, f"one of {', '.join(known)}" if known else "left out, with --over given"
    )
    named = errors.lookup("sweep", sweep, known) if sweep else {"": {}}
    found = {}
    for parts in itertools.product(named.items(), *map(_values, over)):
        name = ",".join(name for name, _ in parts if name)
        fields = [field for _, overrides in parts for field in overrides]
        twice = sorted({field for field in fields if fields.count(field) > 1})
        errors.check("over", ", ".join(twice), not twice, f"given once: variant {name} sets it more than once")
        found[name] = {field: value for _, overrides in parts for field, value in overrides.items()}
    return found


def _values(over: str) -> list[tuple[str, Overrides]]:
    """`attack.steps=1,7` as [("steps=1", {"attack.steps": "1"}), ...]; commas within brackets do not separate."""
    field, equals, text = over.partition("=")
    values = [value.strip() for value in re.split(r",(?![^(\[]*[)\]])", text)]
    errors.check("over", over, bool(field and equals) and all(values), "FIELD=VALUE,VALUE,... such as attack.steps=1,7")
    errors.check("over", over, len(set(values)) == len(values), "different values")
    field = field.removeprefix("config.")
    return [(f"{field.rpartition('.')[2]}={value}", {field: value}) for value in values]


def plan(arguments: Sequence[str]) -> list[Run]:
    """Reads the command line into runs, all of them checked.

    Raises:
      ValueError: in one line, for whatever would stop one of the runs and can be known before any is started.
    """
    from robust_vit.evaluation import suites

    _FLAGS.unparse_flags()
    try:
        rest = _FLAGS(arguments, known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    errors.check("workdir", _WORKDIR.value, bool(_WORKDIR.value), "given: the folder of the runs, --workdir=runs/name")
    suites.parse(_SUITE.value or ())
    seeds = [seed.strip() for seed in _SEEDS.value.split(",") if seed.strip()]
    errors.check("seeds", _SEEDS.value, len(set(seeds)) == len(seeds), "different whole numbers, such as 0,1,2")
    runs = []
    for variant, overrides in variants(_CONFIG.value, _SWEEP.value, _OVER.value).items():
        for seed in seeds or [""]:
            errors.check("seeds", _SEEDS.value, not (seed and "seed" in overrides), f"left out: {variant} has its own")
            more = overrides | ({"seed": seed} if seed else {})
            folder = pathlib.Path(_WORKDIR.value) / _as_folder(variant) / (f"seed{seed}" if seed else "")
            runs.append(_run(variant, folder, more, rest))
    names = [run.folder for run in runs]
    same = [run.variant for run in runs if names.count(run.folder) > 1]
    errors.check("variants", same, not same, "named differently: their folders would be the same")
    return runs


def _run(variant: str, folder: pathlib.Path, overrides: Overrides, rest: Sequence[str]) -> Run:
    from robust_vit.training import validate

    fields = {field: value for field, value in overrides.items() if field != "config"}
    given = [f"--config={overrides.get('config', _CONFIG.value)}", *rest]
    given += [f"--config.{field}={_as_text(value)}" for field, value in fields.items()]
    try:
        config, _ = training.parse(["sweep", *given, f"--workdir={folder}"])
        validate.validate(config)
    except ValueError as error:
        raise ValueError(f"variant {variant}: {error}") from None
    return Run(variant, folder, tuple(given), config)


def _as_text(value: Any) -> str:
    """A value as a command line has it."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def _as_folder(variant: str) -> str:
    """A name that is one folder on every system."""
    return re.sub(r"[^\w.=,+-]", "_", variant)


def claim(root: pathlib.Path, runs: Sequence[Run]) -> None:
    """Notes the runs in sweep.json; runs that the folder has already must be of the same configuration.

    Raises:
      ValueError: naming the first field that differs.
    """
    root.mkdir(parents=True, exist_ok=True)
    with locks.alone(root):
        path = root / PLAN
        known: dict[str, Any] = provenance.read_json(path)["runs"] if path.is_file() else {}
        for run in runs:
            name, text = run.folder.relative_to(root).as_posix(), config_lib.to_json(run.config)
            if name in known:
                there = config_lib.from_json(json.dumps(known[name]["config"]))
                found = config_lib.differences(there, config_lib.from_json(text))
                if found:
                    raise ValueError(f"workdir = {str(root)!r}: holds {name} with {found[0]}; choose another folder")
            known[name] = {"variant": run.variant, "command": shlex.join(run.command()), "config": json.loads(text)}
        provenance.write_json(path, {"runs": known})


def train(run: Run) -> int:
    """Runs `robust-vit train` in a process of its own and returns its exit status.

    SIGTERM and Ctrl-C are handed on, so that the run saves what it has; the process has a session of its own, where
    the terminal's Ctrl-C would otherwise arrive twice.

    Raises:
      errors.Mendable: after such a signal, whatever became of the run.
    """
    asked: list[int] = []
    started: list[subprocess.Popen] = []

    def hand_on(number: int, _: Any) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        started.append(subprocess.Popen(run.command((sys.executable, "-m", "robust_vit.main")), start_new_session=True))
        for number in asked[:1]:  # while it was starting
            started[0].send_signal(number)
        status = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise errors.Mendable(f"sweep: stopped in {run.folder}; the same command goes on")
    return status


def train_all(runs: Sequence[Run]) -> dict[str, int]:
    """Trains what is not finished; returns {folder: exit status} of those that failed.

    Raises:
      errors.Mendable: where a run was stopped before its end.
    """
    failed = {}
    for number, run in enumerate(runs, 1):
        if run.finished:
            print(f"{number}/{len(runs)} {run.folder}: finished", flush=True)
            continue
        print(f"{number}/{len(runs)} {shlex.join(run.command())}", flush=True)
        status = train(run)
        if status in (0, commands.INTERRUPTED) and not run.finished:
            raise errors.Mendable(f"sweep: stopped in {run.folder}; the same command goes on")
        if status:
            failed[str(run.folder)] = status
    return failed


def report(root: pathlib.Path, runs: Sequence[Run], suites: Sequence[str]) -> list[Any]:
    """Prints the table of the finished runs, and writes it and its picture into the folder; returns its rows."""
    from robust_vit.analysis import comparison
    from robust_vit.analysis import variants as table

    folders: dict[str, list[pathlib.Path]] = {}
    for run in runs:
        if run.finished and (run.folder / "result.json").is_file():
            folders.setdefault(run.variant, []).append(run.folder)
    rows = table.rows(folders, suites) if folders else []
    if not rows:
        print("no table: no finished run has a result")
        return rows
    show(rows, table.HEADS, table.cells)
    comparison.plot([row.median for row in rows]).savefig(root / "sweep.png", dpi=160)
    provenance.write_json(root / "table.json", {"command": provenance.command(), "rows": table.as_json(rows)})
    print(f"written to {root / 'sweep.png'} and {root / 'table.json'}")
    return rows


def show(rows: Sequence[Any], heads: Sequence[str], cells: Any) -> None:
    """Prints a table."""
    import rich.table

    from robust_vit.evaluation import tables

    table = rich.table.Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*cells(row))
    tables.console().print(table)


def sweep(arguments: Sequence[str]) -> list[Any] | None:
    """Does what the command line asks for; returns the rows of the table."""
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    runs = plan(arguments)
    root = pathlib.Path(_WORKDIR.value)
    claim(root, runs)
    if _PRINT.value:
        for run in runs:
            if not run.finished:
                print(shlex.join(run.command()))
        return None
    with locks.hold(root, "workdir"):
        failed = train_all(runs)
        rows = report(root, runs, [name for name in _SUITE.value.split(",") if name])
    if failed:
        names = ", ".join(f"{folder} (status {status})" for folder, status in failed.items())
        raise errors.Mendable(f"sweep: {len(failed)} of {len(runs)} runs failed: {names}; the same command tries again")
    return rows


def main(arguments: Sequence[str]) -> list[Any] | None:
    """Runs the command."""
    return commands.run(sweep, arguments)


if __name__ == "__main__":
    main(sys.argv)
