"""Continuous batching of attacks: a tile of slots of one fixed shape, refilled as points break or their attack ends.

The work of an attack is a chain of items a point (its restarts and targets, in the reference's order). A slot runs
one item of one point; a point that breaks leaves at once, and its later items are never run. Slots that would idle
run later items of points still in play ahead of their turn:
the outcome counts only once every earlier item of the point has failed, so it can change neither a flag nor which
item is named. Shapes never change, so nothing is compiled twice,
and every slot computes from its own key and its own image alone: a result does not depend on its neighbours.

An attack takes part by the stepping protocol: `run.start(keys, logits_fn, images, labels, target, epsilon, restart)
-> state` and `run.advance(logits_fn, state, ticks) -> state`, with `done`, `broken`, `adversarial` (and `non_finite`)
in the state and a leading axis of slots on every leaf. `run` is hashable.
"""

import dataclasses
import functools
import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from robust_vit import parallel, randomness
from robust_vit.typing import Array, LogitsFn

IDLE = -1
# A turn hands control back when this share of the busy slots has finished: refilling one by one would stall the
# device, refilling late would leave slots idle.
SHARE = 8


@dataclasses.dataclass(frozen=True)
class Points:
    """The examples under attack, on the host.

    Attributes:
      images: [N,H,W,C] floats in [0,1], or uint8, which is divided by 255.
      labels: [N] integers.
      epsilon: [N] float32 radii.
      indices: [N] dataset indices, from which the keys are folded.
    """

    images: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    indices: np.ndarray

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Images [len(rows),H,W,C] as float32 in [0,1]."""
        return as_float(self.images[np.asarray(rows, int)])


def as_float(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0,1]; uint8 is divided by 255."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Chain:
    """The items that an attack runs on each point, in order.

    Attributes:
      restarts: [I] restart number of each item.
      ranks: [I] rank of the target class (1 is the best wrong class), 0 for untargeted items.
      targets: [N,I] class aimed at, -1 for none.
      code: stable number of the attack, folded into every key.
    """

    restarts: np.ndarray
    ranks: np.ndarray
    targets: np.ndarray
    code: int

    def __len__(self) -> int:
        return len(self.restarts)


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


class Board:
    """Who is where: the host's bookkeeping of slots, points and items. It knows nothing of JAX.

    Args:
      points: rows to attack, in order.
      items: how many items each has.
      slots: size of the tile.
      window: most points in play at once.
      known: {(row, item): broke} of the items that were over before.
    """

    def __init__(
        self, points: Sequence[int], items: int, slots: int, window: int, known: Mapping[tuple[int, int], bool]
    ):
        self.items, self.window = items, window
        self.point = np.full(slots, IDLE)
        self.item = np.full(slots, IDLE)
        self.results: dict[int, dict[int, bool]] = {}  # row -> item -> broke
        for (row, item), broke in known.items():
            self.results.setdefault(row, {})[item] = broke
        self.waiting = [row for row in reversed(points) if self.verdict(row) is None]
        self.playing: dict[int, None] = {}  # insertion order is arrival order

    def verdict(self, row: int) -> bool | None:
        """True: broken by an item before which all failed. False: survived all. None: not known yet."""
        results = self.results.get(row, {})
        for item in range(self.items):
            if item not in results:
                return None
            if results[item]:
                return True
        return False

    def settle(self, slot: int, broke: bool) -> None:
        """Notes how the item in a slot ended and frees the slot."""
        row = int(self.point[slot])
        self.results.setdefault(row, {})[int(self.item[slot])] = broke
        self.free(slot)

    def refuse(self, row: int, item: int) -> None:
        """Takes back that an item broke its point: the claim did not stand, and the point has its later items before
        it.
        """
        self.results[row][item] = False
        if self.verdict(row) is None and row not in self.playing:
            self.waiting.append(row)

    def free(self, slot: int) -> None:
        """Empties a slot."""
        self.point[slot] = self.item[slot] = IDLE

    def useless(self) -> list[int]:
        """Slots whose outcome can no longer matter: an earlier item already broke their point."""
        slots = []
        for slot in np.flatnonzero(self.point != IDLE):
            results = self.results.get(int(self.point[slot]), {})
            if any(broke and item < self.item[slot] for item, broke in results.items()):
                slots.append(int(slot))
        return slots

    def refill(self) -> list[int]:
        """Gives work to free slots: the next items of points in play, then new points, then items ahead of their
        turn. Returns the slots.
        """
        self.playing = {row: None for row in self.playing if self.verdict(row) is None}
        while self.waiting and len(self.playing) < self.window:
            self.playing[self.waiting.pop()] = None
        taken: dict[int, set[int]] = {row: set() for row in self.playing}
        for slot in np.flatnonzero(self.point != IDLE):
            taken[int(self.point[slot])].add(int(self.item[slot]))
        queue = [(len(taken[row]), order, row) for order, row in enumerate(self.playing)]
        heapq.heapify(queue)  # points with the fewest items running come first
        filled = []
        for slot in np.flatnonzero(self.point == IDLE):
            item = None
            while queue and item is None:
                running, order, row = heapq.heappop(queue)
                item = self._next(row, taken[row])
            if item is None:
                break
            taken[row].add(item)
            heapq.heappush(queue, (running + 1, order, row))
            self.point[slot], self.item[slot] = row, item
            filled.append(int(slot))
        return filled

    def _next(self, row: int, taken: set[int]) -> int | None:
        """The first item of a point that neither runs nor is over; none beyond an item that broke it."""
        results = self.results.get(row, {})
        for item in range(self.items):
            if results.get(item):
                return None
            if item not in results and item not in taken:
                return item
        return None


# How an item can end; a claim that is refused ends with its fault. "non-finite logits": the attack met values that
# are not
# numbers and did not break the point, which shows nothing.
SURVIVED, BROKEN, NONFINITE = "survived", "broken", "non-finite logits"
Examine = Callable[[list[int], np.ndarray], list[str]]
Report = Callable[[int, int, str, int, np.ndarray | None], None]


def schedule(
    run: Any,
    logits_fn: LogitsFn,
    points: Points,
    rows: Sequence[int],
    chain: Chain,
    *,
    examine: Examine,
    report: Report,
    seed: int,
    slots: int,
    chunk: int,
    window: int = 250,
    known: Mapping[tuple[int, int], bool] | None = None,
    mesh: Mesh | None = None,
) -> Tally:
    """Runs an attack's chain on the given rows until each is broken or has survived every item.

    Args:
      run: object of the stepping protocol.
      logits_fn: the model under attack.
      points: the examples.
      rows: which of them to attack.
      chain: restarts and targets.
      examine: (rows, images [n,H,W,C]) -> [n] fault of each claim, "" for none: the judge of every claim, in float32.
      report: called with (row, item, status, ticks, image or None) when an item is over; see `ledger.Outcome.status`.
      seed: of the evaluation.
      slots: size of the tile; a multiple of the number of devices.
      chunk: most steps between two looks at the tile.
      window: most points in play at once.
      known: {(row, item): broke} from a ledger.
      mesh: devices to split the tile over; one device if None.

    Returns:
      A Tally.
    """
    board = Board(rows, len(chain), slots, window, known or {})
    tally = Tally()
    machine = Machine(run, logits_fn, points, chain, seed, slots, mesh, tally)
    claims = Claims(board, examine, report, slots)
    ages = np.zeros(slots, np.int32)
    while True:
        for slot in board.useless():
            tally.ticks += int(ages[slot])
            board.free(slot)
        filled = board.refill()
        busy = board.point != IDLE
        if not busy.any():
            if not claims.judge():
                return tally
            continue  # a claim was refused: its point is back in play
        tally.items += len(filled)
        finished, broken, non_finite, ages = machine.turn(board, filled, chunk, max(1, int(busy.sum()) // SHARE))
        over = np.flatnonzero(finished & busy)
        images = np.asarray(machine.tile.state.adversarial) if broken[over].any() else None
        for slot in over:
            row, item, ticks = int(board.point[slot]), int(board.item[slot]), int(ages[slot])
            board.settle(slot, bool(broken[slot]))
            if broken[slot]:
                claims.add(row, item, ticks, np.array(images[slot]))
            else:
                report(row, item, NONFINITE if non_finite[slot] else SURVIVED, ticks, None)


class Claims:
    """Claimed adversarial images, collected until a tile of them is worth a forward pass; meanwhile their points
    count as broken.
    """

    def __init__(self, board: Board, examine: Examine, report: Report, size: int):
        self.board, self.examine, self.report, self.size = board, examine, report, size
        self.held: list[tuple[int, int, int, np.ndarray]] = []

    def add(self, row: int, item: int, ticks: int, image: np.ndarray) -> None:
        self.held.append((row, item, ticks, image))
        if len(self.held) >= self.size:
            self.judge()

    def judge(self) -> bool:
        """Has the held claims examined and reported; returns whether a refused one put its point back in play."""
        held, self.held = self.held, []
        if not held:
            return False
        faults = self.examine([row for row, *_ in held], np.stack([image for *_, image in held]))
        for (row, item, ticks, image), fault in zip(held, faults):
            if fault:
                self.board.refuse(row, item)
            self.report(row, item, fault or BROKEN, ticks, None if fault else image)
        return any(faults)


@dataclasses.dataclass(frozen=True)
class Tile:
    """What the device holds: the attack's state, which slots have work, and how many steps each has taken."""

    state: Any
    active: Array
    age: Array


jax.tree_util.register_dataclass(Tile, ["state", "active", "age"], [])


class Machine:
    """The device's side of a schedule: one compiled program that refills slots and takes steps until enough of them
    have finished.
    """

    def __init__(
        self,
        run: Any,
        logits_fn: LogitsFn,
        points: Points,
        chain: Chain,
        seed: int,
        slots: int,
        mesh: Mesh | None,
        tally: Tally,
    ):
        self.points, self.chain, self.slots, self.mesh, self.tally = points, chain, slots, mesh, tally
        self.logits_fn = logits_fn if mesh is None else parallel.replicate(mesh, logits_fn)
        self.program = program(run, mesh)
        self.key = jax.random.key(seed)
        self.devices = 1 if mesh is None else mesh.size
        self.shape = points.images.shape[1:]
        self.tile = self._put(empty(run, self.logits_fn, slots, self.shape))

    def turn(
        self, board: Board, filled: list[int], chunk: int, wanted: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Refills slots, then steps until `wanted` slots have finished or `chunk` steps are over. Returns finished,
        broken, ages: [slots].
        """
        arguments = (
            self.logits_fn,
            self.tile,
            self._fill(board, filled),
            jnp.int32(chunk),
            jnp.int32(max(1, wanted // self.devices)),
        )
        compiled, seconds = self.program.compiled(arguments)
        self.tally.compile_seconds += seconds
        self.tile, finished, flat, steps = compiled(*arguments)
        state, ages = self.tile.state, np.asarray(self.tile.age)
        steps = np.asarray(steps)  # [devices]: each goes on until its own share has finished
        self.tally.slot_ticks += int(steps.sum()) * (self.slots // self.devices)
        finished = np.asarray(finished)
        over = finished & (board.point != IDLE)
        self.tally.ticks += int(ages[over].sum())
        self.tally.zero_gradients += int((np.asarray(flat) & over & ~np.asarray(state.broken)).sum())
        non_finite = np.asarray(getattr(state, "non_finite", np.zeros(self.slots, bool)))
        return finished, np.asarray(state.broken), non_finite, ages

    def _fill(self, board: Board, filled: list[int]) -> dict[str, Any]:
        """The orders for the device, [slots, ...] each: which slots have work, which are new, and with what."""
        new = np.zeros(self.slots, bool)
        new[filled] = True
        rows, items = board.point[filled], board.item[filled]

        def spread(values: np.ndarray, dtype: Any) -> np.ndarray:
            out = np.zeros((self.slots, *values.shape[1:]), dtype)
            out[filled] = values
            return out

        points, chain = self.points, self.chain
        names = (chain.code + 0 * items, points.indices[rows], chain.restarts[items], chain.ranks[items])
        orders = {
            "active": board.point != IDLE,
            "new": new,
            "images": spread(points.take(rows), np.float32),
            "labels": spread(points.labels[rows], np.int32),
            "epsilon": spread(points.epsilon[rows], np.float32),
            "target": spread(chain.targets[rows, items], np.int32),
            "restart": spread(chain.restarts[items], np.int32),
            "keys": item_keys(self.key, *(spread(name, np.uint32) for name in names)),
        }
        return self._put(orders)

    def _put(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, parallel.batched(self.mesh))


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


@jax.jit
def item_keys(key: Array, code: Array, index: Array, restart: Array, rank: Array) -> Array:
    """[B] keys, one per (example, attack, restart, target rank): the only randomness of an evaluation.

    A program of its own, shared by all attacks: random bits are slow to compile.
    """
    base = randomness.example_keys(key, index, randomness.EVALUATION_ATTACK)
    return jax.vmap(jax.random.fold_in)(base, (code * 4096 + restart) * 65536 + rank)


def _turn(run: Any, logits_fn: LogitsFn, tile: Tile, orders: dict[str, Array], chunk: Array, wanted: Array):
    """Refill, then step; the body of the one compiled program (a device's part of it under a mesh)."""
    fresh = functools.partial(
        run.start,
        orders["keys"],
        logits_fn,
        orders["images"],
        orders["labels"],
        orders["target"],
        orders["epsilon"],
        orders["restart"],
    )
    new, active = orders["new"], orders["active"]
    state = jax.lax.cond(new.any(), lambda old: select(new, fresh(), old), lambda old: old, tile.state)
    tile = Tile(state, active, jnp.where(new, 0, tile.age))

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

    def __init__(self, jitted: Any):
        self.jitted = jitted
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
        self.forms[form] = self.jitted.lower(*arguments).compile()
        return self.forms[form], time.perf_counter() - began


@functools.lru_cache(maxsize=64)
def program(run: Any, mesh: Mesh | None) -> Program:
    """The turn of an attack, compiled; kept between evaluations, so that evaluating in training compiles once."""
    body = functools.partial(_turn, run)
    if mesh is not None:
        split, whole = PartitionSpec(parallel.DATA), PartitionSpec()
        body = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(whole, split, split, whole, whole),
            out_specs=(split, split, split, split),
            check_vma=False,
        )
    return Program(jax.jit(body, donate_argnums=(1,)))


def balanced(work: int, slots: int, multiple: int = 8) -> int:
    """The tile size, at most `slots`, that fits a number of items best: full rounds instead of a last one that is
    mostly empty.

    It depends on the amount of work alone, never on how it is batched, because the rounding of compiled programs
    differs between shapes.
    """
    rounds = max(1, -(-work // slots))
    return min(slots, -(-max(1, -(-work // rounds)) // multiple) * multiple)


def batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Splits rows into lists of at most `size`."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])
