"""The digits split is what the docstring says, and carving never touches test."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples

from robust_vit.data import arrays, catalogue, sources, splits


def numbered(count, name="numbers"):
    """A source whose images say their index."""
    images = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 2, 1)
    return arrays.ArraySource(images, np.arange(count) % 3, 3, name)


def contents(source):
    return [int(source[i]["image"].reshape(-1).view(np.uint16)[0]) for i in range(len(source))]


def test_digits_parts_are_the_whole_set_disjoint_and_stratified():
    parts = {split: sources.build("digits", split) for split in splits.SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1257, "validation": 180, "test": 360}
    together = np.concatenate([part.indices for part in parts.values()])
    assert np.array_equal(np.sort(together), np.arange(1797))
    labels = parts["train"].source.labels
    whole = np.bincount(labels) / 1797
    for part in parts.values():
        counts = np.bincount(labels[part.indices], minlength=10)
        assert np.abs(counts - whole * len(part)).max() < 1.5


def test_digits_split_is_written_in_stone():
    """Results are comparable only while these stay as they are."""
    test, validation = (sources.build("digits", split) for split in ("test", "validation"))
    assert test.indices[:8].tolist() == [2, 4, 31, 32, 33, 37, 41, 42]
    assert validation.indices[:8].tolist() == [5, 6, 8, 18, 27, 36, 62, 66]
    assert splits.hashed(np.arange(2)).tolist() == [16294208416658607535, 7960286522194355700]  # SplitMix64, seed 0


def test_digits_are_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch, train = load_digits(), sources.build("digits", "train")
    for i in (0, 700, 1256):
        example, original = train[i], train.indices[i]
        assert np.allclose(example["image"][..., 0], bunch.images[original] * 255 / 16, atol=0.5)
        assert example["label"] == bunch.target[original]
    assert example["image"].dtype == np.uint8 and example["image"].shape == (8, 8, 1)


@examples(30)
@hypothesis.given(count=st.integers(2, 400), fraction=st.floats(0.01, 0.99))
@hypothesis.example(count=2, fraction=0.75)  # rounds to all of them
def test_carved_parts_are_the_training_part_and_disjoint(count, fraction):
    train, validation = (splits.carve(numbered(count), part, fraction, None) for part in ("train", "validation"))
    assert sorted(contents(train) + contents(validation)) == list(range(count))
    assert len(validation) == min(count - 1, max(1, round(count * fraction))) > 0 < len(train)


@pytest.mark.parametrize(
    "stored, expected",
    [
        (("train", "test"), {"train": ("train", 90), "validation": ("train", 10), "test": ("test", 100)}),
        (("train", "val"), {"train": ("train", 90), "validation": ("train", 10), "test": ("val", 100)}),
        (("train", "validation", "test"), {s: (s, 100) for s in splits.SPLITS}),
    ],
)
def test_parts_that_are_stored_decide_what_is_carved(stored, expected):
    for split, (name, size) in expected.items():
        source = splits.open_split(split, stored, lambda part: numbered(100, part), validation_examples=10)
        assert (catalogue.identify(source, 0).split("[")[0], len(source)) == (name, size)


def test_a_named_part_overrules_and_test_examples_never_select():
    stored = ("test", "train", "validation")
    options = {"test_split": "validation", "validation_examples": 7}
    opened = {
        split: splits.open_split(split, stored, lambda part: numbered(50, part), **options) for split in splits.SPLITS
    }
    assert catalogue.identify(opened["test"], 0).startswith("validation")
    assert catalogue.identify(opened["validation"], 0).startswith("train") and len(opened["validation"]) == 7
    assert not set(contents(opened["validation"])) & set(contents(opened["train"]))


def test_errors_name_the_field_and_what_is_stored():
    def load(part):
        return numbered(5)

    with pytest.raises(ValueError, match="data.options.test_split = None: must be stored; there are train"):
        splits.open_split("test", ("train",), load)
    with pytest.raises(ValueError, match="data.options.test_split = 'tset'.*did you mean 'test'"):
        splits.open_split("test", ("train", "test"), load, test_split="tset")
    with pytest.raises(ValueError, match="data.options.validation_examples = 5: must be between 1 and 4"):
        splits.open_split("train", ("train", "test"), load, validation_examples=5)
    with pytest.raises(ValueError, match="split = 'dev'"):
        splits.open_split("dev", ("train",), load)


@examples(30)
@hypothesis.given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_largest_remainder_shares_out_everything_fairly(counts, data):
    counts = np.array(counts)
    total = data.draw(st.integers(0, int(counts.sum())))
    share = splits.apportion(counts, total)
    assert share.sum() == total
    assert (np.abs(share - counts * total / counts.sum()) < 1).all()
    assert (share <= counts).all()
