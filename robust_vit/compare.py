"""Runs side by side: python -m robust_vit.compare runs/digits runs/plain

Prints one table of what the runs have in common: accuracies with 95 % intervals, and the difference of every run to the
first. Where both runs know each example's outcome the difference is paired, which is much sharper: p is McNemar's exact
probability. The fields in which the configurations differ are listed below. `compare.png` shows the same.

    robust-vit compare runs/digits runs/plain --suite=clean,pgd --out=compare.png
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from robust_vit import commands
from robust_vit.analysis import comparison

_FLAGS = flags.FlagValues()
_SUITE = flags.DEFINE_string("suite", "", "Comma-separated; all that the runs share by default.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", "compare.png", "Where the picture goes; '' for none.", flag_values=_FLAGS)


def compare(arguments: Sequence[str]) -> list[comparison.Row]:
    """Does what the command line asks for, and returns the rows of the table."""
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}") or []
    runs = commands.parse(_FLAGS, arguments, positional=True)
    rows = comparison.compare(runs, [name for name in _SUITE.value.split(",") if name])
    show(rows)
    for line in differing_fields(runs):
        print(line)
    if _OUT.value:
        out = pathlib.Path(_OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        comparison.plot(rows).savefig(out, dpi=160)
        print(f"written to {out}")
    return rows


def show(rows: Sequence[comparison.Row]) -> None:
    """Prints the table."""
    import rich.table

    from robust_vit.evaluation import tables

    table = rich.table.Table(box=None, pad_edge=False)
    for i, head in enumerate(comparison.HEADS):
        table.add_column(head, justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*comparison.cells(row))
    tables.console().print(table)


def differing_fields(runs: Sequence[str]) -> list[str]:
    """Lines that name the fields in which the other runs' configurations differ from the first's."""
    from robust_vit import config as config_lib

    paths = [pathlib.Path(run) / "config.json" for run in runs]
    known = {path.parent: config_lib.from_json(path.read_text()) for path in paths if path.is_file()}
    if paths[0].parent not in known:
        return []
    first, lines = known.pop(paths[0].parent), []
    for folder, config in known.items():
        found = config_lib.differences(first, config)
        lines += [f"{folder.name}: {line.replace(' there', f' in {paths[0].parent.name}')}" for line in found]
    return [line.removesuffix(" here") for line in lines]


def main(arguments: Sequence[str]) -> list[comparison.Row]:
    """Runs the command."""
    return commands.run(compare, arguments)


if __name__ == "__main__":
    main(sys.argv)
