"""The processes of one job: how they find each other, that they are to do the same, what is said when one has died.

    robust-vit train ... --distributed                                                # Cloud TPU, SLURM: JAX finds out
    robust-vit train ... --coordinator=first:1234 --processes=2 --process=0           # and --process=1 on the second

The distributed run itself is JAX's multi-controller runtime.
"""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags

from robust_vit import parallel, provenance
from robust_vit.errors import Mendable, check

NAMES = ("distributed", "coordinator", "processes", "process", "timeout")  # of the flags


class JobError(Mendable, RuntimeError):
    """Another process of the job has died."""


def define(values: flags.FlagValues) -> None:
    """Adds the flags that a command of several processes takes."""
    flags.DEFINE_bool("distributed", False, "Join a multi-host run (Cloud TPU, SLURM).", flag_values=values)
    flags.DEFINE_string("coordinator", None, "The same by hand: HOST:PORT of the first process.", flag_values=values)
    flags.DEFINE_integer("processes", None, "How many processes there are.", flag_values=values)
    flags.DEFINE_integer("process", None, "The number of this one, from 0.", flag_values=values)
    flags.DEFINE_integer("timeout", parallel.PATIENCE, "Seconds to wait for the coordinator.", flag_values=values)


def join(given: flags.FlagValues) -> None:
    """Joins the job that the flags name, if they name one.

    Raises:
      ValueError: in one line, for flags that do not fit each other, or a coordinator that is not reached in time.
    """
    count, number, address = given.processes, given.process, given.coordinator
    check("timeout", given.timeout, given.timeout > 0, "a number of seconds above 0")
    if address is None:
        check("processes", count, count is None, "left out without --coordinator")
        check("process", number, number is None, "left out without --coordinator")
        return parallel.initialize(timeout=given.timeout) if given.distributed else None
    host, _, port = address.rpartition(":")
    check("coordinator", address, bool(host) and port.isdigit(), "HOST:PORT of the first process")
    check("processes", count, count is not None and count >= 1, "given with --coordinator, at least 1")
    check("process", number, number is not None and 0 <= number < count, f"given, in [0, {count})")
    parallel.initialize(address, count, number, given.timeout)


def check_alike(what: Mapping[str, Any]) -> None:
    """Holds what this process is about to do against what the first one is; all processes have to ask.

    Args:
      what: JSON values by field; versions of the packages are added.

    Raises:
      ValueError: on every process, naming the first that differs, its machine, and the field.
    """
    if jax.process_count() == 1:
        return
    own = {"machine": socket.gethostname(), "what": {**what, "versions": provenance.versions()}}
    first, *others = (json.loads(text) for text in parallel.gather_text(json.dumps(own, sort_keys=True, default=str)))
    for number, other in enumerate(others, 1):
        for field, value in _differences(first["what"], other["what"]):
            raise ValueError(
                f"process {number} ({other['machine']}): {field} = {value[1]!r}, {value[0]!r} of the first; all"
                " processes of a job are started with the same command and versions"
            )


def _differences(there: Any, here: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The fields that differ, by their dotted names."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            yield from _differences(there.get(name), here.get(name), f"{prefix}.{name}" if prefix else name)
    elif there != here:
        yield prefix, (there, here)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Around the work of a job: turns what a collective raises when another process has died into one line.

    Raises:
      JobError: naming this process.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        said = " ".join(str(error).split())[:200]
        raise JobError(
            f"process {jax.process_index()} of {jax.process_count()}: another process of the job has died or cannot be"
            f" reached ({said}); start all of them again, they resume"
        ) from error
