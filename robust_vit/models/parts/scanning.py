"""Running a stack of equal blocks, unrolled or scanned, and turning the parameters of one form into the other.

Unrolled, every block has its own subtree (`blocks_0`, `blocks_1`, ...), as in timm's state dict. Scanned, one subtree
`blocks` holds all of them with a leading layer axis, and the program contains one block: compile time does not grow
with depth.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.models.parts import captures, layers, taps
from robust_vit.typing import Array, Variables

STACKS = ("blocks", "transformer")  # what families call their stacks of equal blocks; the second is MobileViT's


def apply_blocks(
    make_block: Callable[..., nn.Module],
    name: str,
    depth: int,
    x: Array,
    *extras: Any,
    rates: Sequence[float] | None = None,
    train: bool = False,
    scan: bool = False,
    remat: bool = False,
) -> Array:
    """Applies `depth` equal blocks to `x`, inside a parent's compact `__call__`.

    Args:
      make_block: a module class with its fields bound (`functools.partial(Block, heads=3)`); the module is called
        `block(x, rate, train, *extras)` and returns an array like `x`.
      name: `name_0`, `name_1`, ... are the blocks' names when unrolled, `name` the one when scanned.
      depth: number of blocks.
      x: [B, ...].
      *extras: arrays or None that every block sees (a shared bias, say).
      rates: drop-path rate of each block, or None for no drop path.
      train: passed on.
      scan: one compiled block under `lax.scan`.
      remat: recompute a block's activations in the backward pass.

    Returns:
      The last block's output.
    """

    def step(block: nn.Module, x: Array, rate: Array | None) -> tuple[Array, None]:
        return block(x, rate, train, *extras), None

    if remat:  # inside a scan the loop already keeps XLA from undoing the recomputation
        step = nn.remat(step, prevent_cse=not scan)
    if not scan:
        for i in range(depth):
            rate = None if rates is None or not rates[i] else jnp.asarray(rates[i], layers.wide(x.dtype))
            x, _ = step(make_block(name=f"{name}_{i}"), x, rate)
        return x
    scanned = nn.scan(
        step,
        variable_axes={"params": 0, "batch_stats": 0, captures.COLLECTION: 0, taps.COLLECTION: 0},
        split_rngs={"params": True, "dropout": True, taps.RNG: True},
        in_axes=nn.broadcast if rates is None else 0,
        length=depth,
    )
    x, _ = scanned(make_block(name=name), x, None if rates is None else jnp.asarray(rates, layers.wide(x.dtype)))
    return x


def stack(variables: Variables, names: Sequence[str] = STACKS) -> Variables:
    """Unrolled -> scanned: `blocks_0`, `blocks_1`, ... become one subtree `blocks`, at any depth of the tree.

    Args:
      variables: nested dicts of arrays (params, batch_stats, optimizer moments, ...); not changed.
      names: which stacks of blocks to join.

    Returns:
      A new nested dict.

    Raises:
      ValueError: the blocks of one stack differ in structure or shapes, or one is missing.
    """
    if not isinstance(variables, dict):
        return variables
    out: dict[str, Any] = {}
    for key, value in variables.items():
        name, number = _split(key)
        if number is None or name not in names:
            out[key] = stack(value, names)
        elif number == 0:
            out[name] = _join(variables, name, names)
    return out


def unstack(variables: Variables, names: Sequence[str] = STACKS) -> Variables:
    """Scanned -> unrolled: the inverse of `stack`."""
    if not isinstance(variables, dict):
        return variables
    out: dict[str, Any] = {}
    for key, value in variables.items():
        if key not in names or not isinstance(value, dict):
            out[key] = unstack(value, names)
            continue
        for i in range(jax.tree.leaves(value)[0].shape[0]):
            out[f"{key}_{i}"] = unstack(jax.tree.map(lambda leaf, i=i: leaf[i], value), names)
    return out


def _split(key: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)_(\d+)", key)
    return (match[1], int(match[2])) if match else (key, None)


def _join(variables: Variables, name: str, names: Sequence[str]) -> Any:
    numbers = sorted(
        number for key in variables for part, number in [_split(key)] if part == name and number is not None
    )
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{name}: blocks {numbers} are not 0..{len(numbers) - 1}")
    blocks = [stack(variables[f"{name}_{i}"], names) for i in numbers]
    forms = {str(jax.tree.map(jnp.shape, block)) for block in blocks}
    if len(forms) > 1:
        raise ValueError(f"{name}: blocks differ in structure or shape and cannot be scanned")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
