"""Gradients that devices add up once a step, in however many parts a batch is processed.

Left to itself the compiler reduces the gradient of every part, inside the loop over them. Here each device adds up its
own parts, and all of them meet once. What a model draws for a batch (drop path) is drawn for the whole part on every
device, which then takes its own rows, so that the numbers are those of one device.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from robust_vit import parallel
from robust_vit.models.parts import noise


def once(gradients: Callable[..., Any], mesh: Mesh, parts: int) -> Callable[..., Any]:
    """Makes `gradients` of a split batch meet once.

    Models with BatchNorm and objectives with a memory are left as they are: their parts need one another anyway.

    Args:
      gradients: (params, stats=, aside=, batch=) -> (gradient of the batch's mean loss, a `step.Pass`), in which an
        example knows of no other.
      mesh: the devices that the batch is split over.
      parts: that each device takes its rows in.

    Returns:
      The same, of a batch that is split over the devices.
    """
    whole, split = PartitionSpec(), PartitionSpec(parallel.DATA)

    def reduced(params: Any, *, stats: Any, aside: Any, batch: dict[str, Any]) -> Any:
        if jax.tree.leaves((stats, aside.memory)):
            return gradients(params, stats=stats, aside=aside, batch=batch)

        def own(params: Any, aside: Any, key: Any, examples: dict[str, Any]) -> Any:
            count = len(examples["label"]) // parts
            with noise.rows(jax.lax.axis_index(parallel.DATA) * count, count, count * mesh.size):
                grads, left = gradients(params, stats=stats, aside=aside, batch=examples | {"noise": key})
            grads, sums = jax.lax.psum((grads, left.sums), parallel.DATA)
            left, attacked = left._replace(sums=sums, attacked=None), left.attacked
            return jax.tree.map(lambda g: g / mesh.size, grads), left, attacked

        examples = {name: value for name, value in batch.items() if name != "noise"}
        ins, outs = (whole, whole, whole, split), (whole, whole, split)
        mapped = jax.shard_map(own, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
        grads, left, attacked = mapped(params, aside, batch["noise"], examples)
        return grads, left._replace(attacked=attacked)

    return reduced
