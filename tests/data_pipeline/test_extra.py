"""Promise: a second source and copies change no rule: batch k is the same for all hosts, threads and restarts."""

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples
from PIL import Image

from robust_vit import data
from robust_vit.data import arrays, folder, host, loading, pipeline

TRANSFORMS = host.build(["random_crop(8, padding=2)", "flip"])
REAL, GENERATED = 23, 57


def numbered(count, base=0, size=2):
    """Images that say which they are: `base` + their number."""
    images = (base + np.arange(count, dtype=np.uint8))[:, None, None, None] * np.ones((1, size, size, 1), np.uint8)
    return arrays.ArraySource(images, np.arange(count) % 4, 4, f"numbers from {base}")


def mixed(batch_size=10, seed=1, **keywords):
    keywords = {"extra": numbered(GENERATED, 100), "ratio": 0.7} | keywords
    return pipeline.train(numbered(REAL), batch_size=batch_size, seed=seed, **keywords)


def taken(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


def test_seven_of_ten_rows_are_the_second_sources_and_always_the_same_rows():
    batches = taken(mixed(), 20)
    rows = batches[0]["extra"]
    assert rows.dtype == bool and rows.sum() == 7
    assert (rows[1:] | rows[:-1]).all()  # spread: no two of the others stand together
    for batch in batches:
        assert np.array_equal(batch["extra"], rows)
        assert np.array_equal(batch["image"][:, 0, 0, 0] >= 100, rows)
        number = batch["image"][:, 0, 0, 0] - 100 * rows
        assert np.array_equal(batch["index"], number + REAL * rows)  # none shares a number, so none shares keys
        assert np.array_equal(batch["label"], number % 4)


def test_each_source_has_passes_of_its_own_and_nothing_is_dropped():
    batches = taken(mixed(), 40)
    for rows, first, count in ((False, 0, REAL), (True, REAL, GENERATED)):
        indices = np.concatenate([b["index"][b["extra"] == rows] for b in batches]) - first
        passes = [indices[start : start + count] for start in range(0, len(indices) - count + 1, count)]
        assert len(passes) > 1 and not np.array_equal(passes[0], passes[1])
        for one in passes:
            assert sorted(one) == list(range(count))


def test_batches_of_one_source_are_what_they_were_before_there_were_two():
    """Written out: position k B + row of the shuffle of that seed, and random numbers of (seed, position)."""
    source, seed = numbered(REAL, size=8), 3
    order = grain.MapDataset.range(REAL).seed(seed).shuffle().repeat()
    batches = taken(pipeline.train(source, batch_size=4, seed=seed, transforms=TRANSFORMS), 9)
    load = loading.Loader(source, TRANSFORMS)
    for k, batch in enumerate(batches):
        indices = [order[4 * k + row] for row in range(4)]
        assert batch["index"].tolist() == indices and "extra" not in batch
        expected = [load(i, loading.generator(seed, 4 * k + row))[0] for row, i in enumerate(indices)]
        np.testing.assert_array_equal(batch["image"], expected)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_load_the_batch_of_one_host_row_for_row(hosts, repeats):
    source, extra = numbered(REAL, size=8), numbered(GENERATED, 100, size=8)
    keywords = {"batch_size": 16, "seed": 3, "transforms": TRANSFORMS, "extra": extra, "ratio": 0.3, "repeats": repeats}
    whole = taken(pipeline.train(source, **keywords), 12)
    shares = [
        taken(pipeline.train(source, host_index=i, host_count=hosts, threads=1 + i, **keywords), 12)
        for i in range(hosts)
    ]
    joined = [{k: np.concatenate([b[k] for b in parts]) for k in parts[0]} for parts in zip(*shares)]
    assert_equal(joined, whole)


@pytest.mark.parametrize("step", [0, 1, 13])
def test_a_restart_continues_bit_for_bit(step):
    keywords = {"transforms": TRANSFORMS, "repeats": 2, "extra": numbered(GENERATED, 100, size=9)}
    source = numbered(REAL, size=9)
    running = pipeline.train(source, batch_size=12, seed=5, ratio=0.5, **keywords)
    for _ in range(step):
        next(running)
    state = running.get_state()
    assert state == {"step": step}
    expected = taken(running, 8)
    restarted = pipeline.train(source, batch_size=12, seed=5, ratio=0.5, **keywords)
    restarted.set_state(state)
    assert_equal(taken(restarted, 8), expected)


def test_copies_are_of_one_image_each_augmented_by_itself():
    source = data.build("digits").test
    batches = taken(pipeline.train(source, batch_size=12, seed=0, transforms=TRANSFORMS, repeats=3), 4)
    plain = taken(pipeline.train(source, batch_size=4, seed=0), 4)
    for batch, single in zip(batches, plain):
        places = (batch["index"] % len(source)).reshape(3, 4)
        assert (places == single["index"]).all()  # a quarter of the rows are images, in the order of any other run
        assert len(set(batch["index"])) == 12  # so that every copy is attacked by itself
        assert (batch["label"].reshape(3, 4) == single["label"]).all()
        first, second, third = batch["image"].reshape(3, 4, 8, 8, 1)
        assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_emulated_workers_share_the_first_source_and_no_generated_image():
    (batch,) = taken(mixed(batch_size=20, repeats=2), 1)
    first, second = batch["index"].reshape(2, 10)
    rows = batch["extra"].reshape(2, 10)
    assert np.array_equal(*rows) and rows.sum() == 14
    assert np.array_equal(first[~rows[0]] + REAL, second[~rows[0]])
    assert len(set(first[rows[0]]) | set(second[rows[0]])) == 14 and min(first[rows[0]]) >= 2 * REAL
    assert np.array_equal(batch["image"][:, 0, 0, 0][batch["extra"]] - 100, batch["index"][batch["extra"]] - 2 * REAL)


@examples(60)
@hypothesis.given(size=st.integers(1, 17), repeats=st.integers(1, 4), data=st.data())
def test_the_layout_takes_every_position_once_and_every_copy(size, repeats, data):
    extra = data.draw(st.integers(0, size - 1))
    layout = loading.Layout(size * repeats, extra * repeats, repeats)
    slots = [[layout(number, row) for row in range(size * repeats)] for number in range(3)]
    assert len({tuple(slot.share for slot in batch) for batch in slots}) == 1
    every = [slot for batch in slots for slot in batch]
    second = sorted(slot.position for slot in every if slot.share)
    assert second == list(range(3 * extra * repeats))
    first = sorted((slot.position, slot.copy) for slot in every if not slot.share)
    assert first == [(p, c) for p in range(3 * (size - extra)) for c in range(repeats)]


def broken_folder(root, count, bad):
    """PNG files of a class, some of them no images."""
    (root / "a").mkdir(parents=True)
    for i in range(count):
        path = root / "a" / f"{i:02d}.png"
        path.write_bytes(b"no image") if i in bad else Image.new("L", (2, 2), i).save(path)
    return folder.FolderSource(root, ["a"])


def test_a_bad_image_is_replaced_by_one_of_its_own_source_and_counted(tmp_path):
    real, generated = broken_folder(tmp_path / "r", 6, {5}), broken_folder(tmp_path / "g", 8, {2, 7})
    batches = pipeline.train(
        real, batch_size=4, seed=0, extra=generated, ratio=0.5, repeats=2, on_bad_image="skip", threads=1
    )
    seen = taken(batches, 12)
    for batch in seen:
        assert np.array_equal(batch["index"] >= 12, batch["extra"])
        assert not set(batch["index"]) & {5, 11, 12 + 2, 12 + 7}
    assert sorted(name[-8:] for name in batches.bad.names) == ["a/02.png", "a/05.png", "a/07.png"]
    assert batches.bad.count == 2 * 2 + 3 * 2  # one of 6 in 2 passes, twice each; two of 8 in 3 passes


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"ratio": 1.0}, r"data.extra.ratio = 1.0: must be in \[0, 1\)"),
        ({"ratio": -0.1}, r"data.extra.ratio = -0.1: must be in \[0, 1\)"),
        ({"ratio": 0.01}, "data.extra.ratio = 0.01: must be such that both sources have a row among 10"),
        ({"ratio": 0.99}, "data.extra.ratio = 0.99: must be such that both sources have a row among 10"),
        ({"ratio": 0.0}, "data.extra.ratio = 0.0: must be above 0 with a second source"),
        ({"extra": None}, "data.extra.ratio = 0.7: must be above 0 with a second source, 0 without one"),
        ({"repeats": 3}, "data.repeats = 3: must be a divisor of data.batch_size = 10"),
        ({"repeats": 0}, "data.repeats = 0: must be a divisor"),
        ({"repeats": 10}, "data.extra.ratio = 0.7: must be such that both sources have a row among 1"),
        ({"extra": numbered(0)}, "examples = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_mixed_is_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        mixed(**keywords)


def test_more_copies_than_there_are_numbers_are_refused():
    class Endless(arrays.ArraySource):
        def __len__(self):
            return 2**30

    with pytest.raises(ValueError, match="examples and copies = 2147483648: must be below"):
        pipeline.train(
            Endless(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, int), 2, "x"), batch_size=4, seed=0, repeats=2
        )


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    keywords = {"ratio": 0.5, "repeats": 2, "batch_size": 12}
    assert_equal(taken(mixed(workers=2, **keywords), 6), taken(mixed(**keywords), 6))
