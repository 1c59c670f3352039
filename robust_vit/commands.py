"""What all commands share: `robust-vit COMMAND ...`, one line for whatever goes wrong, a pipe that may close.

    robust-vit train --config=digits --workdir=runs/digits        # the same as python -m robust_vit.main ...
    robust-vit evaluate --workdir=runs/digits --suite=clean,autoattack

A command is a module with a `main(arguments)`, arguments[0] being the program's name. To add one: write the module at
the root of the package, let its `main` be `commands.run` of the work, and add its line to COMMANDS.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from robust_vit import errors

# Name -> (module, what it does).
COMMANDS = {
    "train": ("robust_vit.main", "train from a configuration, evaluate, leave a run folder; again resumes"),
    "evaluate": ("robust_vit.evaluate", "measure a run, converted weights or your own classifier"),
    "label": ("robust_vit.label", "pseudo-labels for images by a run or converted weights, to train on"),
    "convert": ("robust_vit.convert", "weights from PyTorch checkpoints, and back"),
    "models": ("robust_vit.models.__main__", "list the architectures with parameters and multiply-adds"),
    "sweep": ("robust_vit.sweep", "variants of a run one after another, and their table; or their command lines"),
    "compare": ("robust_vit.compare", "runs side by side, with the paired difference"),
    "explain": ("robust_vit.explain", "pictures of what a run does under attack, with their numbers"),
    "leaderboard": ("robust_vit.leaderboard", "all runs in one table: Markdown, CSV and HTML"),
    "preview": ("robust_vit.preview", "draw what augmentation makes of the training images"),
    "plan": ("robust_vit.plan", "memory, arithmetic, hours and cost of a run on TPUs or GPUs that are not here"),
    "doctor": ("robust_vit.doctor", "is this installation fit to compute? versions, devices, numerical checks"),
}
HELP = ("-h", "-help", "--help", "--helpfull")
Main = Callable[[Sequence[str]], Any]
INTERRUPTED = 130  # what shells report of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> Any:
    """The console script `robust-vit`."""
    arguments = list(sys.argv if arguments is None else arguments)
    name = arguments[1] if len(arguments) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        return print(overview())
    if name == "--version":
        from robust_vit import __version__

        return print(f"robust_vit {__version__}")
    return run(lambda rest: _command(name).main(rest), [f"robust-vit {name}", *arguments[2:]])


def script() -> None:
    """The console script: what a command returns is for Python, not for the shell."""
    main(sys.argv)


def overview() -> str:
    """What `robust-vit --help` says."""
    lines = [f"  {name:11s} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: robust-vit COMMAND ...; robust-vit COMMAND --help tells more", "", *lines])


def _command(name: str) -> Any:
    return importlib.import_module(errors.lookup("command", name, COMMANDS)[0])


def wants_help(arguments: Sequence[str]) -> bool:
    """True if one of the arguments asks for help."""
    return bool(set(HELP) & set(arguments[1:]))


def parse(values: Any, arguments: Sequence[str], positional: bool = False) -> list[str]:
    """Reads a command line into absl's flag values.

    Args:
      values: the command's own `flags.FlagValues`.
      arguments: program name first.
      positional: whether arguments that are no flags are allowed.

    Returns:
      The arguments that are no flags.

    Raises:
      ValueError: for a flag that does not exist, with the nearest that does, or a bad value.
    """
    from absl import flags

    values.unparse_flags()  # of an earlier call in this process
    try:
        rest = values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest and not positional:
        raise ValueError(f"{rest[0]!r}: is no flag; --help lists them")
    return rest


def run(function: Main, arguments: Sequence[str] | None = None) -> Any:
    """Calls a command; what a user can mend ends the program with one line on stderr.

    Args:
      function: the command, given the arguments.
      arguments: program name first; sys.argv by default.

    Raises:
      SystemExit: with "error: ..." (status 1), or status 130 after Ctrl-C.
    """
    survive_closed_pipe()
    try:
        return function(list(sys.argv if arguments is None else arguments))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = explained(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")


def explained(error: BaseException) -> str | None:
    """One line for an error that its user can mend; None for a fault of the program, whose traceback should be seen.

    Errors that libraries wrap around a full disk are searched for it through their causes.
    """
    if isinstance(error, errors.Mendable):
        return " ".join(str(error).split())
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on device{_named(cause)}; make space, and the same command goes on"
        if "No space left on device" in str(cause) or "RESOURCE_EXHAUSTED: Error writing" in str(cause):
            return "no space left on device; make space, and the same command goes on"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{(error.strerror or str(error)).lower()}{_named(error)}"
    return None


def _named(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def survive_closed_pipe() -> None:
    """Makes a reader that goes away (`... | head`) cost the output and nothing else: the work goes on in silence."""
    if not isinstance(sys.stdout, _Pipe) and hasattr(sys.stdout, "fileno"):
        sys.stdout = _Pipe(sys.stdout)


class _Pipe:
    """A text stream that turns into /dev/null when its reader has gone."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or drops, `text`."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._close(len(text))

    def flush(self) -> None:
        """Flushes what is still wanted."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close(0)

    def _close(self, written: int) -> int:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())  # so that what is buffered has somewhere to go, at exit too
        os.close(nothing)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
