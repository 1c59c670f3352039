"""All runs in one table: robust-vit leaderboard runs/*

Prints clean and robust accuracy with 95 % intervals, what training and AutoAttack took, and the fields in which each
configuration differs from the others; the most robust run first. The same goes to `leaderboard.md`, `leaderboard.csv`
and `leaderboard.html`, whose table sorts itself and leads to the runs' pages.

    robust-vit leaderboard runs/* --out=tables

Folders without a result are left out, and named.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from robust_vit import commands
from robust_vit.analysis.report import board
from robust_vit.errors import check

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", ".", "Folder of the three files; '' for none.", flag_values=_FLAGS)


def leaderboard(arguments: Sequence[str]) -> list[board.Row]:
    """Does what the command line asks for, and returns the rows of the table."""
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}") or []
    folders = commands.parse(_FLAGS, arguments, positional=True)
    check("runs", folders, bool(folders), "run folders: robust-vit leaderboard runs/*")
    folders = [folder for folder in folders if pathlib.Path(folder).is_dir()]
    rows = board.gather(folders)
    show(rows)
    kept = {row.folder for row in rows}
    for folder in folders:
        if pathlib.Path(folder) not in kept:
            print(f"left out: {folder} has no result; robust-vit evaluate --workdir={folder} makes it")
    if _OUT.value:
        for path in board.write(rows, _OUT.value):
            print(f"written to {path}")
    return rows


def show(rows: Sequence[board.Row]) -> None:
    """Prints the table, and below it what sets each run apart."""
    import rich.table
    import rich.text

    from robust_vit.evaluation import tables

    table = rich.table.Table(box=None, pad_edge=False)
    for head in board.HEAD_CELLS[:-1]:
        table.add_column(head, justify="right" if head in board.NUMBERS else "left")
    for row in rows:
        table.add_row(*(rich.text.Text(cell.text) for cell in board.cells(row)[:-1]))
    tables.console().print(table)
    for row in rows:
        if row.apart:
            print(f"{row.name}: {'; '.join(row.apart)}")


def main(arguments: Sequence[str]) -> list[board.Row]:
    """Runs the command."""
    return commands.run(leaderboard, arguments)


if __name__ == "__main__":
    main(sys.argv)
