"""The only file that knows devices: mesh, shardings, compilation, pmap, global arrays, multi-host start.

One `jax.jit` over global arrays on a mesh is the way the trainer and the evaluator run: batches are split over the mesh
axis `data`, the state is replicated, and XLA inserts the one all-reduce of the gradients. Since JAX 0.10 `jax.pmap` is
itself a wrapper of `jit(shard_map)`; `pmap` below is its door for code that works with per-device arrays (a leading
axis of devices).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robust_vit.errors import check

DATA = "data"  # the name of the mesh axis that examples are split over


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Joins a multi-host run, before any other JAX call. On Cloud TPU and SLURM JAX finds the arguments itself."""
    if not jax.distributed.is_initialized():
        jax.distributed.initialize(coordinator, processes, index)


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


def compile(
    function: Callable[..., Any], mesh: Mesh, *, arguments: str, results: str | None = None, donate: Iterable[int] = ()
) -> Callable[..., Any]:
    """`jax.jit` with shardings written as one letter an argument.

    Args:
      function: a pure function of global arrays.
      mesh: the devices.
      arguments: one letter per positional argument: `b` split over the batch axis, `r` replicated.
      results: the same for the results (one letter for a single result); None lets XLA choose.
      donate: positions of arguments whose buffers are reused for the results.
    """
    letters = {"b": batched(mesh), "r": replicated(mesh)}
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
