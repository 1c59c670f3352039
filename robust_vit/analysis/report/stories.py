"""What became of each example, in a sentence: by the ledger of AutoAttack where there is one, else by the walk."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robust_vit.analysis.walks import NEVER, Walk
from robust_vit.evaluation import record
from robust_vit.evaluation.autoattack import ledger

BROKEN, SURVIVED, CLEAN = "broken", "survived", ledger.CLEAN

Book = dict[int, list[ledger.Entry]]


def book_of(result: Mapping[str, Any], workdir: pathlib.Path) -> tuple[Book, pathlib.Path | None]:
    """The ledger of the result's AutoAttack by example, and its folder; ({}, None) where there is none to read.

    A run folder that was moved has its ledger with it: the folder that the result names is looked for there.
    """
    told = record.suites_of(result).get("autoattack", {}).get("ledger")
    if not told:
        return {}, None
    named = pathlib.Path(told)
    for folder in (workdir.joinpath(*named.parts[-3:]), named):
        if (folder / ledger.NAME).is_file():
            break
    else:
        return {}, None
    book: Book = {}
    for entry in ledger.read(folder).entries:
        book.setdefault(entry.index, []).append(entry)
    return book, folder


def images_of(book: Book, folder: pathlib.Path) -> dict[int, np.ndarray]:
    """{index: the image that broke it} of those that an attack broke; of shards that are there."""
    found, shards = {}, {}
    for index, entries in book.items():
        broke = breaker(entries)
        if broke is None or broke.image is None:
            continue
        shard, row = broke.image
        if shard not in shards:
            with np.load(ledger.shard_path(folder, shard)) as arrays:
                shards[shard] = arrays["images"]
        found[index] = shards[shard][row]
    return found


def breaker(entries: Sequence[ledger.Entry]) -> ledger.Entry | None:
    """The entry that broke the point: of the first attack that did, the lowest item; None where it stands."""
    broke = [entry for entry in entries if entry.status == BROKEN and entry.attack != CLEAN]
    return min((e for e in broke if e.attack == broke[0].attack), key=lambda e: e.item) if broke else None


def from_ledger(entries: Sequence[ledger.Entry], names: Sequence[str]) -> str:
    """A sentence on one example from its lines of the ledger.

    Args:
      entries: of one example, in the order they were written.
      names: of the classes.
    """
    if any(entry.attack == CLEAN and entry.status != SURVIVED for entry in entries):
        return "Misclassified without any attack."
    attacks = list(dict.fromkeys(entry.attack for entry in entries if entry.attack != CLEAN))
    broke = breaker(entries)
    stood = [attack for attack in attacks if broke is None or attack != broke.attack]
    if broke is None:
        return f"AutoAttack: stood {_listed(stood)}." if stood else "AutoAttack has not come to it."
    aimed = f", aimed at {_name(broke.target, names)}," if broke.target >= 0 else ""
    before = f"stood {_listed(stood)}; " if stood else ""
    return f"AutoAttack: {before}broken by {_word(broke.attack)}{aimed} after {_steps(broke.ticks, broke.attack)}."


def from_walk(walk: Walk, row: int, names: Sequence[str]) -> str:
    """A sentence on one example of a walk."""
    if not walk.clean_right[row]:
        return f"Misclassified without any attack: taken for {_name(walk.clean_logits[row].argmax(), names)}."
    at = walk.flipped_at[row]
    if at == NEVER:
        loss = walk.loss[:, row]
        return f"{walk.attack}: stood all {_steps(walk.steps)}; its loss rose to {loss.max():.2g}."
    return f"{walk.attack}: flipped {'at its random start' if at == 0 else f'at step {at} of {walk.steps}'}."


def _listed(attacks: Sequence[str]) -> str:
    words = [_word(attack) for attack in attacks]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _word(attack: str) -> str:
    return "Square" if attack == "square" else attack.upper()


def _steps(count: int, attack: str = "") -> str:
    one, many = ("query", "queries") if attack == "square" else ("step", "steps")
    return f"{count} {one if count == 1 else many}"


def _name(k: int, names: Sequence[str]) -> str:
    return f"“{names[int(k)]}”" if int(k) < len(names) else f"class {int(k)}"
