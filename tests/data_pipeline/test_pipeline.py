"""The order that hosts, threads, processes and restarts cannot change; evaluation that counts every example once."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples
from PIL import Image

from robust_vit import data
from robust_vit.data import arrays, folder, host, pipeline, splits

TRANSFORMS = host.build(["random_crop(8, padding=1)", "flip"])


@pytest.fixture(scope="module")
def digits():
    return data.build("digits").test


def numbered(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return arrays.ArraySource(images, np.arange(count) % 4, 4, "numbers")


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


def test_a_batch_has_the_promised_fields(digits):
    (batch,) = taken(pipeline.train(digits, batch_size=16, seed=0, transforms=TRANSFORMS), 1)
    assert {field: (value.shape, value.dtype.name) for field, value in batch.items()} == {
        "image": ((16, 8, 8, 1), "uint8"),
        "label": ((16,), "int32"),
        "index": ((16,), "int32"),
        "mask": ((16,), "bool"),
    }
    assert batch["mask"].all()
    assert [digits[i]["label"] for i in batch["index"]] == batch["label"].tolist()


def test_every_epoch_is_another_permutation_and_nothing_is_dropped():
    """23 examples in batches of 5: the batch in which an epoch ends starts the next one."""
    indices = np.concatenate([b["index"] for b in taken(pipeline.train(numbered(23), batch_size=5, seed=1), 14)])
    first, second, third = indices[:23], indices[23:46], indices[46:69]
    for epoch in (first, second, third):
        assert sorted(epoch) == list(range(23))
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    other = np.concatenate([b["index"] for b in taken(pipeline.train(numbered(23), batch_size=5, seed=2), 5)])
    assert not np.array_equal(other[:23], first)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_load_the_batch_of_one_host_row_for_row(digits, hosts):
    whole = taken(pipeline.train(digits, batch_size=16, seed=3, transforms=TRANSFORMS), 30)  # beyond one epoch
    shares = [
        taken(pipeline.train(digits, batch_size=16, seed=3, transforms=TRANSFORMS, host_index=i, host_count=hosts), 30)
        for i in range(hosts)
    ]
    joined = [{k: np.concatenate([b[k] for b in parts]) for k in parts[0]} for parts in zip(*shares)]
    assert_equal(joined, whole)


def test_augmentation_differs_from_epoch_to_epoch():
    source = splits.Subset(data.build("digits").test, np.arange(4))
    batches = taken(pipeline.train(source, batch_size=4, seed=0, transforms=TRANSFORMS), 2)
    a, b = (batch["image"][np.argsort(batch["index"])] for batch in batches)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("step", [0, 1, 7, 23])
def test_a_restart_continues_bit_for_bit(digits, step):
    keywords = {"batch_size": 24, "seed": 5, "transforms": TRANSFORMS}
    running = pipeline.train(digits, **keywords)
    for _ in range(step):
        next(running)
    state = running.get_state()
    assert state == {"step": step}  # what was read ahead does not count
    expected = taken(running, 20)
    restarted = pipeline.train(digits, **keywords)
    next(restarted)
    restarted.set_state(state)
    assert_equal(taken(restarted, 20), expected)


def test_a_restart_may_change_hosts_and_threads(digits):
    keywords = {"batch_size": 12, "seed": 5, "transforms": TRANSFORMS}
    expected = taken(pipeline.train(digits, **keywords), 9)[6:]
    shares = []
    for i in range(2):
        iterator = pipeline.train(digits, host_index=i, host_count=2, threads=1 + 3 * i, **keywords)
        iterator.set_state({"step": 6})
        shares.append(taken(iterator, 3))
    assert_equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shares)], expected)


@examples(15)
@hypothesis.given(count=st.integers(1, 40), share=st.integers(1, 7), hosts=st.integers(1, 3))
def test_evaluation_meets_every_example_once_whatever_the_shape(count, share, hosts):
    source, found, lengths = numbered(count), [], set()
    for i in range(hosts):
        batches = pipeline.evaluate(source, batch_size=share * hosts, host_index=i, host_count=hosts)
        seen = list(batches)
        assert len(seen) == len(batches)
        lengths.add(len(seen))
        for batch in seen:
            assert batch["image"].shape == (share, 2, 2, 1)
            assert (batch["index"][~batch["mask"]] >= count).all() and not batch["image"][~batch["mask"]].any()
            found += batch["index"][batch["mask"]].tolist()
            assert np.array_equal(batch["image"][batch["mask"]][:, 0, 0, 0], batch["index"][batch["mask"]])
    assert sorted(found) == list(range(count))
    assert len(lengths) == 1  # hosts that disagree would wait for each other for ever


def test_evaluation_can_be_repeated_and_stopped_early(digits):
    batches = pipeline.evaluate(digits, batch_size=50)
    assert_equal(list(batches), list(batches))
    assert next(iter(batches))["index"][0] == 0
    assert batches.examples == 360 and len(batches) == 8


def test_limit_takes_a_fixed_subset_spread_over_the_set():
    def chosen(limit):
        batches = pipeline.evaluate(numbered(200), batch_size=16, limit=limit)
        return np.concatenate([b["index"][b["mask"]] for b in batches])

    small, large = chosen(20), chosen(50)
    assert len(small) == 20 and len(large) == 50 and set(small) < set(large)
    assert (np.diff(large) > 0).all() and large[0] < 20 and large[-1] > 180
    assert len(chosen(1000)) == 200


def test_wrong_keywords_are_named(digits):
    for keywords, message in [
        ({"batch_size": 15, "host_count": 2}, "batch_size = 15: must be a multiple of 2 hosts"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 4, "host_index": 1}, "host_index = 1"),
        ({"batch_size": 4, "on_bad_image": "ignore"}, "data.on_bad_image = 'ignore'"),
        ({"batch_size": 4, "workers": -2}, "data.workers = -2: must be between 0 and 8 a core, or -1"),
        ({"batch_size": 4, "threads": 0}, "data.threads = 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline.train(digits, seed=0, **keywords)
        with pytest.raises(ValueError, match=message):
            pipeline.evaluate(digits, **keywords)
    with pytest.raises(ValueError, match="limit = 0"):
        pipeline.evaluate(digits, batch_size=4, limit=0)
    with pytest.raises(ValueError, match="examples = 0"):
        pipeline.train(splits.Subset(digits, np.arange(0)), batch_size=4, seed=0)


def test_a_label_out_of_range_floats_and_unequal_shapes_are_named():
    source = numbered(8)
    source.num_classes = 3
    with pytest.raises(ValueError, match=r"label of numbers\[3\] = 3: must be in \[0, 3\)"):
        list(pipeline.evaluate(source, batch_size=8))

    source = numbered(8)
    source.images = source.images / 255  # which would be rounded to nothing in a batch of uint8
    with pytest.raises(ValueError, match=r"type of the image numbers\[\d\] = 'float64': must be uint8"):
        taken(pipeline.train(source, batch_size=8, seed=0), 1)
    with pytest.raises(ValueError, match=r"type of the image numbers\[0\] = 'float64': must be uint8"):
        pipeline.evaluate(source, batch_size=8)

    class Uneven(list):
        num_classes, channels = 2, 1

    uneven = Uneven({"image": np.zeros((2, 2 + i % 2, 1), np.uint8), "label": 0} for i in range(8))
    with pytest.raises(ValueError, match="shapes in a batch .* add a transform that crops or resizes"):
        taken(pipeline.train(uneven, batch_size=8, seed=0), 1)
    with pytest.raises(ValueError, match=r"shape of example 1 = \(2, 3, 1\)"):
        list(pipeline.evaluate(uneven, batch_size=8))


def encoded(root):
    """A source of four PNG files."""
    for name in "ab":
        (root / name).mkdir()
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return folder.FolderSource(root, ["a", "b"])


@pytest.mark.parametrize(
    "cores, examples, expected",
    [
        (1, None, (0, 2)),
        (4, None, (0, 4)),
        (8, None, (2, 2)),
        (96, None, (16, 2)),
        (96, 200, (0, 4)),
        (16, 9999, (4, 2)),
    ],
)
def test_who_decodes_is_chosen_by_cores_and_length(tmp_path, monkeypatch, cores, examples, expected):
    monkeypatch.setattr(pipeline, "cores", lambda: cores)
    reading = pipeline.choose(encoded(tmp_path), pipeline.AUTOMATIC, 2, examples)
    assert (reading.workers, reading.threads) == expected
    assert "encoded images" in str(reading) and str(reading).startswith("reading data in ")


def test_images_in_memory_never_go_to_processes(digits, monkeypatch):
    monkeypatch.setattr(pipeline, "cores", lambda: 96)
    for source in (digits, data.build("synthetic").train, numbered(9)):
        batches = pipeline.train(source, batch_size=4, seed=0, workers=pipeline.AUTOMATIC)
        assert str(batches.reading) == "reading data in 2 threads (nothing to decode)"
        evaluation = pipeline.evaluate(source, batch_size=4, workers=pipeline.AUTOMATIC)
        assert evaluation.reading == batches.reading
    assert pipeline.choose(digits, 3, 2) == pipeline.Reading(3, 2, "as given")


def test_the_choice_changes_no_batch(tmp_path, monkeypatch):
    source, keywords = encoded(tmp_path), {"transforms": host.build(["random_resized_crop(6)", "flip"])}
    monkeypatch.setattr(pipeline, "cores", lambda: 4)
    chosen = pipeline.train(source, batch_size=3, seed=0, workers=pipeline.AUTOMATIC, **keywords)
    assert chosen.reading.threads == 4
    assert_equal(taken(chosen, 9), taken(pipeline.train(source, batch_size=3, seed=0, threads=1, **keywords), 9))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_of_files(tmp_path):
    source = encoded(tmp_path)
    keywords = {"batch_size": 3, "seed": 5, "transforms": host.build(["random_resized_crop(6)", "flip"])}
    assert_equal(taken(pipeline.train(source, workers=2, **keywords), 9), taken(pipeline.train(source, **keywords), 9))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(digits):
    keywords = {"batch_size": 24, "seed": 5, "transforms": TRANSFORMS}
    expected = taken(pipeline.train(digits, **keywords), 9)
    restarted = pipeline.train(digits, workers=2, **keywords)
    restarted.set_state({"step": 3})
    assert_equal(taken(restarted, 6), expected[3:])
    assert restarted.get_state() == {"step": 9}
    assert_equal(
        list(pipeline.evaluate(digits, batch_size=100, workers=2)), list(pipeline.evaluate(digits, batch_size=100))
    )
