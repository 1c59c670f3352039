"""What goes through the points of `taps`, gathered while a model runs, by the paths of the modules it went through."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from robust_vit.models.parts import scanning, taps
from robust_vit.typing import Array, Variables


class Seen(NamedTuple):
    """A value at a point.

    Attributes:
      path: of the module that taps, and of a scanned stack the number of the block: ("blocks_3", "attn").
      point: its name.
      value: what went through.
    """

    path: tuple[str, ...]
    point: str
    value: Array


def collected(
    module: nn.Module, variables: Variables, images: Array, points: Iterable[str]
) -> tuple[Array, list[Seen]]:
    """Runs a model and returns its logits [B,K] and what goes through some points, in the order in which blocks run.

    Jittable and differentiable; blocks are named alike whether the model is scanned or not.

    Raises:
      ValueError: if there is no such point.
    """

    def keep(owner: nn.Module, point: str, value: Array) -> Array:
        owner.sow(taps.COLLECTION, point, value)
        return value

    with taps.handled(keep, points):
        logits, state = module.apply(variables, images, mutable=[taps.COLLECTION])
    return logits, list(_seen(state.get(taps.COLLECTION, {}), ()))


def _seen(tree: Any, path: tuple[str, ...]) -> Iterator[Seen]:
    for name, value in tree.items():
        if not isinstance(value, dict):
            yield from (Seen(path, name, one) for one in value)
        elif name in scanning.STACKS:  # the bare name of a stack: its values have a leading axis of blocks
            for i in range(jax.tree.leaves(value)[0].shape[0]):
                yield from _seen(jax.tree.map(lambda leaf, i=i: leaf[i], value), (*path, f"{name}_{i}"))
        else:
            yield from _seen(value, (*path, name))
