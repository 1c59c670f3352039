"""A tile at work: filled, sent off, waited for, one turn after the other, and what that cost."""

import dataclasses
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel, randomness
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling import tile as tiles
from robust_vit.evaluation.scheduling.programs import Program
from robust_vit.evaluation.scheduling.slots import IDLE, SlotTable
from robust_vit.typing import Array, LogitsFn


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
      slots: which slots of the table the tile is; as many as a multiple of the number of devices.
      mesh: devices to split the tile over; one device if None.
      tally: what is spent is added here.
      pool: threads to wait in, one a tile: what one thread sends to a CPU runs one after the other.
      state: shapes of the attack's state in such a tile (`tile.state_shapes`).
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
        state: Any,
    ):
        self.run, self.points, self.chain = run, points, chain
        self.slots, self.mesh, self.tally = slots, mesh, tally
        self.logits_fn = logits_fn
        self.key = randomness.as_key(seed)
        self.devices = 1 if mesh is None else mesh.size
        self.tile = self._put(tiles.empty(state, len(slots)))
        self.ages = np.zeros(len(slots), np.int32)
        self.pool = pool
        self.running: futures.Future[Any] | None = None  # the steps under way

    def fill(self, table: SlotTable, filled: list[int]) -> None:
        """Starts the items that the table has newly put into slots, and tells the device which slots have work."""
        if filled:
            self.tally.items += len(filled)
            rows, items, chain = table.point[filled], table.item[filled], self.chain
            filled = [slot - self.slots.start for slot in filled]
            names = (chain.code + 0 * items, self.points.indices[rows], chain.restarts[items], chain.ranks[items])
            keys = self._call(
                tiles.keys_program(), self.key, *(self._spread(filled, name, np.uint32) for name in names)
            )
            arguments = self._put(self._orders(rows, items, filled, keys))
            self.tile = self._call(tiles.start_program(self.run, self.mesh), self.logits_fn, self.tile, arguments)
        active = table.point[self.slots.start : self.slots.stop] != IDLE
        self.tile = dataclasses.replace(self.tile, active=self._put(active))

    def abandon(self, slot: int) -> None:
        """Counts the steps of a slot whose item is given up."""
        self.tally.ticks += int(self.ages[slot - self.slots.start])

    def launch(self, chunk: int, wanted: int) -> None:
        """Sends the device off until `wanted` slots have finished or `chunk` steps are over; does not wait."""
        program = tiles.steps_program(self.run, self.mesh)
        limits = jnp.int32(chunk), jnp.int32(max(1, wanted // self.devices))
        arguments = self.logits_fn, self.tile, *limits
        self.running = self.pool.submit(_finished, self._compiled(program, arguments), arguments)

    def collect(self, table: SlotTable) -> Turn:
        """Waits for the steps under way and says how the slots stand."""
        self.tile, *found = self.running.result()
        self.running = None
        finished, flat, steps = (np.asarray(value) for value in found)
        state, self.ages = self.tile.state, np.asarray(self.tile.age)
        broken = finished & np.asarray(state.broken)
        # Each device goes on until its own share has finished.
        self.tally.slot_ticks += int(steps.sum()) * (len(self.slots) // self.devices)
        over = finished & (table.point[self.slots.start : self.slots.stop] != IDLE)
        self.tally.ticks += int(self.ages[over].sum())
        self.tally.zero_gradients += int((flat & over & ~broken).sum())
        return Turn(over, broken & over, np.asarray(state.non_finite), self.ages)

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

    def _call(self, program: Program, *arguments: Any) -> Any:
        return self._compiled(program, arguments)(*arguments)

    def _compiled(self, program: Program, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        compiled, seconds = program.compiled(arguments)
        self.tally.compile_seconds += seconds
        return compiled

    def _put(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, parallel.batched(self.mesh))


def _finished(compiled: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of a call, waited for."""
    return jax.block_until_ready(compiled(*arguments))
