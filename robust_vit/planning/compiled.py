"""Programs compiled for chips that are not here: their memory, their collectives, their text."""

import collections
import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robust_vit import models, parallel
from robust_vit.evaluation.autoattack import ensembles, runs
from robust_vit.evaluation.scheduling import tile
from robust_vit.models import summary
from robust_vit.training import programs
from robust_vit.training.experiment import Experiment

COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
EXCEEDED = re.compile(  # libtpu says it in one of two ways
    r"[Uu]sed ([\d.]+)([KMG]) of ([\d.]+)([KMG])|\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class OutOfMemory(Exception):
    """A program needs more memory than a chip has.

    Attributes:
      needed, available: bytes a chip; None where the compiler did not say.
    """

    def __init__(self, said: str):
        super().__init__(said)
        match = EXCEEDED.search(said)
        needed, unit, available, other = [part for part in match.groups() if part] if match else [None] * 4
        self.needed = float(needed) * UNITS[unit] if match else None
        self.available = float(available) * UNITS[other] if match else None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      peak: bytes on a chip at the fullest moment, arguments included.
      arguments: bytes on a chip of what it is called with.
      collectives: {kind: how many} in the text; one inside a loop counts once.
      macs: multiply-adds of all chips, counted from the trace; a loop without a fixed length counts once.
      trace_seconds, compile_seconds: what it took here.
      lowered: the program as it was handed to the compiler.
    """

    peak: int
    arguments: int
    collectives: dict[str, int]
    macs: int
    trace_seconds: float
    compile_seconds: float
    lowered: str

    @property
    def talk(self) -> str:
        """Its collectives in words."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.collectives.items())) or "no collectives"


def compiled(jitted: Any, *arguments: Any) -> Program:
    """Compiles a function for the chips that the shardings of its arguments name.

    Args:
      jitted: what `jax.jit` returned.
      *arguments: shapes that say where they lie.

    Raises:
      OutOfMemory: if it does not fit.
    """
    began = time.perf_counter()
    traced = jitted.trace(*arguments)
    lowered = traced.lower()
    ready = time.perf_counter()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from None
        raise
    memory = done.memory_analysis()
    return Program(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        collectives=dict(collections.Counter(COLLECTIVE.findall(done.as_text()))),
        macs=summary.traced_macs(traced.jaxpr.jaxpr),
        trace_seconds=ready - began,
        compile_seconds=time.perf_counter() - ready,
        lowered=lowered.as_text(),
    )


def training_step(experiment: Experiment, stage: int = -1, teacher: Any = None) -> Program:
    """The training step of a run, as its trainer compiles it, for the run's mesh.

    Args:
      experiment: built for a described mesh.
      stage: which of its stages.
      teacher: see `programs.abstract_arguments`.

    Raises:
      OutOfMemory: if it does not fit.
    """
    jitted = programs.compile_step(experiment, experiment.stages[stage])
    return compiled(jitted, *programs.abstract_arguments(experiment, teacher))


def attack_steps(part: ensembles.Part, module: Any, norm: str, mesh: Mesh, slots: int) -> Program:
    """The steps of a part of AutoAttack, as its evaluation compiles them.

    Args:
      part: of `ensembles.parts`.
      module: the model.
      norm: of the threat model.
      mesh: the chips.
      slots: of the tile, over all chips.

    Raises:
      OutOfMemory: if they do not fit.
    """
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(parallel.DATA)))
    run = runs.build(part, norm, classes=module.num_classes)
    logits_fn, shape = models.logits_fn(module, summary.shapes(module)), models.image_shape(module)
    state = jax.eval_shape(lambda: tile.empty(tile.state_shapes(run, logits_fn, slots, shape), slots))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    program = tile.steps_program(run, mesh).jitted
    return compiled(program, _placed(logits_fn, whole), _placed(state, split), count, count)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def largest(fits: Callable[[int], bool], too_many: int, multiple: int) -> int | None:
    """The largest batch that fits, to an eighth of it: halved until it does, then between.

    Args:
      fits: whether a batch does.
      too_many: a batch that does not.
      multiple: what a batch is a multiple of.

    Returns:
      The batch; None if none does.
    """
    high = too_many
    low = high // 2 // multiple * multiple
    while low >= multiple and not fits(low):
        high, low = low, low // 2 // multiple * multiple
    if low < multiple:
        return None
    while (middle := (low + high) // 2 // multiple * multiple) > low and high - low > max(multiple, low // 8):
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
