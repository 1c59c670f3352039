"""Continuous batching of attacks: a tile of slots of one fixed shape, refilled as points break or their attack ends.

The work of an attack is a chain of items a point (its restarts and targets, in the reference's order). A slot runs
one item of one point; a point that breaks leaves at once, and its later items are never run. Slots that would idle
run later items of points still in play ahead of their turn: the outcome counts only once every earlier item of the
point has failed, so it can change neither a flag nor which item is named. Shapes never change, so nothing is compiled
twice, and every slot computes from its own key and its own image alone: a result does not depend on its neighbours.

An attack takes part by the stepping protocol: `run.start(keys, logits_fn, images, labels, target, epsilon, restart)
-> state` and `run.advance(logits_fn, state, ticks) -> state`, with `done`, `broken`, `adversarial` and `non_finite`
in the state and a leading axis of slots on every leaf. `run` is hashable.

There are two tiles: while the host looks at one and refills it, the device works on the other. On a CPU they share its
cores better than one tile can.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling import tile as tiles
from robust_vit.evaluation.scheduling.machine import Machine, Tally
from robust_vit.evaluation.scheduling.slots import SlotTable
from robust_vit.typing import LogitsFn

# A turn hands control back when this share of the busy slots has finished: refilling one by one would stall the device,
# refilling late would leave slots idle.
SHARE = 8

LANES = 2  # tiles in flight

# How an item can end; a claim that is refused ends with its fault. "non-finite logits": the attack met values that
# are not numbers and did not break the point, which shows nothing.
SURVIVED, BROKEN, NONFINITE = "survived", "broken", "non-finite logits"
Examine = Callable[[list[int], np.ndarray], list[str]]
OnOutcome = Callable[[int, int, str, int, np.ndarray | None], None]


def schedule(
    run: Any,
    logits_fn: LogitsFn,
    points: Points,
    rows: Sequence[int],
    chain: Chain,
    *,
    examine: Examine,
    on_outcome: OnOutcome,
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
      on_outcome: called with (row, item, status, ticks, image or None) when an item is over; the words of `status` are
        those of `ledger.Entry`.
      seed: of the evaluation.
      slots: size of a tile; a multiple of the number of devices.
      chunk: most steps between two looks at the tile.
      window: most points in play at once.
      known: {(row, item): broke} from a ledger.
      mesh: devices to split the tile over; one device if None.

    Returns:
      A Tally.
    """
    table = SlotTable(rows, len(chain), LANES * slots, window, known or {})
    tally = Tally()
    logits_fn = logits_fn if mesh is None else parallel.replicate(mesh, logits_fn)
    claims = Claims(table, examine, on_outcome, slots)
    state = tiles.state_shapes(run, logits_fn, slots, points.images.shape[1:])
    with futures.ThreadPoolExecutor(LANES) as pool:
        lanes = [
            Machine(run, logits_fn, points, chain, seed, range(first, first + slots), mesh, tally, pool, state)
            for first in range(0, LANES * slots, slots)
        ]
        while True:
            for machine in lanes:
                if machine.running:
                    _settle(machine, table, claims, on_outcome)
                _launch(machine, table, chunk)
            if not any(machine.running for machine in lanes) and not claims.judge():
                return tally  # otherwise a claim was refused: its point is back in play


def _settle(machine: Machine, table: SlotTable, claims: "Claims", on_outcome: OnOutcome) -> None:
    """Waits for a tile and takes out what is over."""
    turn = machine.collect(table)
    over = [slot for slot in table.within(machine.slots, busy=True) if turn.finished[slot - machine.slots.start]]
    images = np.asarray(machine.tile.state.adversarial) if turn.broken.any() else None
    for slot in over:
        place = slot - machine.slots.start
        row, item, ticks = int(table.point[slot]), int(table.item[slot]), int(turn.ages[place])
        table.settle(slot, bool(turn.broken[place]))
        if turn.broken[place]:
            claims.add(row, item, ticks, np.array(images[place]))
        else:
            on_outcome(row, item, NONFINITE if turn.non_finite[place] else SURVIVED, ticks, None)


def _launch(machine: Machine, table: SlotTable, chunk: int) -> None:
    """Refills a tile and sends it off, if there is anything in it to do."""
    for slot in table.useless(machine.slots):
        machine.abandon(slot)
        table.free(slot)
    machine.fill(table, table.refill(machine.slots))
    busy = len(table.within(machine.slots, busy=True))
    if busy:
        machine.launch(chunk, max(1, busy // SHARE))


class Claims:
    """Claimed adversarial images, collected until a tile of them is worth a forward pass; meanwhile their points
    count as broken.
    """

    def __init__(self, table: SlotTable, examine: Examine, on_outcome: OnOutcome, size: int):
        self.table, self.examine, self.on_outcome, self.size = table, examine, on_outcome, size
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
                self.table.refuse(row, item)
            self.on_outcome(row, item, fault or BROKEN, ticks, None if fault else image)
        return any(faults)


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
