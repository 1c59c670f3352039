"""Sources to batches. The only file that knows Grain, which gives the global order, the read-ahead and the processes.

The order is one endless sequence: position p = epoch * len(source) + place in that epoch's shuffle. Global batch k
holds the positions [k B, (k+1) B); host h of n takes the h-th n-th of those rows; augmentation draws from a generator
keyed by (seed, p). So the batches are the same for any number of hosts, threads and worker processes, and the whole
state of the iterator is one number: how many batches were taken.

A batch is a dict of NumPy arrays: image uint8 [B,H,W,C], label int32 [B], index int32 [B] (place in the source), mask
bool [B]. Where a second source is mixed in, extra bool [B] marks its rows; its examples are numbered after those of the
first. Copies of one example (`repeats`) have numbers of their own: copy c of example i is c len(source) + i.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from robust_vit.data import catalogue, host, splits
from robust_vit.data.loading import (
    BadImages,
    Batch,
    EvaluationBatch,
    Layout,
    Loader,
    Share,
    TrainBatch,
    image_shape,
)
from robust_vit.errors import check
from robust_vit.typing import Source

ENDLESS = 2**40  # batches
AUTOMATIC = -1  # workers: as many as help
MANY_CORES = 8  # from here on, one process no longer decodes fast enough
SHORT_PASS = 4096  # examples
SECOND = 2**31  # from the first source's seed of its order to the second's
STREAM = 2**62  # where the second source's random numbers begin: past ENDLESS batches of any size
NUMBERS = 2**31  # examples and copies that can have keys of their own


@dataclasses.dataclass(frozen=True)
class Reading:
    """Who reads: `workers` processes (0: this one) of `threads` each, and why. The batches do not depend on it."""

    workers: int
    threads: int
    why: str

    def __str__(self) -> str:
        who = f"{self.workers} processes of {self.threads} threads" if self.workers else f"{self.threads} threads"
        return f"reading data in {who} ({self.why})"


def choose(source: Source, workers: int, threads: int, examples: int | None = None) -> Reading:
    """Decides who reads a source.

    Processes take 5 seconds and more to start, in every pass of an evaluation anew, and hand on a copy of every batch:
    images that lie in memory are better read here. Decoding is worth it, but Pillow decodes outside the interpreter's
    lock: threads of one process keep a few cores busy, and only more cores want processes. A short pass ends before its
    processes have started.

    Args:
      source: the examples; the first one is read.
      workers: `AUTOMATIC`, or how many processes.
      threads: of each process; decoding in this one alone may take more.
      examples: in one pass, if passes end.
    """
    if workers != AUTOMATIC:
        return Reading(workers, threads, "as given")
    if not isinstance(source[0]["image"], bytes):
        return Reading(0, threads, "nothing to decode")
    count = cores()
    if count < MANY_CORES:
        return Reading(0, max(threads, min(count, 4)), f"encoded images, {count} cores")
    if examples is not None and examples < SHORT_PASS:
        return Reading(0, max(threads, 4), f"a short pass over {examples} encoded images")
    return Reading(min(count // 4, 16), threads, f"encoded images, {count} cores")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Train:
    """Endless iterator over this host's training batches.

    `get_state` and `set_state` give and take {"step": batches taken}; `bad` is a `BadImages` (of this process, since
    its start); `reading` says who reads; `close` ends the reading threads and processes.
    """

    def __init__(self, batches: grain.MapDataset, shares: Sequence[Share], reading: Reading):
        self.bad, self.reading = BadImages(), reading
        self._batches, self._shares = batches, shares
        self._step, self._reader = 0, None

    def __iter__(self) -> "Train":
        return self

    def __next__(self) -> Batch:
        if self._reader is None:
            self._reader = read(self._batches[self._step :], self.reading)
        batch = dict(next(self._reader))
        self._step += 1
        for requested, index in zip(batch.pop("requested"), batch["index"]):
            share = next(share for share in reversed(self._shares) if share.first <= index)
            for name in share.passed_over(int(requested), int(index)):
                self.bad.add(name)
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Evaluation:
    """Re-iterable over this host's evaluation batches, `len` of them, of `examples` images of one `shape` (H, W, C);
    `bad` is what the last pass left out, `reading` says who reads.
    """

    def __init__(
        self, batches: grain.MapDataset, source: Source, examples: int, shape: tuple[int, ...], reading: Reading
    ):
        self.examples, self.shape, self.bad, self.reading = examples, shape, BadImages(), reading
        self._batches, self._source = batches, source

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = BadImages()
        reader = read(self._batches, self.reading)
        try:
            for batch in reader:
                batch = dict(batch)
                for index in batch["index"][batch.pop("bad")]:
                    self.bad.add(catalogue.identify(self._source, int(index)))
                yield batch
        finally:
            reader.close()


def read(batches: grain.MapDataset, reading: Reading) -> Any:
    """Returns an iterator that reads ahead: in threads, or in worker processes of so many threads each."""
    threads = reading.threads
    if reading.workers:
        # Grain's processes read absl flags, which nobody has parsed in a notebook or a test.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        options = grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=2)
        return iter(dataset.mp_prefetch(options))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def train(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transforms: Sequence[host.Transform] = (),
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    on_bad_image: str = "error",
    extra: Source | None = None,
    ratio: float = 0.0,
    repeats: int = 1,
) -> Train:
    """Endless training batches, reshuffled every epoch; a batch may run across the end of an epoch, nothing is dropped.

    The concatenation of all hosts' batches, in host order, is the batch of a single host, row for row.

    Args:
      source: the examples.
      batch_size: of the global batch.
      seed: of order and augmentation.
      transforms: see `robust_vit.data.host.build`.
      host_index, host_count: which share of every batch to load.
      workers: processes that load; 0: threads of this process; -1: what suits the source, see `choose`. They are
        spawned: a script needs `if __name__ == "__main__":`.
      threads: loading threads of each process; also how many batches are read ahead.
      on_bad_image: "error" raises with the file's name; "skip" takes the next good example of the source in its place
        (its `index` says so) and counts it in `bad`. The replacement depends on the source alone, so a restart gives
        the same batches.
      extra: a second source with an order of its own, mixed into every batch.
      ratio: share of the batch in [0, 1) that comes from it, rounded to whole rows, the same in every batch.
      repeats: copies of every example of the first source in a batch, each with its own augmentation and attack (Hoffer
        et al. 2020, arXiv 1901.09335); `batch_size` counts them all. See `robust_vit.data.loading.Layout`.
    """
    rows = _rows(batch_size, host_index, host_count)
    _check_reading(workers, threads, on_bad_image)
    layout = lay_out(batch_size, ratio, repeats)
    check("data.extra.ratio", ratio, (extra is None) == (ratio == 0), "above 0 with a second source, 0 without one")
    sources = [source] if extra is None else [source, extra]
    shares = _shares(sources, seed, tuple(transforms), repeats)
    make = TrainBatch(shares, layout, seed, rows, on_bad_image == "skip")
    reading = max((choose(one, workers, threads) for one in sources), key=lambda one: (one.workers, one.threads))
    return Train(grain.MapDataset.range(ENDLESS).map(make), shares, reading)


def lay_out(batch_size: int, ratio: float = 0.0, repeats: int = 1) -> Layout:
    """Says which rows of a batch a second source fills.

    Raises:
      ValueError: if the copies do not divide the batch, or the ratio leaves one of the sources without a row.
    """
    allowed = f"a divisor of data.batch_size = {batch_size}"
    check("data.repeats", repeats, repeats >= 1 and batch_size % repeats == 0, allowed)
    check("data.extra.ratio", ratio, 0 <= ratio < 1, "in [0, 1)")
    size = batch_size // repeats
    extra = round(ratio * size)
    allowed = f"such that both sources have a row among {size}"
    check("data.extra.ratio", ratio, ratio == 0 or 0 < extra < size, allowed)
    return Layout(batch_size, extra * repeats, repeats)


def _shares(
    sources: Sequence[Source], seed: int, transforms: tuple[host.Transform, ...], repeats: int
) -> tuple[Share, ...]:
    """The sources with their orders, random numbers and places in the numbering of all examples."""
    shares, first = [], 0
    for place, source in enumerate(sources):
        check("examples", len(source), len(source) > 0, "at least 1")
        order = grain.MapDataset.range(len(source)).seed((seed + place * SECOND) % 2**32).shuffle().repeat()
        copies = repeats if place == 0 else 1
        shares.append(Share(Loader(source, transforms), order, first, copies, place * STREAM))
        first += copies * len(source)
    check("examples and copies", first, first < NUMBERS, f"below {NUMBERS}: each has keys of its own")
    return tuple(shares)


def evaluate(
    source: Source,
    *,
    batch_size: int,
    transforms: Sequence[host.Transform] = (),
    host_index: int = 0,
    host_count: int = 1,
    limit: int | None = None,
    workers: int = 0,
    threads: int = 2,
    on_bad_image: str = "error",
) -> Evaluation:
    """Every example exactly once, in order; the last batch is padded with rows whose mask is False.

    Every host has equally many batches.

    Args:
      source: the examples.
      batch_size: of the global batch.
      transforms: see `robust_vit.data.host.build`.
      host_index, host_count: which share of every batch to load.
      limit: at most so many examples, chosen by the hash of their index (a set sorted by class is not cut to its
        first classes).
      workers, threads: as in `train`.
      on_bad_image: "error" raises with the file's name; "skip" masks it out and counts it in `bad`.
    """
    check("examples", len(source), len(source) > 0, "at least 1")
    check("limit", limit, limit is None or limit > 0, "at least 1")
    rows = _rows(batch_size, host_index, host_count)
    _check_reading(workers, threads, on_bad_image)
    chosen = np.arange(len(source)) if limit is None else splits.select(len(source), limit)
    load = Loader(source, tuple(transforms))
    shape = image_shape(source, transforms)
    make = EvaluationBatch(load, chosen, shape, rows, batch_size, on_bad_image == "skip")
    batches = grain.MapDataset.range(-(-len(chosen) // batch_size)).map(make)
    return Evaluation(batches, source, len(chosen), shape, choose(source, workers, threads, len(chosen)))


def _rows(batch_size: int, host_index: int, host_count: int) -> range:
    """The rows of the global batch that a host loads."""
    check(
        "batch_size", batch_size, batch_size > 0 and batch_size % host_count == 0, f"a multiple of {host_count} hosts"
    )
    check("host_index", host_index, 0 <= host_index < host_count, f"in [0, {host_count})")
    size = batch_size // host_count
    return range(host_index * size, (host_index + 1) * size)


def _check_reading(workers: int, threads: int, on_bad_image: str) -> None:
    most = 8 * (os.cpu_count() or 1)
    check("data.workers", workers, AUTOMATIC <= workers <= most, "between 0 and 8 a core, or -1: as many as help")
    check("data.threads", threads, threads >= 1, "at least 1")
    check("data.on_bad_image", on_bad_image, on_bad_image in ("error", "skip"), "'error' or 'skip'")
