"""What is known of an evaluation: from the ledger of earlier runs, and from this one, which writes its own to it."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from robust_vit.evaluation.autoattack.ledger import CLEAN, Entry, Ledger
from robust_vit.evaluation.scheduling.scheduler import BROKEN, NONFINITE, SURVIVED
from robust_vit.evaluation.verification import ROBUST

FLUSH_SECONDS = 30.0


class Replay(NamedTuple):
    """What an earlier run left of an attack.

    Attributes:
      known: {(row, item): whether it broke the point} of what needs not be run again.
      claims: (row, item, image) of the points that broke.
      suspect: rows where the attack met values that are not numbers.
    """

    known: dict[tuple[int, int], bool]
    claims: list[tuple[int, int, np.ndarray]]
    suspect: set[int]


class Session:
    """The entries of an evaluation.

    Args:
      ledger: where they are kept; None keeps nothing.
      batch_size: entries between two writes.
    """

    def __init__(self, ledger: Ledger | None, batch_size: int):
        self.ledger, self.batch_size = ledger, batch_size
        self.entries: list[Entry] = list(ledger.entries) if ledger else []
        self.resumed = len(self.entries)
        self._images = ledger.images() if ledger else {}
        self._flushed = time.monotonic()

    def note_clean(self, indices: Iterable[int], status: Iterable[str]) -> None:
        """Writes the verdicts of the clean pass that the ledger does not have."""
        if self.ledger is None:
            return
        noted = {entry.index for entry in self.entries if entry.attack == CLEAN}
        for index, state in zip(indices, status):
            if int(index) not in noted:
                self.ledger.add(Entry(int(index), CLEAN, 0, 0, -1, SURVIVED if state == ROBUST else str(state), 0))
        self.ledger.flush()

    def note(self, entry: Entry, image: np.ndarray | None) -> None:
        """Takes what became of an item; it reaches the disk when a batch is full or half a minute is over."""
        self.entries.append(entry)
        if self.ledger is not None:
            self.ledger.add(entry, image)
            late = time.monotonic() - self._flushed > FLUSH_SECONDS
            if late or self.ledger.pending >= self.batch_size:
                self.flush()

    def flush(self) -> None:
        """Writes what is not written yet."""
        if self.ledger is not None:
            self.ledger.flush()
            self._flushed = time.monotonic()

    def unsettled(self, attack: str) -> set[int]:
        """Indices of the points where an item ended neither broken nor survived."""
        return {e.index for e in self.entries if e.attack == attack and e.status not in (SURVIVED, BROKEN)}

    def replay(self, attack: str, row_of: dict[int, int], dtype: str) -> Replay:
        """What is known of an attack.

        Args:
          attack: its name.
          row_of: {index: row} of the points that are to be attacked.
          dtype: what the model computes in now; a claim that was refused in another is open.
        """
        found = Replay({}, [], set())
        for entry in self.entries:
            row = row_of.get(entry.index)
            if entry.attack != attack or row is None:
                continue
            image = self._images.get((entry.index, attack, entry.item))
            if entry.status == BROKEN and image is not None:
                found.known[row, entry.item] = True
                found.claims.append((row, entry.item, image))
            elif entry.status in (SURVIVED, NONFINITE) or entry.dtype == dtype:
                found.known.setdefault((row, entry.item), False)
            if entry.status == NONFINITE:
                found.suspect.add(row)
        return found
