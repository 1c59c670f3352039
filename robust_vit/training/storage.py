"""What orbax and tensorstore raise, log and print of files that cannot be written or read, made one line.

Importing it quietens their logs: orbax reports every file at INFO, and its threads log a traceback each for an error
that the main thread raises anyway.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

from robust_vit.training.digests import DamagedError

NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")

absl_logging.set_verbosity(absl_logging.ERROR)
logging.getLogger("absl").addFilter(lambda entry: not (entry.exc_info and "orbax" in entry.pathname))


def explain_writing(error: Exception) -> tuple[str, str]:
    """Returns why a checkpoint could not be written, and what to do."""
    for cause in NO_SPACE:
        if cause in str(error):
            return cause, "make space; the same command then resumes"
    return first_line(error), "the same command resumes"


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns the many kinds of error that a damaged file raises into one.

    What says nothing about the file passes: no memory, no permission.

    Raises:
      DamagedError: with the first line of the error.
    """
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise DamagedError(first_line(error)) from error


def hush() -> None:
    """The first error of a checkpoint ends all its reads or writes; tensorstore prints a traceback for each other."""
    if not isinstance(sys.unraisablehook, _Hushed):
        sys.unraisablehook = _Hushed(sys.unraisablehook)


class _Hushed:
    """Python's hook for errors that nobody can catch, but for those of tensorstore's abandoned reads and writes."""

    def __init__(self, before: Any):
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


def first_line(error: Exception) -> str:
    """The first line of an error's text, cut to a length that can be read."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 200 else line[:200] + "…"
