"""How long do AutoAttack's programs take to compile for a TPU, and how much memory do they need there? None is needed.

    pip install libtpu
    python benchmarks/compile_for_tpu.py --model=xcit_small_12_p16_224 --topology=v5e:2x2 --tile=128

Compiles the steps of each attack ahead of time, split over the chips of the topology, with the blocks of the model
scanned (as `robust_vit.evaluate` does) or, with `--unrolled`, not. Prints a line a program; nothing is run.
"""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from robust_vit import models  # noqa: E402
from robust_vit.evaluation.autoattack import ensembles  # noqa: E402
from robust_vit.models import summary  # noqa: E402
from robust_vit.models.parts import forms  # noqa: E402
from robust_vit.planning import chips, compiled  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xcit_small_12_p16_224")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--tile", type=int, default=128, help="slots over all chips")
    parser.add_argument("--attacks", default="apgd-t,fab-t,square")
    parser.add_argument("--unrolled", action="store_true")
    options = parser.parse_args()
    try:
        parts = [ensembles.part(name) for name in options.attacks.split(",")]
        module = models.build(options.model)
        mesh = chips.tpu_mesh(options.topology)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not options.unrolled:
        variables = summary.shapes(module)
        module, _ = forms.scanned(module, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables))
    for part in parts:
        found = compiled.attack_steps(part, module, "linf", mesh, options.tile)
        print(
            f"{options.model} {part.name} on {options.topology}, tile {options.tile}:"
            f" trace s {found.trace_seconds:.1f}, compile s {found.compile_seconds:.1f},"
            f" peak GiB a chip {found.peak / chips.GIB:.1f}, {found.talk}"
        )


if __name__ == "__main__":
    main()
