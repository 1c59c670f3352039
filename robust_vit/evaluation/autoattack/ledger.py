"""The book of an evaluation: what became of every (example, attack, target, restart), written as it becomes known.

One folder: `ledger.jsonl`, a header line and one line an entry, only ever appended to, and `adversarial-*.npz`, the
images that broke the model. Images reach the disk before the lines that speak of them, so a run killed at any point
leaves a book that is true; the last line may be torn and is then dropped. The header says what was evaluated; a book
about something else is refused.

    python -m robust_vit.evaluation.autoattack.ledger RUN_A RUN_B      which points differ, and by which attack
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import zipfile
import zlib
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
class Entry:
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
    """An open book: `entries` holds what was known at opening; `add` and `flush` append.

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
        self.entries: list[Entry] = []
        self._pending: list[tuple[Entry, np.ndarray | None]] = []
        found = read(self.path) if self.path.exists() else None
        if found is None or found.header is None:  # none yet, or killed inside the header line
            self._write("w", [json.dumps({"ledger": FORMAT, **header}, sort_keys=True, default=str)])
        else:
            refuse_other(self.path, found.header, header)
            self.entries = found.entries
            _truncate(self.path, found.valid_bytes)
        numbers = [re.fullmatch(r"adversarial-(\d+)", path.stem) for path in self.folder.glob("adversarial-*.npz")]
        self._shard = 1 + max((int(number[1]) for number in numbers if number), default=-1)

    def add(self, entry: Entry, image: np.ndarray | None = None) -> None:
        """Notes an entry (and the adversarial image, if the point broke) for the next `flush`."""
        self._pending.append((entry, image))

    @property
    def pending(self) -> int:
        """How many entries wait for `flush`."""
        return len(self._pending)

    def flush(self) -> None:
        """Writes the noted entries: first the images, under a name that appears when complete, then the lines."""
        if not self._pending:
            return
        broken = [(entry.index, image) for entry, image in self._pending if image is not None]
        if broken:
            path = shard_path(self.folder, self._shard)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, index=np.array([i for i, _ in broken]), images=np.stack([x for _, x in broken]))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        lines, row = [], 0
        for entry, image in self._pending:
            if image is not None:
                entry, row = dataclasses.replace(entry, image=(self._shard, row)), row + 1
            lines.append(json.dumps(dataclasses.asdict(entry)))
            self.entries.append(entry)
        self._write("a", lines)
        self._shard += bool(broken)
        self._pending = []

    def images(self) -> dict[tuple[int, str, int], np.ndarray]:
        """The stored adversarial images by (index, attack, item).

        Raises:
          ValueError: if a shard that the book speaks of is missing or damaged; one line that names it.
        """
        shards: dict[int, np.ndarray] = {}
        found = {}
        for entry in self.entries:
            if entry.image is None:
                continue
            shard, row = entry.image
            if shard not in shards:
                shards[shard] = _read_shard(self.path, shard_path(self.folder, shard))
            if row >= len(shards[shard]):
                name = shard_path(self.folder, shard).name
                raise ValueError(
                    f"ledger = {self.path}: speaks of image {row} of {name}, which has {len(shards[shard])}"
                )
            found[entry.index, entry.attack, entry.item] = shards[shard][row]
        return found

    def _write(self, mode: str, lines: Iterable[str]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


@dataclasses.dataclass(frozen=True)
class Book:
    """A ledger as read: header (None if the file ends inside it), entries, and how many bytes of the file are whole
    lines.
    """

    header: dict[str, Any] | None
    entries: list[Entry]
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
    for number, line in enumerate(content[:valid].splitlines(), 1):
        try:
            rows.append(_header(line) if number == 1 else _entry(line))
        except ValueError as error:
            cure = "" if number == 1 else "; without that line its point would be attacked again"
            raise ValueError(f"ledger = {path}: line {number} is damaged or foreign ({error}){cure}") from None
    if not rows:
        return Book(None, [], 0)
    header, *entries = rows
    if header["ledger"] != FORMAT:
        old = header["ledger"]
        raise ValueError(
            f"ledger = {path}: format {old!r}, must be {FORMAT}; it cannot be resumed, use another workdir"
        )
    return Book(header, entries, valid)


def _header(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or "ledger" not in row:
        raise ValueError("no header of a ledger")
    return row


def _entry(line: bytes) -> Entry:
    """Reads a line.

    Raises:
      ValueError: unless it is JSON with the fields of an entry, each of its kind.
    """
    row = json.loads(line)
    fields = dataclasses.fields(Entry)
    if not isinstance(row, dict) or row.keys() != {field.name for field in fields}:
        raise ValueError("not the fields of an entry")
    if isinstance(row["image"], list):
        row["image"] = tuple(row["image"])
    for field in fields:
        if field.name != "image" and type(row[field.name]) is not field.type:
            raise ValueError(f"{field.name} = {row[field.name]!r}")
    image = row["image"]
    whole = image is None or (isinstance(image, tuple) and len(image) == 2 and all(type(n) is int for n in image))
    if not whole or (image and min(image) < 0):
        raise ValueError(f"image = {image!r}")
    return Entry(**row)


def _read_shard(ledger: pathlib.Path, path: pathlib.Path) -> np.ndarray:
    """The images of a shard.

    Raises:
      ValueError: if it is missing, or its bytes are not what was written.
    """
    cure = "restore it or start over"
    if not path.exists():
        raise ValueError(f"ledger = {ledger}: speaks of {path.name}, which is missing; {cure}")
    try:
        with np.load(path) as arrays:
            images = arrays["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ledger = {ledger}: {path.name} is damaged ({told}); {cure}") from None
    if images.dtype != np.float32 or images.ndim != 4:
        raise ValueError(f"ledger = {ledger}: {path.name} holds {images.dtype}{list(images.shape)}, no images; {cure}")
    return images


def join(folder: str | os.PathLike[str], header: Mapping[str, Any], parts: Iterable[str | os.PathLike[str]]) -> Ledger:
    """Opens a book and enters what the books of its parts hold and it does not.

    Args:
      folder: of the book.
      header: of the whole evaluation.
      parts: folders of the books of the same evaluation on some of its points each.

    Raises:
      ValueError: as `Ledger`; or for a part that evaluates something else, but for its data.
    """
    whole = Ledger(folder, header)
    known = {(entry.index, entry.attack, entry.item, entry.dtype, entry.status) for entry in whole.entries}
    for part in parts:
        found = read(part).header or {}
        own = Ledger(part, dict(header) | {"data": found.get("data")})
        images = own.images()
        for entry in own.entries:
            if (entry.index, entry.attack, entry.item, entry.dtype, entry.status) not in known:
                image = images.get((entry.index, entry.attack, entry.item)) if entry.image is not None else None
                whole.add(dataclasses.replace(entry, image=None), image)
    whole.flush()
    return whole


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


def verdicts(entries: Iterable[Entry], order: list[str] | None = None) -> dict[int, Entry | None]:
    """Per example, the entry that broke it: of the earliest attack, then of its lowest item; None for the examples
    that nothing broke.

    Args:
      entries: of one book.
      order: the attacks in the order they ran; as they appear in the book if None.
    """
    entries = list(entries)
    names = list(dict.fromkeys([CLEAN, *(order or []), *(entry.attack for entry in entries)]))
    verdict: dict[int, Entry | None] = {}
    for entry in entries:
        best = verdict.setdefault(entry.index, None)
        place = (names.index(entry.attack), entry.item)
        if entry.attack == CLEAN and entry.status != "survived":
            verdict[entry.index] = entry
        elif entry.status == "broken" and (best is None or place < (names.index(best.attack), best.item)):
            verdict[entry.index] = entry
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
    left, right = (verdicts(book.entries, (book.header or {}).get("order")) for book in books)
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


def _say(index: int, verdict: Mapping[int, Entry | None]) -> str:
    if index not in verdict:
        return "not attacked"
    entry = verdict[index]
    if entry is None:
        return "survived"
    if entry.attack == CLEAN:
        return f"clean: {entry.status}"
    target = f", target {entry.target}" if entry.target >= 0 else ""
    return f"broken by {entry.attack} (restart {entry.restart}{target})"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m robust_vit.evaluation.autoattack.ledger A B")
    try:
        print("\n".join(compare(*sys.argv[1:])))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
