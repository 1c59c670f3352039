"""One batch as a pure function of its number: read, decode, transform, replace or mask what is bad.

`pipeline` gives the order and calls these from threads or processes.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from robust_vit.data import catalogue, decoding, host
from robust_vit.errors import check
from robust_vit.typing import Source

Batch = dict[str, np.ndarray]
ATTEMPTS = 100  # successors tried in place of a bad image before giving up: so many in a row mean a broken disk


class Order(Protocol):
    """Position in the endless sequence of examples -> index in the source."""

    def __getitem__(self, position: int) -> int: ...


@dataclasses.dataclass
class BadImages:
    """What was skipped: `names` of the bad files as they were found, and how often one was met (`count`)."""

    names: list[str] = dataclasses.field(default_factory=list)
    count: int = 0

    def add(self, name: str) -> None:
        self.count += 1
        if name not in self.names:
            self.names.append(name)

    def __str__(self) -> str:
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return f"{len(self.names)} bad images: {shown}" if self.names else "no bad images"


@dataclasses.dataclass(frozen=True)
class Loader:
    """Example by index: read, decode, transform, check."""

    source: Source
    transforms: tuple[host.Transform, ...]

    def __call__(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        """Returns (image uint8 [H,W,C], label).

        Raises:
          BadImage: damaged or no image, with the file's name.
        """
        example, name = self.source[index], catalogue.identify(self.source, index)
        image, channels = example["image"], getattr(self.source, "channels", 3)
        try:
            if isinstance(image, bytes):
                image = decoding.decode(image, channels, **catalogue.shown(self.source))
            for transform in self.transforms:
                image = transform(image, rng)
            three = isinstance(image, host.Image.Image) and image.mode == "RGB"
            image = host.as_array(image, 3 if three else channels)
        except decoding.BadImage as error:
            raise decoding.BadImage(f"{name}: bad image ({error})") from error
        check(f"type of the image {name}", str(image.dtype), image.dtype == np.uint8, "uint8, 0..255")
        label = example["label"]
        if not 0 <= label < self.source.num_classes:
            allowed = f"in [0, {self.source.num_classes})"
            raise ValueError(f"label of {name} = {label}: must be {allowed}")
        return image, label


def generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one example: counter-based, so that they depend on nothing that came before."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, position]))


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks images [H,W,C] into [B,H,W,C]."""
    shapes = {image.shape for image in images}
    check("shapes in a batch", sorted(shapes)[:3], len(shapes) == 1, "equal: add a transform that crops or resizes")
    return np.stack(images)


class Slot(NamedTuple):
    """Whose example stands in a row of a batch."""

    share: int  # 0: the first source, 1: the second
    position: int  # in that source's order
    copy: int  # which of the copies of one example this is


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows of every batch the second source fills, and which rows hold the same example of the first.

    A batch is `repeats` equal parts, as many workers would make them: each part has the same examples of the first
    source, every copy augmented and attacked by itself, and further examples of the second (Gowal et al. 2021, whose
    code emulates workers so). Rows of the second source are spread evenly and are the same in every batch; copies are a
    part apart, so that no example is mixed with itself.

    Attributes:
      batch_size: rows of the global batch.
      extra: of those, rows of the second source.
      repeats: copies of every example of the first.
    """

    batch_size: int
    extra: int = 0
    repeats: int = 1

    def __call__(self, number: int, row: int) -> Slot:
        """Returns what stands in a row of batch `number`."""
        size, extra = self.batch_size // self.repeats, self.extra // self.repeats  # of a part
        copy, place = divmod(row, size)
        before = place * extra // size  # rows of the second source above this one
        if (place + 1) * extra // size > before:
            return Slot(1, (number * self.repeats + copy) * extra + before, 0)
        return Slot(0, number * (size - extra) + place - before, copy)


@dataclasses.dataclass(frozen=True)
class Share:
    """One of the sources of a batch.

    Attributes:
      load: its examples.
      order: its own.
      first: number of its first example among those of all sources, copies counted.
      repeats: copies of every example.
      stream: where its random numbers begin.
    """

    load: Loader
    order: Order
    first: int = 0
    repeats: int = 1
    stream: int = 0

    def __len__(self) -> int:
        return len(self.load.source)

    def number(self, index: int, copy: int) -> int:
        """Returns the `index` of a batch: the keys of an example are folded from it, so that each copy has its own."""
        return self.first + copy * len(self) + index

    def passed_over(self, requested: int, number: int) -> list[str]:
        """Names the examples that were bad, from the one requested on to the one that a batch calls `number`."""
        skipped = (number - self.first - requested) % len(self)
        return [catalogue.identify(self.load.source, (requested + i) % len(self)) for i in range(skipped)]


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Batch number k of this host; a pure function of k."""

    shares: tuple[Share, ...]
    layout: Layout
    seed: int
    rows: range  # of this host within the global batch
    skip: bool

    def __call__(self, number: int) -> Batch:
        slots = [self.layout(number, row) for row in self.rows]
        requested = [self.shares[slot.share].order[slot.position] for slot in slots]
        images, labels, indices = zip(*map(self.example, requested, slots))
        batch = {
            "image": stack(images),
            "label": np.array(labels, np.int32),
            "index": np.array(indices, np.int32),
            "mask": np.ones(len(labels), bool),
            "requested": np.array(requested, np.int32),
        }
        return batch | ({"extra": np.array([slot.share > 0 for slot in slots])} if len(self.shares) > 1 else {})

    def example(self, index: int, slot: Slot) -> tuple[np.ndarray, int, int]:
        """Loads example `index`, or where that is bad and may be skipped, the next good one of its source."""
        share = self.shares[slot.share]
        for successor in range(ATTEMPTS):
            candidate = (index + successor) % len(share)
            try:
                draw = share.stream + slot.position * share.repeats + slot.copy
                rng = generator(self.seed, draw) if share.load.transforms else None
                return *share.load(candidate, rng), share.number(candidate, slot.copy)
            except decoding.BadImage as error:
                if not self.skip:
                    raise ValueError(f"{error}; data.on_bad_image='skip' replaces it") from error
        raise ValueError(f"{ATTEMPTS} bad images in a row from {catalogue.identify(share.load.source, index)} on")


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Batch number k of this host: the chosen examples in order, padded and masked."""

    load: Loader
    chosen: np.ndarray
    shape: tuple[int, ...]
    rows: range
    batch_size: int
    skip: bool

    def __call__(self, number: int) -> Batch:
        size = len(self.rows)
        # Padding rows are numbered past the end of the source: whoever forgets the mask gets an index error, not a
        # wrong result.
        index = np.arange(len(self.load.source), len(self.load.source) + size, dtype=np.int32)
        batch = {
            "image": np.zeros((size, *self.shape), np.uint8),
            "label": np.zeros(size, np.int32),
            "index": index,
            "mask": np.zeros(size, bool),
            "bad": np.zeros(size, bool),
        }
        first = number * self.batch_size + self.rows.start
        for row, index in enumerate(self.chosen[first : first + size]):
            batch["index"][row] = index
            self.fill(batch, row, int(index))
        return batch

    def fill(self, batch: Batch, row: int, index: int) -> None:
        """Loads one example into its row; a bad one stays masked."""
        try:
            image, label = self.load(index, generator(0, index))
        except decoding.BadImage as error:
            if not self.skip:
                raise ValueError(f"{error}; data.on_bad_image='skip' leaves it out, counted") from error
            batch["bad"][row] = True
            return
        check(
            f"shape of {catalogue.identify(self.load.source, index)}",
            image.shape,
            image.shape == self.shape,
            f"{self.shape} like the first",
        )
        batch["image"][row], batch["label"][row], batch["mask"][row] = image, label, True


def image_shape(source: Source, transforms: Sequence[host.Transform] = ()) -> tuple[int, ...]:
    """Returns (H, W, C) of the transformed images, from the first good example."""
    load = Loader(source, tuple(transforms))
    for index in range(min(len(source), ATTEMPTS)):
        try:
            return load(index, generator(0, index))[0].shape
        except decoding.BadImage:
            continue
    raise ValueError(f"no good image among the first {ATTEMPTS} from {catalogue.identify(source, 0)} on")
