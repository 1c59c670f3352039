"""The device's side of continuous batching: a tile of slots, the programs that fill it and advance it.

Three programs, each compiled once a shape: the keys of the items (shared by all attacks), the fresh slots of an
attack, and its steps, a loop that ends on the device as soon as enough slots have finished.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import randomness
from robust_vit.attacks.autoattack import protocol
from robust_vit.evaluation.scheduling import programs
from robust_vit.evaluation.scheduling.programs import RARE, STEADY, Program
from robust_vit.typing import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class Tile:
    """What the device holds: the attack's state, which slots have work, and how many steps each has taken."""

    state: Any
    active: Array
    age: Array


jax.tree_util.register_dataclass(Tile, ["state", "active", "age"], [])


def state_shapes(run: Any, logits_fn: LogitsFn, slots: int, shape: tuple[int, ...]) -> Any:
    """Shapes and types of an attack's state, nothing computed."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), slots))
    images = jax.ShapeDtypeStruct((slots, *shape), jnp.float32)
    integers = jax.ShapeDtypeStruct((slots,), jnp.int32)
    radii = jax.ShapeDtypeStruct((slots,), jnp.float32)
    return jax.eval_shape(run.start, keys, logits_fn, images, integers, integers, radii, integers)


def empty(state: Any, slots: int) -> Tile:
    """A tile of idle slots: zeros in the shapes of the attack's state."""
    return Tile(jax.tree.map(_zeros, state), _filled((slots,), bool), _filled((slots,), jnp.int32))


def _zeros(leaf: Any) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(_filled(data.shape, data.dtype))
    return _filled(leaf.shape, leaf.dtype)


def _filled(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros made on the host: `jnp.zeros` compiles a program a shape. A copy, since a tile is given up to its next."""
    return jnp.array(np.zeros(shape, dtype), copy=True)


def item_keys(key: Array, code: Array, index: Array, restart: Array, rank: Array) -> Array:
    """[B] keys, one per (example, attack, restart, target rank): the only randomness of an evaluation."""
    base = randomness.example_keys(key, index, randomness.EVALUATION_ATTACK)
    return jax.vmap(jax.random.fold_in)(base, (code * 4096 + restart) * 65536 + rank)


def _start(run: Any, logits_fn: LogitsFn, tile: Tile, orders: dict[str, Array]) -> Tile:
    """Fresh slots where `orders["new"]` holds, the old ones elsewhere."""
    names = ("images", "labels", "target", "epsilon", "restart")
    fresh = run.start(orders["keys"], logits_fn, *(orders[name] for name in names))
    return Tile(protocol.refill(tile.state, orders["new"], fresh), tile.active, jnp.where(orders["new"], 0, tile.age))


def _steps(run: Any, logits_fn: LogitsFn, tile: Tile, chunk: Array, wanted: Array) -> tuple[Tile, Array, Array, Array]:
    """Steps of the attack; a device's part of them under a mesh."""

    def over(tile: Tile) -> Array:
        return tile.state.done | tile.state.broken

    def go_on(carry: tuple[Tile, Array]) -> Array:
        tile, steps = carry
        busy = tile.active & ~over(tile)
        return (steps < chunk) & busy.any() & ((tile.active & over(tile)).sum() < wanted)

    def step(carry: tuple[Tile, Array]) -> tuple[Tile, Array]:
        tile, steps = carry
        age = tile.age + (tile.active & ~over(tile))
        return Tile(run.advance(logits_fn, tile.state, 1), tile.active, age), steps + 1

    tile, steps = jax.lax.while_loop(go_on, step, (tile, jnp.int32(0)))
    return tile, over(tile), protocol.zero_gradient(tile.state), steps[None]


# Kept between evaluations, so that evaluating in training compiles once.
@functools.cache
def keys_program() -> Program:
    """`item_keys`, compiled."""
    return Program(jax.jit(item_keys), RARE)


@functools.lru_cache(maxsize=64)
def start_program(run: Any, mesh: Mesh | None) -> Program:
    """The fresh slots of an attack, compiled."""
    return programs.over(functools.partial(_start, run), mesh, "wss", "s", RARE, donate=(1,))


@functools.lru_cache(maxsize=64)
def steps_program(run: Any, mesh: Mesh | None) -> Program:
    """The steps of an attack, compiled."""
    return programs.over(functools.partial(_steps, run), mesh, "wsww", "ssss", STEADY, donate=(1,))
