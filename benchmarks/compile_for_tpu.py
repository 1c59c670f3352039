"""How long do AutoAttack's programs take to compile for a TPU, and how much memory do they need there? None is needed.

    pip install libtpu
    python benchmarks/compile_for_tpu.py --model=xcit_small_12_p16_224 --topology=v5e:2x2 --tile=128

Compiles the steps of each attack ahead of time, split over the chips of the topology, with the blocks of the model
scanned (as `robust_vit.evaluate` does) or, with `--unrolled`, not. Prints a line a program; nothing is run.
"""

import argparse
import importlib.util
import os
import re
import sys
import time
from typing import Any

QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
os.environ |= {name: os.environ.get(name, value) for name, value in QUIET.items()}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from robust_vit import models, parallel  # noqa: E402
from robust_vit.evaluation.autoattack import ensembles, runs  # noqa: E402
from robust_vit.evaluation.scheduling import tile  # noqa: E402
from robust_vit.models import summary  # noqa: E402
from robust_vit.models.parts import forms  # noqa: E402

COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xcit_small_12_p16_224")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--tile", type=int, default=128, help="slots over all chips")
    parser.add_argument("--attacks", default="apgd-t,fab-t,square")
    parser.add_argument("--unrolled", action="store_true")
    options = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("error: libtpu is not installed, which compiles for TPUs (none is needed): pip install libtpu")
    try:
        parts = [ensembles.part(name) for name in options.attacks.split(",")]
        module = models.build(options.model)
        mesh = mesh_of(options.topology)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {str(error).splitlines()[0]}")
    variables = summary.shapes(module)
    if not options.unrolled:
        scanned, _ = forms.scanned(module, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables))
        module, variables = scanned, summary.shapes(scanned)
    for part in parts:
        found = compiled(part, module, variables, mesh, options.tile)
        collectives = sorted(set(COLLECTIVES.findall(found.pop("text")))) or "no"
        said = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(
            f"{options.model} {part.name} on {options.topology}, tile {options.tile}: {said}, {collectives} collectives"
        )


def mesh_of(topology: str) -> Mesh:
    """All chips of a topology, in a row."""
    chips = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    return topologies.make_mesh(chips, (len(chips.devices),), (parallel.DATA,))


def compiled(part: ensembles.Part, module: Any, variables: Any, mesh: Mesh, slots: int) -> dict[str, Any]:
    """Seconds to trace and to compile an attack's steps, GiB at the peak on one chip, and the program's text."""
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(parallel.DATA)))
    run = runs.build(part, "linf", classes=module.num_classes)
    logits_fn, size = models.logits_fn(module, variables), models.image_shape(module)
    state = jax.eval_shape(lambda: tile.empty(run, logits_fn, slots, size))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    began = time.perf_counter()
    program = tile.steps_program(run, mesh).jitted
    lowered = program.lower(placed(logits_fn, whole), placed(state, split), count, count)
    traced = time.perf_counter()
    done = lowered.compile()
    seconds = {"trace s": traced - began, "compile s": time.perf_counter() - traced}
    return seconds | {"peak GiB a chip": done.memory_analysis().peak_memory_in_bytes / 2**30, "text": done.as_text()}


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes that say where they lie."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


if __name__ == "__main__":
    main()
