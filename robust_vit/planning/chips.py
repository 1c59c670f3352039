"""Devices that are described and not here: `v5e:4x4` are sixteen chips of a TPU, `gpu:8xH100` eight GPUs.

libtpu knows which topologies exist, and compiles for them without a TPU.
"""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from robust_vit import parallel
from robust_vit.errors import check, lookup

INSTALL = "libtpu is not installed, which compiles for TPUs (no TPU is needed): pip install libtpu"
# So that libtpu asks no metadata server, and several processes may load it at once.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TERA, GIB = 1e12, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
      peak: multiplications and additions a second in bfloat16, dense.
      memory: bytes that programs may use.
      peak32: the same of products of float32 at JAX's default precision: TPUs take them in bfloat16, GPUs in TF32.
    """

    peak: float
    memory: float
    peak32: float


def _tpu(tera: float, gib: float) -> Chip:
    return Chip(tera * TERA, gib * GIB, tera * TERA)


# Peaks: docs.cloud.google.com/tpu/docs, a page a generation. Memory: what libtpu 0.0.42.1 says that a program may use,
# of one that uses too much.
TPUS = {
    "v5e": _tpu(197, 15.75),
    "v5p": _tpu(459, 95.74),
    "v6e": _tpu(918, 31.25),
}
# Peaks without sparsity and memory: NVIDIA's data sheets; the memory of the SXM modules, of which drivers keep some.
GPUS = {
    "A100": Chip(312 * TERA, 80e9, 156 * TERA),
    "H100": Chip(989 * TERA, 80e9, 494 * TERA),
    "H200": Chip(989 * TERA, 141e9, 494 * TERA),
}
EXAMPLES = "a topology such as v5e:4x4, v5p:2x2x1, v6e:2x4 or gpu:8xH100"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Equal chips.

    Attributes:
      name: as it was asked for.
      kind: of the chip.
      chip: its figures.
      count: of chips.
      mesh: all of them in a row, to compile for; None where no compiler is at hand, of GPUs.
    """

    name: str
    kind: str
    chip: Chip
    count: int
    mesh: Mesh | None

    def __str__(self) -> str:
        peak, memory = self.chip.peak / TERA, self.chip.memory / GIB
        return f"{self.count} x {self.kind}, each {memory:.2f} GiB and {peak:.0f} TFLOP/s in bfloat16 at its peak"


def describe(name: str) -> Topology:
    """Describes a topology.

    Raises:
      ValueError: if there is none of that name; or libtpu, which knows those of TPUs, is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "gpu":
        match = re.fullmatch(r"(\d+)x(\w+)", shape)
        check("topology", name, bool(match) and int(match[1]) > 0, EXAMPLES)
        return Topology(name, match[2], lookup("topology: GPU", match[2], GPUS), int(match[1]), None)
    check("topology", name, kind in TPUS and bool(shape), EXAMPLES)
    mesh = tpu_mesh(name)
    return Topology(name, f"TPU {kind}", TPUS[kind], mesh.size, mesh)


def tpu_mesh(name: str) -> Mesh:
    """All chips of a TPU's topology, in a row.

    Raises:
      ValueError: if libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"topology = {name!r}: {INSTALL}")
    os.environ |= {key: os.environ.get(key, value) for key, value in QUIET.items()}
    try:
        chips = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"topology = {name!r}: must be {EXAMPLES}; libtpu says: {said}") from None
    return topologies.make_mesh(chips, (len(chips.devices),), (parallel.DATA,))
