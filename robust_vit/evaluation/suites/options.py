"""What single suites take besides the threat model: an option has a reader, its allowed values in words, and its help.

Every suite keeps its options beside itself; `suites.OPTIONS` joins them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from robust_vit.threat import fraction


@dataclasses.dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
      read: makes the value of a text from the command line, or of a value given in Python; ValueError if it is not of
        its kind.
      allowed: which values, in words.
      help: what it does, and its default.
    """

    read: Callable[[Any], Any]
    allowed: str
    help: str

    def __call__(self, name: str, value: Any) -> Any:
        """The value.

        Raises:
          ValueError: in one line.
        """
        try:
            return self.read(value)
        except (ValueError, TypeError, OverflowError, ZeroDivisionError):
            raise ValueError(f"option {name} = {value!r}: cannot be read, must be {self.allowed}") from None


def whole(help: str, minimum: int = 1) -> Option:
    """A whole number."""

    def read(value: Any) -> int:
        number = int(value)
        if number < minimum or number != float(value) or isinstance(value, bool):
            raise ValueError
        return number

    return Option(read, f"a whole number, at least {minimum}", help)


def positive(help: str) -> Option:
    """A positive number, also as a fraction."""

    def read(value: Any) -> float:
        number = fraction(str(value))
        if not 0 < number < math.inf:
            raise ValueError
        return number

    return Option(read, "a positive number", help)


def radii(help: str) -> Option:
    """A list of radii, 0 among them if wanted: 0,2/255,4/255. Numbers without a comma may be parted by slashes."""

    def read(value: Any) -> list[float]:
        parts: Iterable[Any] = value
        if isinstance(value, str):
            parts = value.split(",") if "," in value else value.split("/")
        numbers = [fraction(str(part)) for part in parts]
        if not numbers or not all(0 <= number < math.inf for number in numbers):
            raise ValueError
        return numbers

    return Option(read, "numbers, at least 0, such as 0,2/255,4/255", help)


def choice(help: str, choices: Iterable[str]) -> Option:
    """One of some words."""
    words = tuple(choices)

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError
        return value

    return Option(read, f"one of {', '.join(words)}", help)


def text(help: str, allowed: str = "a text") -> Option:
    """Any text but the empty one."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    return Option(read, allowed, help)


def flag(help: str) -> Option:
    """true or false."""
    words = {"true": True, "1": True, "false": False, "0": False}

    def read(value: Any) -> bool:
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]

    return Option(read, "true or false", help)
