"""Which weights move how far: learning rates that fall from layer to layer, and parts that stay as they are.

Everything goes by a leaf's name in the unrolled tree, `blocks_3/attn/qkv/kernel`; a stack of scanned blocks has all its
blocks' names, one a place of the leading axis.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_vit.errors import check, nearest
from robust_vit.models.parts import scanning

EMBEDDING = re.compile(r"(patch_embed|pos_embed|cls_token|dist_token|mask_token|stem|conv1|bn1)(_|/|$)")
# A block by itself or inside a stage, in the order of their names; what else a stage has belongs to its first block.
BLOCK = re.compile(
    r"(?:(?P<stage>(?:layers|stages)_\d+)/)?(?P<block>\w*blocks\w*_\d+)/|(?P<flat>(?:layer|stages_)\d+_\d+)/"
)
STAGE = re.compile(r"((?:layers|stages)_\d+)/")


def names(path: tuple[Any, ...], leaf: Any) -> list[str]:
    """The names of a leaf: one, or one a block where blocks are scanned."""
    keys = [key.key for key in path]
    for place, key in enumerate(keys):
        if key in scanning.STACKS:
            numbered = ([*keys[:place], f"{key}_{i}", *keys[place + 1 :]] for i in range(leaf.shape[0]))
            return ["/".join(one) for one in numbered]
    return ["/".join(keys)]


def every_name(tree: Any) -> list[str]:
    """The names of all leaves of a tree."""
    return [name for path, leaf in jax.tree_util.tree_leaves_with_path(tree) for name in names(path, leaf)]


def layers(found: Sequence[str]) -> dict[str, int]:
    """Numbers the layers that parameters belong to: 0 the embedding, then each block, then what follows them.

    Args:
      found: names of all parameters of a model.

    Returns:
      {name: layer}; positions and tokens belong to the embedding, the last norm to the head, as in BEiT.

    Reference: Bao et al., BEiT, ICLR 2022, arXiv 2106.08254; github.com/microsoft/unilm, beit/optim_factory.py.
    """
    places = {name: _place(name) for name in found}
    order = sorted({place for place in places.values() if isinstance(place, tuple)})
    number = {place: i + 1 for i, place in enumerate(order)} | {"embedding": 0, "head": len(order) + 1}
    return {name: number[place] for name, place in places.items()}


def _place(name: str) -> Any:
    """A block's place in the order of blocks, or "embedding" or "head"."""
    if match := BLOCK.match(name):
        return _natural((match["flat"],)) if match["flat"] else _natural((match["stage"] or "", match["block"]))
    if match := STAGE.match(name):
        return _natural((match[1], "blocks_0"))
    return "embedding" if EMBEDDING.match(name) else "head"


def _natural(parts: tuple[str, ...]) -> tuple[Any, ...]:
    """`blocks_10` after `blocks_9`, `blocks_token_only_0` after both."""
    return tuple(int(piece) if piece.isdigit() else piece for part in parts for piece in re.split(r"_?(\d+)", part))


def means(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns means this name, or something that holds it."""
    return any(fnmatch.fnmatchcase(name, one) or fnmatch.fnmatchcase(name, f"{one}/*") for one in patterns)


def scales(tree: Any, layer_decay: float = 1.0, freeze: Sequence[str] = ()) -> Any:
    """By what each leaf's learning rate is multiplied: decay^(layers above it), and 0 where it is frozen.

    Args:
      tree: parameters or anything shaped as they are; only names and shapes are looked at.
      layer_decay: in (0, 1].
      freeze: patterns of names: `patch_embed`, `blocks_[0-5]`, `*/norm1`; what they name is frozen with all it holds.

    Returns:
      A tree of float32 arrays that broadcast against the leaves: one number, or one a block of a scanned stack.
    """
    number = layers(every_name(tree))
    top = max(number.values())

    def one(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        own = names(path, leaf)
        values = [0.0 if means(name, freeze) else layer_decay ** (top - number[name]) for name in own]
        stacked = any(key.key in scanning.STACKS for key in path)
        shape = (-1, *[1] * (len(leaf.shape) - 1)) if stacked else ()
        return np.asarray(values, np.float32).reshape(shape)

    return jax.tree_util.tree_map_with_path(one, tree)


def scaled(layer_decay: float = 1.0, freeze: Sequence[str] = ()) -> optax.GradientTransformation:
    """Multiplies updates, weight decay included, by `scales`; a frozen weight's update is exactly 0."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        by = scales(updates, layer_decay, freeze)
        return jax.tree.map(lambda u, s: jnp.where(s > 0, u * s.astype(u.dtype), 0), updates, by), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def without_frozen(tree: Any, instead: Any, freeze: Sequence[str]) -> Any:
    """The tree with what is frozen taken from `instead`, a tree of the same shape."""
    if not freeze or not jax.tree.leaves(tree):
        return tree
    by = scales(tree, 1.0, freeze)
    return jax.tree.map(lambda new, old, s: jnp.where(s > 0, new, old), tree, instead, by)


def held(gradient: Callable[..., Any], freeze: Sequence[str]) -> Callable[..., Any]:
    """A gradient that is 0 for what is frozen: it counts in no norm, is never perturbed, and need not be computed."""

    def other(params: Any, **given: Any) -> Any:
        grads, aside = gradient(params, **given)
        return without_frozen(grads, jax.tree.map(jnp.zeros_like, grads), freeze), aside

    return other if freeze else gradient


def validate(params: Any, layer_decay: float, freeze: Sequence[str]) -> None:
    """Raises ValueError, in one line, for a pattern that names nothing, or where nothing is left to do.

    Args:
      params: the model's parameters, or their shapes.
      layer_decay, freeze: see `scales`.
    """
    found = every_name(params)
    for pattern in freeze:
        if not any(means(name, [pattern]) for name in found):
            tops = dict.fromkeys(name.partition("/")[0] for name in found)
            raise ValueError(
                f"optimizer.freeze = {pattern!r}: names no parameter of the model, whose parts are {', '.join(tops)}"
                f"{nearest(pattern, [*tops, *found])}"
            )
    left = [name for name in found if not means(name, freeze)]
    check("optimizer.freeze", tuple(freeze), bool(left), "patterns that leave something to train")
    several = len(set(layers(found).values())) > 2
    check("optimizer.layer_decay", layer_decay, layer_decay == 1 or several, "1.0: this model's blocks are not known")
