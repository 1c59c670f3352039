"""Which examples are train, validation and test: rules without random numbers, so that no library changes a split.

Everything rests on one order of the examples: their indices sorted by the SplitMix64 hash of the index. A part is a
prefix of that order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robust_vit.data import catalogue
from robust_vit.errors import check, lookup
from robust_vit.typing import Source

SPLITS = ("train", "validation", "test")
ALIASES = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}
VALIDATION_FRACTION = 0.05  # of a stored training part that must give validation too


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


def stratified(
    labels: np.ndarray, test: int, validation: int, hashes: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Splits examples class by class.

    Args:
      labels: [n] integers.
      test: number of test examples.
      validation: number of validation examples, taken from what test leaves.
      hashes: [n] distinct integers whose order decides within a class; default the hashes of the indices.

    Returns:
      {"train", "validation", "test"} -> ascending indices. Every class gives each part its share by largest
      remainder, and keeps at least one example in train; within a class the first in hash order are test, the next
      validation, the rest train.
    """
    hashes = hashed(np.arange(len(labels))) if hashes is None else hashes
    classes, counts = np.unique(labels, return_counts=True)
    tests, validations = apportion(counts, test), apportion(counts, validation)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label, count, t, v in zip(classes, counts, tests, validations):
        t = min(t, count - 1)  # a class of few examples is trained on before it is measured
        v = min(v, count - 1 - t)
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(hashes[members], kind="stable")]
        for split, chosen in zip(("test", "validation", "train"), np.split(order, [t, t + v])):
            parts[split].append(chosen)
    return {split: np.sort(np.concatenate(chosen)) for split, chosen in parts.items()}


class Subset:
    """The examples of `source` at `indices`, numbered anew from 0; `origin` says in words which these are."""

    def __init__(self, source: Source, indices: np.ndarray, origin: str = ""):
        self.source, self.indices, self.origin = source, np.asarray(indices), origin
        self.num_classes = source.num_classes
        self.channels = getattr(source, "channels", 3)
        self.class_names = catalogue.class_names(source)
        self.shown = catalogue.shown(source)

    @property
    def labels(self) -> np.ndarray | None:
        known = catalogue.labels(self.source)
        return None if known is None else known[self.indices]

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        return catalogue.digest(self.source, self.indices if indices is None else self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def identify(self, index: int) -> str:
        return catalogue.identify(self.source, int(self.indices[index]))


def shares(
    count: int, validation_fraction: float | None, validation_examples: int | None, test_fraction: float | None
) -> tuple[int, int]:
    """Returns how many of `count` examples become (test, validation), None and None meaning none; a fraction gives at
    least one and leaves at least one to train on.
    """
    test = validation = 0
    if test_fraction is not None:
        check("data.options.test_fraction", test_fraction, 0 < test_fraction < 1, "between 0 and 1")
        check("examples to split", count, count >= 3, "at least 3, one each for train, validation and test")
        test = max(1, min(round(count * test_fraction), count - 2))
    rest = count - test
    if validation_fraction is not None:
        fits = 0 < validation_fraction < 1
        check("data.options.validation_fraction", validation_fraction, fits, "between 0 and 1")
        validation = max(1, min(round(count * validation_fraction), rest - 1))
    if validation_examples is not None:
        fits = 0 < validation_examples < rest
        check("data.options.validation_examples", validation_examples, fits, f"between 1 and {rest - 1}")
        validation = validation_examples
    return test, validation


def carve(
    source: Source,
    part: str,
    fraction: float | None,
    examples: int | None,
    test_fraction: float | None = None,
    name: str = "train",
) -> Source:
    """Returns the part "validation" or "test" of the stored training set `name`, or the "train" that remains.

    The examples in hash order are first test, then validation, then train; see `shares` for how many.
    """
    test, validation = shares(len(source), fraction, examples, test_fraction)
    order = hash_order(np.arange(len(source)))
    parts = dict(zip(("test", "validation", "train"), np.split(order, [test, test + validation])))
    origin = f"part {name!r}, of which {test} test and {validation} validation examples are split off by hash: {part}"
    return Subset(source, np.sort(parts[part]), origin)


def open_split(
    split: str,
    stored: Sequence[str],
    load: Callable[[str], Source],
    layout: str = "",
    *,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float = VALIDATION_FRACTION,
    validation_examples: int | None = None,
    test_fraction: float | None = None,
) -> Source:
    """Opens one of train, validation and test of a set that stores its own parts.

    The rule: train is the stored training part; test is the stored test part, or the stored validation part where that
    is all there is (ImageNet); validation is the stored validation part, unless it is missing or already serves as
    test: then it is carved out of train by hash, and train is what remains. Where no test part is stored, a
    `test_fraction` carves one too. So the examples that select a checkpoint are never those that it is reported on.

    Args:
      split: "train", "validation" or "test".
      stored: names of the stored parts.
      load: stored name -> Source.
      layout: said when a part is missing: what should be stored.
      train_split, validation_split, test_split: stored names that overrule the rule; a validation part equal to the
        training part is carved.
      validation_fraction: share of the training part to carve.
      validation_examples: number to carve instead of a share.
      test_fraction: share of the training part to carve for test, where no test part is stored.

    Raises:
      ValueError: unknown split, a part that is not stored, or a test part that is also trained on.
    """
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    there = ", ".join(sorted(stored)) or "no parts"
    given = {"train": train_split, "validation": validation_split, "test": test_split}
    found = {
        part: given[part] or next((name for name in names if name in stored), None) for part, names in ALIASES.items()
    }
    train, test = found["train"], found["test"]
    check(
        "data.options.test_fraction",
        test_fraction,
        test_fraction is None or test is None,
        f"left out: {test} is stored",
    )
    check("data.options.test_split", test, test is None or test != train, "another part than the training part")
    if test_fraction is None and test is None and found["validation"] != train:
        found["test"] = found["validation"]
    carved = set() if test_fraction is None else {"test"}
    if found["validation"] in (None, found["test"], train):
        carved.add("validation")
    name = train if split in carved else found[split]
    field = f"data.options.{split}_split"
    hint = "; data.options.test_fraction=0.1 splits one off train" if split == "test" and train is not None else ""
    check(field, name, name is not None, f"stored; there are {there}{hint}{layout}")
    source = load(lookup(field, name, {part: part for part in stored}))
    if split in carved or (split == "train" and carved):
        fraction, examples = (validation_fraction, validation_examples) if "validation" in carved else (None, None)
        return carve(source, split, fraction, examples, test_fraction, name)
    source.origin = f"part {name!r}"
    return source
