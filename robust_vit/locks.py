"""One writer a folder: a lock file that names its holder, and that a killed holder cannot leave behind for good.

    with locks.hold(workdir, "workdir"):
        ...

The lock is a JSON file {host, pid, process, command, since} that appears whole or not at all. `process` tells a process
from a later one with the same number: a lock whose process is gone, or is another one, is stale and is taken over with
a note. Only a process of the same host can be looked at; a lock of another host stands until it is removed by hand.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from robust_vit import provenance

try:
    import fcntl
except ImportError:  # Windows: two that take over the same stale lock in the same instant are then not kept apart
    fcntl = None

NAME = "lock.json"


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike[str], what: str = "workdir", say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keeps other processes out of a folder while the body runs.

    Args:
      folder: the folder; made if needed.
      what: how the user calls it: the field that an error names ("workdir", "ledger").
      say: takes the note that a stale lock was taken over; None prints it to stderr.

    Raises:
      ValueError: if a live process of this host, or any of another host, holds the folder: who, since when, doing what.
    """
    path = pathlib.Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = _describe()
    with alone(path.parent):
        found = _read(path)
        if found is not None:
            note = _judge(path, found, what)
            path.unlink(missing_ok=True)
            (say or _print)(note)
        _create(path, mine, what)
    try:
        yield
    finally:
        if _read(path) == mine:  # and not somebody else's, who removed ours by hand
            path.unlink(missing_ok=True)


def _judge(path: pathlib.Path, found: dict[str, Any], what: str) -> str:
    """The note of a takeover.

    Raises:
      ValueError: if the holder lives, or may live.
    """
    field = f"{what} = {str(path.parent)!r}"
    who = f"pid {found.get('pid')} on {found.get('host')} since {found.get('since')}, {found.get('command')}"
    if not found:
        return f"{field}: took over an unreadable lock"
    if found.get("host") != socket.gethostname():
        raise ValueError(f"{field}: in use by {who}; if that run is over, remove {path}")
    if found.get("process") == _process(found.get("pid", 0)):
        again = " (this very process)" if found.get("pid") == os.getpid() else ""
        raise ValueError(f"{field}: in use by {who}{again}; wait for it, stop it, or choose another folder")
    return f"{field}: took over the lock of {who}, which is gone"


def _describe() -> dict[str, Any]:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    me = {"host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid())}
    return me | {"command": provenance.command(), "since": since, "id": uuid.uuid4().hex}


def _process(pid: int) -> str:
    """What tells a process from any other that has had, or will have, its number; "" if none has it now."""
    try:
        # the command's name, in brackets, may hold blanks; after it: state, ..., start in clock ticks since boot
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"  # Z, X: dead, not yet reaped by its parent
    except (FileNotFoundError, ProcessLookupError):
        if sys.platform.startswith("linux"):
            return ""
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """The lock's content; {} for one that cannot be read; None where there is none."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _create(path: pathlib.Path, content: dict[str, Any], what: str) -> None:
    """Creates the lock with its content, or raises where another one was faster."""
    scratch = path.with_name(f".{path.name}.{content['id']}")
    scratch.write_text(json.dumps(content, indent=1))
    try:
        try:
            os.link(scratch, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
                file.write(scratch.read_text())
    except FileExistsError:
        _judge(path, _read(path) or {}, what)
        raise ValueError(f"{what} = {str(path.parent)!r}: another process has just taken {path}; try again") from None
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process of this host after the other through; the system lets go of it when a process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot: O_EXCL still lets only one create the lock
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _print(note: str) -> None:
    print(f"note: {note}", file=sys.stderr, flush=True)
