"""The device's side of continuous batching: a tile of slots, the programs that fill it and advance it.

Three programs, each compiled once a shape: the keys of the items (shared by all attacks), the fresh slots of an
attack, and its steps, a loop that ends on the device as soon as enough slots have finished.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from robust_vit import parallel, randomness
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling.board import IDLE, Board
from robust_vit.typing import Array, LogitsFn

# LLVM's effort on CPU. Level 1 compiles a fifth faster than the default 3, and the programs run as fast: their time is
# in matrix products, which are not compiled here. What runs once a slot and not once a step gets no effort at all.
STEADY, RARE = 1, 0


@dataclasses.dataclass
class Tally:
    """What a schedule spent.

    Attributes:
      items: items started on (points x restarts x targets).
      ticks: steps taken by slots that had work.
      slot_ticks: steps taken by all slots, idle ones included; ticks / slot_ticks is the occupancy of the tile.
      compile_seconds: tracing and compilation.
      zero_gradients: items that ended unbroken with a gradient that is zero in every pixel at their best point.
    """

    items: int = 0
    ticks: int = 0
    slot_ticks: int = 0
    compile_seconds: float = 0.0
    zero_gradients: int = 0


@dataclasses.dataclass(frozen=True)
class Tile:
    """What the device holds: the attack's state, which slots have work, and how many steps each has taken."""

    state: Any
    active: Array
    age: Array


jax.tree_util.register_dataclass(Tile, ["state", "active", "age"], [])


class Turn(NamedTuple):
    """How the slots of a tile stand after some steps."""

    finished: np.ndarray  # [slots] bool: had work, and it is over
    broken: np.ndarray  # [slots] bool: over, with a success
    non_finite: np.ndarray  # [slots] bool: met values that are not numbers
    ages: np.ndarray  # [slots] steps taken


class Machine:
    """A tile on the device, and its programs.

    Args:
      run: object of the stepping protocol (see `scheduling`); hashable.
      logits_fn: the model under attack, its weights on every device of the mesh.
      points: the examples.
      chain: restarts and targets.
      seed: of the evaluation.
      slots: which slots of the board the tile is; as many as a multiple of the number of devices.
      mesh: devices to split the tile over; one device if None.
      tally: what is spent is added here.
      pool: threads to wait in, one a tile: what one thread sends to a CPU runs one after the other.
    """

    def __init__(
        self,
        run: Any,
        logits_fn: LogitsFn,
        points: Points,
        chain: Chain,
        seed: int,
        slots: range,
        mesh: Mesh | None,
        tally: Tally,
        pool: futures.Executor,
    ):
        self.run, self.points, self.chain = run, points, chain
        self.slots, self.mesh, self.tally = slots, mesh, tally
        self.logits_fn = logits_fn
        self.key = jax.random.key(seed)
        self.devices = 1 if mesh is None else mesh.size
        self.shape = points.images.shape[1:]
        self.tile = self._put(empty(run, self.logits_fn, len(slots), self.shape))
        self.ages = np.zeros(len(slots), np.int32)
        self.pool = pool
        self.running: futures.Future[Any] | None = None  # the steps under way

    def fill(self, board: Board, filled: list[int]) -> None:
        """Starts the items that the board has newly put into slots, and tells the device which slots have work."""
        if filled:
            self.tally.items += len(filled)
            rows, items, chain = board.point[filled], board.item[filled], self.chain
            filled = [slot - self.slots.start for slot in filled]
            names = (chain.code + 0 * items, self.points.indices[rows], chain.restarts[items], chain.ranks[items])
            keys = self._call(keys_program(), self.key, *(self._spread(filled, name, np.uint32) for name in names))
            arguments = self._put(self._orders(rows, items, filled, keys))
            self.tile = self._call(start_program(self.run, self.mesh), self.logits_fn, self.tile, arguments)
        active = board.point[self.slots.start : self.slots.stop] != IDLE
        self.tile = dataclasses.replace(self.tile, active=self._put(active))

    def abandon(self, slot: int) -> None:
        """Counts the steps of a slot whose item is given up."""
        self.tally.ticks += int(self.ages[slot - self.slots.start])

    def launch(self, chunk: int, wanted: int) -> None:
        """Sends the device off until `wanted` slots have finished or `chunk` steps are over; does not wait."""
        program = steps_program(self.run, self.mesh)
        limits = jnp.int32(chunk), jnp.int32(max(1, wanted // self.devices))
        arguments = self.logits_fn, self.tile, *limits
        self.running = self.pool.submit(_finished, self._compiled(program, arguments), arguments)

    def collect(self, board: Board) -> Turn:
        """Waits for the steps under way and says how the slots stand."""
        self.tile, *told = self.running.result()
        self.running = None
        finished, flat, steps = (np.asarray(value) for value in told)
        state, self.ages = self.tile.state, np.asarray(self.tile.age)
        broken = finished & np.asarray(state.broken)
        # Each device goes on until its own share has finished.
        self.tally.slot_ticks += int(steps.sum()) * (len(self.slots) // self.devices)
        over = finished & (board.point[self.slots.start : self.slots.stop] != IDLE)
        self.tally.ticks += int(self.ages[over].sum())
        self.tally.zero_gradients += int((flat & over & ~broken).sum())
        non_finite = np.asarray(getattr(state, "non_finite", np.zeros(len(self.slots), bool)))
        return Turn(over, broken & over, non_finite, self.ages)

    def _orders(self, rows: np.ndarray, items: np.ndarray, filled: list[int], keys: Array) -> dict[str, Any]:
        """What the new slots start with, [slots, ...] each."""
        new = np.zeros(len(self.slots), bool)
        new[filled] = True
        return {
            "new": new,
            "keys": keys,
            "images": self._spread(filled, self.points.take(rows), np.float32),
            "labels": self._spread(filled, self.points.labels[rows], np.int32),
            "target": self._spread(filled, self.chain.targets[rows, items], np.int32),
            "epsilon": self._spread(filled, self.points.epsilon[rows], np.float32),
            "restart": self._spread(filled, self.chain.restarts[items], np.int32),
        }

    def _spread(self, filled: list[int], values: np.ndarray, dtype: Any) -> np.ndarray:
        """Values of the filled slots at their places, zeros elsewhere."""
        out = np.zeros((len(self.slots), *values.shape[1:]), dtype)
        out[filled] = values
        return out

    def _call(self, program: "Program", *arguments: Any) -> Any:
        return self._compiled(program, arguments)(*arguments)

    def _compiled(self, program: "Program", arguments: tuple[Any, ...]) -> Callable[..., Any]:
        compiled, seconds = program.compiled(arguments)
        self.tally.compile_seconds += seconds
        return compiled

    def _put(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, parallel.batched(self.mesh))


def _finished(compiled: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of a call, waited for."""
    return jax.block_until_ready(compiled(*arguments))


def empty(run: Any, logits_fn: LogitsFn, slots: int, shape: tuple[int, ...]) -> Tile:
    """A tile of idle slots: zeros in the shape of the attack's state, nothing computed."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), slots))
    images = jax.ShapeDtypeStruct((slots, *shape), jnp.float32)
    integers = jax.ShapeDtypeStruct((slots,), jnp.int32)
    radii = jax.ShapeDtypeStruct((slots,), jnp.float32)
    state = jax.eval_shape(run.start, keys, logits_fn, images, integers, integers, radii, integers)
    return Tile(jax.tree.map(_zeros, state), jnp.zeros(slots, bool), jnp.zeros(slots, jnp.int32))


def _zeros(leaf: Any) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype))
    return jnp.zeros(leaf.shape, leaf.dtype)


def item_keys(key: Array, code: Array, index: Array, restart: Array, rank: Array) -> Array:
    """[B] keys, one per (example, attack, restart, target rank): the only randomness of an evaluation."""
    base = randomness.example_keys(key, index, randomness.EVALUATION_ATTACK)
    return jax.vmap(jax.random.fold_in)(base, (code * 4096 + restart) * 65536 + rank)


def _start(run: Any, logits_fn: LogitsFn, tile: Tile, orders: dict[str, Array]) -> Tile:
    """Fresh slots where `orders["new"]` holds, the old ones elsewhere."""
    names = ("images", "labels", "target", "epsilon", "restart")
    fresh = run.start(orders["keys"], logits_fn, *(orders[name] for name in names))
    return Tile(select(orders["new"], fresh, tile.state), tile.active, jnp.where(orders["new"], 0, tile.age))


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
    return tile, over(tile), _zero_gradient(tile), steps[None]


def _zero_gradient(tile: Tile) -> Array:
    """[slots] whether the gradient at the best point is zero in every pixel; False for attacks that keep none."""
    gradient = getattr(tile.state, "best_gradient", None)
    return jnp.zeros_like(tile.active) if gradient is None else (gradient == 0).all(axis=(1, 2, 3))


def select(mask: Array, new: Any, old: Any) -> Any:
    """Leaf by leaf: new where the mask [B] holds, old elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b), new, old)


class Program:
    """A jitted function and its compiled forms, by the shapes and places of the arguments; compiled explicitly, so that
    the seconds are known.
    """

    KEPT = 16

    def __init__(self, jitted: Any, effort: int = STEADY):
        self.jitted, self.effort = jitted, effort
        self.forms: dict[Any, Any] = {}

    def compiled(self, arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], float]:
        """Returns the compiled form for these arguments and the seconds it took now (0 when it was there)."""
        leaves, structure = jax.tree.flatten(arguments)
        signature = tuple((jnp.shape(x), jnp.result_type(x), getattr(x, "sharding", None)) for x in leaves)
        form = structure, signature
        if form in self.forms:
            return self.forms[form], 0.0
        while len(self.forms) >= self.KEPT:  # a model that is gone should not live on here
            self.forms.pop(next(iter(self.forms)))
        began = time.perf_counter()
        self.forms[form] = self.jitted.lower(*arguments).compile(self._options())
        return self.forms[form], time.perf_counter() - began

    def _options(self) -> dict[str, Any] | None:
        return {"xla_backend_optimization_level": self.effort} if jax.default_backend() == "cpu" else None


# Kept between evaluations, so that evaluating in training compiles once.
@functools.cache
def keys_program() -> Program:
    """`item_keys`, compiled."""
    return Program(jax.jit(item_keys), RARE)


@functools.lru_cache(maxsize=64)
def start_program(run: Any, mesh: Mesh | None) -> Program:
    """The fresh slots of an attack, compiled."""
    return _program(functools.partial(_start, run), mesh, "wss", "s", RARE)


@functools.lru_cache(maxsize=64)
def steps_program(run: Any, mesh: Mesh | None) -> Program:
    """The steps of an attack, compiled."""
    return _program(functools.partial(_steps, run), mesh, "wsww", "ssss", STEADY)


def _program(body: Callable[..., Any], mesh: Mesh | None, arguments: str, results: str, effort: int) -> Program:
    """Compiles `body`, whose second argument is given up; letters say what is split over devices (s) and what is
    whole (w).
    """
    if mesh is not None:
        specs = {"s": PartitionSpec(parallel.DATA), "w": PartitionSpec()}
        ins, outs = (tuple(specs[letter] for letter in letters) for letters in (arguments, results))
        outs = outs[0] if len(outs) == 1 else outs
        body = jax.shard_map(body, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
    return Program(jax.jit(body, donate_argnums=(1,)), effort)
