"""The book of an evaluation: what became of every (example, attack, target, restart), written as it becomes known.

One folder: `ledger.jsonl`, a header line and one line an outcome, only ever appended to, and `adversarial-*.npz`, the
images that broke the model. Images reach the disk before the lines that speak of them, so a run killed at any point
leaves a book that is true; the last line may be torn and is then dropped. The header says what was evaluated; a book
about something else is refused.

    python -m robust_vit.evaluation.autoattack.ledger RUN_A RUN_B      which points differ, and by which attack
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

FORMAT = 2  # 1 knew a model by its weights alone, and took other models of the same weights for it
NAME = "ledger.jsonl"
CLEAN = "clean"  # the attack that does nothing: whether a point was classified correctly to begin with
# A header field that differs makes two books incomparable as evidence; packages are allowed to differ when comparing,
# not when resuming.
FIELDS = ("weights", "program", "config", "data", "packages")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one attack, at one restart and target rank, did to one example.

    Attributes:
      index: dataset index of the example.
      attack: the attack's name.
      item: position in the attack's order of restarts and targets; a point is broken by the lowest item that breaks it.
      restart: number of the restart, from 0.
      target: class the attack aimed at, -1 for none.
      status: "broken" (verified in float32), "survived", or the fault for which a claim was refused
        (`verification.FAULTS`); for the attack "clean": "survived", "misclassified" or "non-finite logits".
      ticks: steps the attack took on this example.
      dtype: what the attacked model computed in; the verdict is of float32 in any case.
      image: where the adversarial image lies, [shard, row]; None unless broken.
    """

    index: int
    attack: str
    item: int
    restart: int
    target: int
    status: str
    ticks: int
    dtype: str = "float32"
    image: tuple[int, int] | None = None


class Ledger:
    """An open book: `outcomes` holds what was known at opening; `add` and `flush` append.

    Args:
      folder: where the book lies; created if missing.
      header: mapping with the keys of `FIELDS`; what is evaluated now.

    Raises:
      ValueError: if the folder holds a book about something else; one line that names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], header: Mapping[str, Any]):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / NAME
        self.outcomes: list[Outcome] = []
        self._pending: list[tuple[Outcome, np.ndarray | None]] = []
        found = read(self.path) if self.path.exists() else None
        if found is None or found.header is None:  # none yet, or killed inside the header line
            self._write("w", [json.dumps({"ledger": FORMAT, **header}, sort_keys=True, default=str)])
        else:
            refuse_other(self.path, found.header, header)
            self.outcomes = found.outcomes
            _truncate(self.path, found.valid_bytes)
        self._shard = 1 + max((int(p.stem.split("-")[1]) for p in self.folder.glob("adversarial-*.npz")), default=-1)

    def add(self, outcome: Outcome, image: np.ndarray | None = None) -> None:
        """Notes an outcome (and the adversarial image, if the point broke) for the next `flush`."""
        self._pending.append((outcome, image))

    @property
    def pending(self) -> int:
        """How many outcomes wait for `flush`."""
        return len(self._pending)

    def flush(self) -> None:
        """Writes the noted outcomes: first the images, under a name that appears when complete, then the lines."""
        if not self._pending:
            return
        broken = [(outcome.index, image) for outcome, image in self._pending if image is not None]
        if broken:
            path = shard_path(self.folder, self._shard)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, index=np.array([i for i, _ in broken]), images=np.stack([x for _, x in broken]))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        lines, row = [], 0
        for outcome, image in self._pending:
            if image is not None:
                outcome, row = dataclasses.replace(outcome, image=(self._shard, row)), row + 1
            lines.append(json.dumps(dataclasses.asdict(outcome)))
            self.outcomes.append(outcome)
        self._write("a", lines)
        self._shard += bool(broken)
        self._pending = []

    def images(self) -> dict[tuple[int, str, int], np.ndarray]:
        """The stored adversarial images by (index, attack, item).

        Raises:
          ValueError: if a shard that the book speaks of is missing.
        """
        shards: dict[int, np.ndarray] = {}
        found = {}
        for outcome in self.outcomes:
            if outcome.image is None:
                continue
            shard, row = outcome.image
            if shard not in shards:
                path = shard_path(self.folder, shard)
                if not path.exists():
                    raise ValueError(
                        f"ledger = {self.path}: speaks of {path.name}, which is missing; restore it or start over"
                    )
                with np.load(path) as arrays:
                    shards[shard] = arrays["images"]
            found[outcome.index, outcome.attack, outcome.item] = shards[shard][row]
        return found

    def _write(self, mode: str, lines: Iterable[str]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


@dataclasses.dataclass(frozen=True)
class Book:
    """A ledger as read: header (None if the file ends inside it), outcomes, and how many bytes of the file are whole
    lines.
    """

    header: dict[str, Any] | None
    outcomes: list[Outcome]
    valid_bytes: int


def read(path: str | os.PathLike[str]) -> Book:
    """Reads a ledger file or folder; a torn last line is left out.

    Raises:
      ValueError: if the file is no ledger, or a line before the last is damaged.
    """
    path = pathlib.Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"ledger = {path}: no such file")
    content = path.read_bytes()
    valid = content.rfind(b"\n") + 1  # what follows the last newline was being written when the run ended
    rows = []
    for number, line in enumerate(content[:valid].splitlines()):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"ledger = {path}: line {number + 1} is damaged") from None
    if not rows:
        return Book(None, [], 0)
    if rows[0].get("ledger") != FORMAT:
        old = rows[0].get("ledger")
        raise ValueError(
            f"ledger = {path}: format {old!r}, must be {FORMAT}; it cannot be resumed, use another workdir"
        )
    outcomes = [Outcome(**{**row, "image": row["image"] and tuple(row["image"])}) for row in rows[1:]]
    return Book(rows[0], outcomes, valid)


def refuse_other(path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError, one line that names what differs, unless the header found in a book is the one of this run."""
    wanted = json.loads(json.dumps(wanted, default=str))
    differences = []
    for field in FIELDS:
        old, new = found.get(field), wanted.get(field)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            differences += [
                f"{field}.{key} ({_short(old.get(key))} there, {_short(new.get(key))} now)" for key in names
            ]
        else:
            differences.append(f"{field} ({_short(old)} there, {_short(new)} now)")
    if differences:
        raise ValueError(
            f"ledger = {path}: of another evaluation, differing in {', '.join(differences)}; use another workdir"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _truncate(path: pathlib.Path, size: int) -> None:
    """Cuts off a torn last line, so that the next append starts a line of its own."""
    if path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


def shard_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """The file of adversarial images number `shard`."""
    return folder / f"adversarial-{shard:05d}.npz"


def verdicts(outcomes: Iterable[Outcome], order: list[str] | None = None) -> dict[int, Outcome | None]:
    """Per example, the outcome that broke it: of the earliest attack, then of its lowest item; None for the examples
    that no outcome broke.

    Args:
      outcomes: of one book.
      order: the attacks in the order they ran; as they appear in the book if None.
    """
    outcomes = list(outcomes)
    names = [CLEAN, *(order or dict.fromkeys(outcome.attack for outcome in outcomes))]
    verdict: dict[int, Outcome | None] = {}
    for outcome in outcomes:
        best = verdict.setdefault(outcome.index, None)
        place = (names.index(outcome.attack), outcome.item)
        if outcome.attack == CLEAN and outcome.status != "survived":
            verdict[outcome.index] = outcome
        elif outcome.status == "broken" and (best is None or place < (names.index(best.attack), best.item)):
            verdict[outcome.index] = outcome
    return verdict


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[str]:
    """Says which points two ledgers judge differently, and which attack made the difference.

    Args:
      a, b: ledger files or the folders that hold them.

    Returns:
      Lines of text: what differs in the headers, then one line a point, then the totals.
    """
    books = [read(path) for path in (a, b)]
    lines = []
    for field in FIELDS:
        values = [(book.header or {}).get(field) for book in books]
        if values[0] != values[1]:
            lines.append(f"{field} differ: {_short(values[0])} | {_short(values[1])}")
    left, right = (verdicts(book.outcomes, (book.header or {}).get("order")) for book in books)
    flips = attributions = 0
    for index in sorted({*left, *right}):
        said = [_say(index, verdict) for verdict in (left, right)]
        if said[0] != said[1]:
            flip = said[0].startswith("broken") != said[1].startswith("broken")
            flips, attributions = flips + flip, attributions + (not flip)
            lines.append(f"point {index}: {said[0]} | {said[1]}")
    both = len(left.keys() & right.keys())
    lines.append(
        f"{both} points judged in both; {flips} with another verdict, {attributions} with the same by another attack"
    )
    return lines


def _say(index: int, verdict: Mapping[int, Outcome | None]) -> str:
    if index not in verdict:
        return "not attacked"
    outcome = verdict[index]
    if outcome is None:
        return "survived"
    if outcome.attack == CLEAN:
        return f"clean: {outcome.status}"
    target = f", target {outcome.target}" if outcome.target >= 0 else ""
    return f"broken by {outcome.attack} (restart {outcome.restart}{target})"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m robust_vit.evaluation.autoattack.ledger A B")
    print("\n".join(compare(*sys.argv[1:])))
