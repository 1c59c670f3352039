"""Who is where: the bookkeeping of slots, points and items in continuous batching. It knows nothing of JAX."""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

IDLE = -1


class SlotTable:
    """The slots of a tile, the points in play, and how their items ended.

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

    def within(self, slots: range | None, busy: bool) -> list[int]:
        """Those of the given slots (all by default) that have work, or that have none."""
        first = slots.start if slots else 0
        part = self.point[first : slots.stop if slots else None]
        return [first + int(slot) for slot in np.flatnonzero((part != IDLE) == busy)]

    def useless(self, among: range | None = None) -> list[int]:
        """Slots whose outcome can no longer matter: an earlier item already broke their point."""
        slots = []
        for slot in self.within(among, busy=True):
            results = self.results.get(int(self.point[slot]), {})
            if any(broke and item < self.item[slot] for item, broke in results.items()):
                slots.append(slot)
        return slots

    def refill(self, among: range | None = None) -> list[int]:
        """Gives work to free slots (those `among`, all by default): the next items of points in play, then new
        points, then items ahead of their turn. Returns the slots.
        """
        self.playing = {row: None for row in self.playing if self.verdict(row) is None}
        while self.waiting and len(self.playing) < self.window:
            self.playing[self.waiting.pop()] = None
        taken: dict[int, set[int]] = {row: set() for row in self.playing}
        for slot in self.within(None, busy=True):
            taken.setdefault(int(self.point[slot]), set()).add(int(self.item[slot]))
        queue = [(len(taken[row]), order, row) for order, row in enumerate(self.playing)]
        heapq.heapify(queue)  # points with the fewest items running come first
        filled = []
        for slot in self.within(among, busy=False):
            item = None
            while queue and item is None:
                running, order, row = heapq.heappop(queue)
                item = self._next(row, taken[row])
            if item is None:
                break
            taken[row].add(item)
            heapq.heappush(queue, (running + 1, order, row))
            self.point[slot], self.item[slot] = row, item
            filled.append(slot)
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
