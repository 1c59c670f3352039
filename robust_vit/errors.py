"""Errors are part of the interface: one line with the field, the value and what is allowed."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def check(field: str, value: Any, condition: bool, allowed: str) -> None:
    """Raises ValueError `field = value: must be <allowed>` unless the condition holds."""
    if not condition:
        raise ValueError(f"{field} = {value!r}: must be {allowed}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns '; did you mean ...?' for the closest choice, or an empty string."""
    name, choices = str(name), list(choices)
    swapped = [
        choice for choice in choices if sorted(choice) == sorted(name)
    ]  # letters out of order: no other is nearer
    close = swapped or difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(field: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `allowed`; names the nearest one."""
    lookup(field, value, dict.fromkeys(allowed))


def lookup(field: str, name: str, table: Mapping[str, T]) -> T:
    """Returns table[name].

    Raises:
      ValueError: naming the field, the value, the nearest name and, where they fit on a line, all names.
    """
    if name in table:
        return table[name]
    known = ", ".join(sorted(table))
    listing = f"one of {known}" if len(known) < 300 else f"one of {len(table)} names"
    raise ValueError(f"{field} = {name!r}: must be {listing}{nearest(str(name).lower(), table)}")


class Mendable(Exception):
    """A failure that its user can mend, told in one line: commands print it without a traceback."""
