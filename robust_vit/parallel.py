"""The only file that knows devices: mesh, shardings, compilation, pmap, global arrays, collectives between hosts.

One `jax.jit` over global arrays on a mesh is the way the trainer and the evaluator run: batches are split over the mesh
axis `data`, the state is replicated or split by the rule of `layout`, and XLA inserts the one all-reduce of the
gradients. Since JAX 0.10 `jax.pmap` is itself a wrapper of `jit(shard_map)`; `pmap` below is its door for code that
works with per-device arrays (a leading axis of devices).
"""

import fnmatch
import functools
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robust_vit.errors import check

DATA = "data"  # the name of the mesh axis that examples are split over
SHARDINGS = ("replicated", "fsdp")
SMALL = 2**12  # numbers; to gather a smaller leaf costs more than it saves
PATIENCE = 300  # seconds that a process waits for the coordinator
SILENCE = 60  # seconds without a sign of life after which a process of the job counts as dead


def initialize(
    coordinator: str | None = None, processes: int | None = None, index: int | None = None, timeout: float = PATIENCE
) -> None:
    """Joins a multi-host run, before any other JAX call. On Cloud TPU and SLURM JAX finds the arguments itself.

    Args:
      coordinator: host:port of the first process.
      processes: how many there are.
      index: this one's number, from 0.
      timeout: seconds to wait for the coordinator.

    Raises:
      ValueError: in one line, if it is not reached in that time, or is not known.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator is not None and index:
        reach(coordinator, timeout)
    try:
        jax.distributed.initialize(
            coordinator, processes, index, initialization_timeout=math.ceil(timeout), heartbeat_timeout_seconds=SILENCE
        )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        where = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"coordinator = {where!r}: not joined within {timeout:g} s: {said}") from None


def reach(coordinator: str, timeout: float) -> None:
    """Waits until somebody listens at the coordinator's address: JAX ends the process where it finds nobody.

    Raises:
      ValueError: in one line, if that takes longer than so many seconds.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError as error:
            if time.monotonic() > end:
                said = error.strerror or error
                raise ValueError(f"coordinator = {coordinator!r}: not reached within {timeout:g} s: {said}") from None
            time.sleep(0.2)


def mesh(devices: int | Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a one-axis mesh over the first `devices` devices (all of them by default).

    Raises:
      ValueError: if more devices are asked for than there are, or fewer than 0.
    """
    if devices is None or isinstance(devices, int):
        check("parallel.devices", devices, devices is None or devices >= 0, "a number of devices, or 0 for all")
        available = jax.devices()
        count = len(available) if not devices else devices
        if count > len(available):
            raise ValueError(
                f"parallel.devices = {count}: only {len(available)} {available[0].platform} devices are present"
            )
        devices = available[:count]
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def batched(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state and scalars: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def layout(mesh: Mesh, tree: Any, sharding: str = "replicated", whole: Sequence[str] = ()) -> Any:
    """Says where every leaf of a state lies: one `NamedSharding` a leaf.

    "replicated": a copy on every device. "fsdp": each leaf is split over the devices along its longest axis that
    divides by their number, so that every device keeps its share of weights, moments and averages. What has no such
    axis or is small stays whole, and so does what is named.

    Args:
      mesh: the devices.
      tree: arrays, or their shapes.
      sharding: one of SHARDINGS.
      whole: patterns of parameters that are not split, nor their moments and averages: "head", "blocks_[0-5]".
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        kept = sharding == "replicated" or any(named("/".join(parts[i:]), whole) for i in range(len(parts)))
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if kept or not axes or math.prod(leaf.shape) < SMALL:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))

    return jax.tree_util.tree_map_with_path(one, tree)


def named(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns means a path, or something that holds it, as in `optimizer.freeze`."""
    return any(fnmatch.fnmatchcase(path, one) or fnmatch.fnmatchcase(path, f"{one}/*") for one in patterns)


def constrained(mesh: Mesh, sharding: str = "replicated", whole: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Makes a function that asks the compiler to have a tree lie as `layout` says, inside a compiled program."""
    return lambda tree: jax.lax.with_sharding_constraint(tree, layout(mesh, tree, sharding, whole))


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this host's slice of a batch (arrays [B / hosts, ...]) on its devices as global arrays [B, ...]."""
    sharding = batched(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies a tree to every device.

    A compiled identity and not `device_put`: that may alias, and donating an alias deletes the caller's array.
    """
    return _copy_program(mesh)(tree)


@functools.lru_cache(maxsize=8)  # a fresh `jit` a call would compile a call
def _copy_program(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def copied(tree: Any, places: Any) -> Any:
    """Copies a tree to where `layout` says; buffers of its own, as in `replicate`."""
    return jax.jit(lambda x: x, out_shardings=places)(tree)


def fetch(leaf: Any) -> np.ndarray:
    """An array as NumPy has it, on every host: of one that is split over hosts, all hosts have to ask for it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def compile(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    arguments: str,
    results: str | None = None,
    donate: Iterable[int] = (),
    state: Any = None,
) -> Callable[..., Any]:
    """`jax.jit` with shardings written as one letter an argument.

    Args:
      function: a pure function of global arrays.
      mesh: the devices.
      arguments: one letter per positional argument: `b` split over the batch axis, `r` replicated, `s` as `state` says.
      results: the same for the results (one letter for a single result); None lets XLA choose.
      donate: positions of arguments whose buffers are reused for the results.
      state: from `layout`, where there is an `s`.
    """
    letters = {"b": batched(mesh), "r": replicated(mesh), "s": state}
    shardings = tuple(letters[letter] for letter in arguments)
    outputs = (
        {}
        if results is None
        else {"out_shardings": letters[results] if len(results) == 1 else tuple(letters[r] for r in results)}
    )
    return jax.jit(function, in_shardings=shardings, donate_argnums=tuple(donate), **outputs)


def pmap(attack: Callable[..., Any], devices: Sequence[jax.Device] | None = None) -> Callable[..., Any]:
    """The per-device form of an attack: keys, images and targets get a leading device axis.

    Args:
      attack: any `robust_vit.typing.Attack`.
      devices: which devices; all by default.

    Returns:
      A callable whose arrays are [devices, B, ...]; `logits_fn` and `strength` are copied to every device.
    """
    mapped = jax.pmap(attack, in_axes=(0, None, 0, 0, None), devices=devices)

    def per_device(keys: Any, logits_fn: Any, images: Any, targets: Any, strength: Any = 1.0) -> Any:
        return mapped(keys, logits_fn, images, targets, strength)

    return per_device


def split(tree: Any, count: int) -> Any:
    """Reshapes every [B, ...] to [count, B / count, ...]: the layout `pmap` takes."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)


def is_main() -> bool:
    """True on the one process that prints and writes shared files."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """True on every host if `value` is true on every host. All of them have to ask, and wait for one another here."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def gather_text(text: str) -> list[str]:
    """The texts of all hosts, in their order. All of them have to ask."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(content)))
    padded = np.pad(content, (0, int(lengths.max()) - len(content)))
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [n, ...] of every host, joined in the order of the hosts; each has as many. All of them have to ask."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
