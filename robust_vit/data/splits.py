"""Which examples are train, validation and test: rules without random numbers, so that no library changes a split.

Everything rests on one order of the examples: their indices sorted by the SplitMix64 hash of the index. A part is a
prefix of that order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robust_vit.errors import check, lookup
from robust_vit.typing import Source

SPLITS = ("train", "validation", "test")
ALIASES = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}


def hashed(indices: np.ndarray) -> np.ndarray:
    """Returns the SplitMix64 hash (Steele, Lea & Flood 2014) of integers, as uint64. A bijection: no ties."""
    z = (np.asarray(indices, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_order(indices: np.ndarray) -> np.ndarray:
    """Returns `indices` sorted by their hash: a fixed order that looks random."""
    return np.asarray(indices)[np.argsort(hashed(indices), kind="stable")]


def select(length: int, count: int) -> np.ndarray:
    """Returns `count` of range(length), chosen by hash, ascending: a fixed subset, however the set is sorted."""
    return np.sort(hash_order(np.arange(length))[:count])


def apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Shares `total` among classes in proportion to `counts` by largest remainder; a tie goes to the lower class."""
    quota = counts * total  # in units of 1 / counts.sum(), so that integers decide and no rounding does
    share, remainder = quota // counts.sum(), quota % counts.sum()
    for chosen in np.argsort(-remainder, kind="stable")[: total - share.sum()]:
        share[chosen] += 1
    return share


def stratified(labels: np.ndarray, test: int, validation: int) -> dict[str, np.ndarray]:
    """Splits examples class by class.

    Args:
      labels: [n] integers.
      test: number of test examples.
      validation: number of validation examples, taken from what test leaves.

    Returns:
      {"train", "validation", "test"} -> ascending indices. Every class gives each part its share by largest
      remainder; within a class the first in hash order are test, the next validation, the rest train.
    """
    classes, counts = np.unique(labels, return_counts=True)
    tests, validations = apportion(counts, test), apportion(counts, validation)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label, t, v in zip(classes, tests, validations):
        order = hash_order(np.flatnonzero(labels == label))
        for split, members in zip(("test", "validation", "train"), np.split(order, [t, t + v])):
            parts[split].append(members)
    return {split: np.sort(np.concatenate(members)) for split, members in parts.items()}


class Subset:
    """The examples of `source` at `indices`, numbered anew from 0."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, np.asarray(indices)
        self.num_classes = source.num_classes
        self.channels = getattr(source, "channels", 3)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def identify(self, index: int) -> str:
        return identify(self.source, int(self.indices[index]))


def identify(source: Source, index: int) -> str:
    """Returns what an error message calls example `index`: its file where the source knows it, else its number."""
    return source.identify(index) if hasattr(source, "identify") else f"example {index}"


def carve(source: Source, part: str, fraction: float, examples: int | None) -> Source:
    """Returns the "validation" part of a stored training set, or the "train" part that remains; a fraction leaves both
    at least one example.
    """
    check("data.options.validation_fraction", fraction, 0 < fraction < 1, "between 0 and 1")
    share = max(1, min(round(len(source) * fraction), len(source) - 1))
    count = share if examples is None else examples
    check("data.options.validation_examples", count, 0 < count < len(source), f"between 1 and {len(source) - 1}")
    order = hash_order(np.arange(len(source)))
    return Subset(source, np.sort(order[:count] if part == "validation" else order[count:]))


def open_split(
    split: str,
    stored: Sequence[str],
    load: Callable[[str], Source],
    *,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float = 0.05,
    validation_examples: int | None = None,
) -> Source:
    """Opens one of train, validation and test of a set that stores its own parts.

    The rule: train is the stored training part; test is the stored test part, or the stored validation part where
      that is all there is (ImageNet);
    validation is the stored validation part, unless it is missing or already serves as test: then it is carved out of
      train by hash, and train is
    what remains. So the examples that select a checkpoint are never those that it is reported on.

    Args:
      split: "train", "validation" or "test".
      stored: names of the stored parts.
      load: stored name -> Source.
      train_split, validation_split, test_split: stored names that overrule the rule; a validation part equal to the
        training part is carved.
      validation_fraction: share of the training part to carve.
      validation_examples: number to carve instead of a share.

    Raises:
      ValueError: unknown split, or a part that is not stored.
    """
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    given = {"train": train_split, "validation": validation_split, "test": test_split}
    found = {
        part: given[part] or next((name for name in names if name in stored), None) for part, names in ALIASES.items()
    }
    found["test"] = found["test"] or found["validation"]
    carved = found["train"] is not None and found["validation"] in (None, found["test"], found["train"])
    name = found["train"] if carved and split == "validation" else found[split]
    check(
        f"data.options.{split}_split",
        name,
        name is not None,
        f"stored; there are {', '.join(sorted(stored)) or 'no parts'}",
    )
    source = load(lookup(f"data.options.{split}_split", name, {part: part for part in stored}))
    if carved and split != "test":
        return carve(source, split, validation_fraction, validation_examples)
    return source
