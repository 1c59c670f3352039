"""Promise: splits that do not fit are named before anything compiles; a split that changed has another digest."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from robust_vit import data
from robust_vit.data import arrays, catalogue, splits

COUNTS = {"train": 8, "val": 3, "test": 4}
SIZE = ["resize_centre_crop(8, crop_fraction=1.0)"]


def picture(path, seed, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path):
    """Three parts of two classes."""
    root = tmp_path / "set"
    for part, count in COUNTS.items():
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(root / part / name / f"{i}.png", 1000 * label + 10 * i + count)
    return root


def folder(root, **options):
    return data.build("folder", path=str(root), **options)


def npz_set(root, **parts):
    root.mkdir(exist_ok=True)
    for name, (images, labels) in parts.items():
        np.savez(root / f"{name}.npz", image=images, label=np.asarray(labels))
    return data.build("npz", path=str(root))


def images(count, channels=3, size=4):
    return np.arange(count * size * size * channels, dtype=np.uint8).reshape(count, size, size, channels)


@pytest.mark.parametrize("name, options", [("digits", {}), ("synthetic", {"examples": 30, "size": 8, "classes": 3})])
def test_what_ships_fits_and_has_names(name, options):
    dataset = data.build(name, **options)
    dataset.check()
    assert len(dataset.class_names) == dataset.num_classes == len(set(dataset.class_names))
    digests = dataset.digests()
    assert list(digests) == list(splits.SPLITS) and len(set(digests.values())) == 3
    assert data.build(name, **options).digests() == digests


def test_digests_of_the_digits_are_the_same_everywhere():
    """Written down: another machine, NumPy or scikit-learn must find the same."""
    assert {split: digest[:16] for split, digest in data.build("digits").digests().items()} == {
        "train": "b74a038e9748163c",
        "validation": "b3f8b05b76f3872a",
        "test": "1e14a5189bf96255",
    }


def test_a_fitting_folder_passes_and_is_described(tree):
    dataset = folder(tree)
    dataset.check()
    assert dataset.class_names == ("cat", "dog") == catalogue.class_names(dataset.test)
    described = json.loads(json.dumps(dataset.description()))
    assert described["name"] == "folder" and described["options"] == {"path": str(tree)}
    assert data.build("folder", path=tree).description() == described
    assert {k: (v["examples"], v["origin"]) for k, v in described["splits"].items()} == {
        "train": (16, "part 'train'"),
        "validation": (6, "part 'val'"),
        "test": (8, "part 'test'"),
    }
    assert {k: v["digest"] for k, v in described["splits"].items()} == dataset.digests()


def test_a_missing_split_is_named_with_the_expected_tree(tree):
    shutil.rmtree(tree / "test")
    shutil.rmtree(tree / "val")
    with pytest.raises(
        ValueError, match=r"^test split of folder: data.options.test_split = None: .*there are train;"
    ) as e:
        folder(tree).check()
    assert "should hold <class>/*.jpg in train/ and in test/ or val/" in str(e.value) and "\n" not in str(e.value)
    folder(tree, test_fraction=0.25).check()


def test_classes_that_train_does_not_have_are_named(tree):
    (tree / "test/dog").rename(tree / "test/wolf")
    with pytest.raises(ValueError, match=r"^test split of folder: class folders of .*\['wolf'\]"):
        folder(tree).check()


def test_a_class_without_training_images_is_named(tree):
    (tree / "train/owl").mkdir()
    with pytest.raises(ValueError, match=r"^train split of folder: class folders of .*\['owl'\].*at least one image"):
        folder(tree).check()


def test_images_of_unequal_shape_are_named_with_the_remedy(tree):
    picture(tree / "test/dog/3.png", 5, size=(9, 8))
    with pytest.raises(ValueError, match=r"^test split of folder: image shape = \(8, 9, 3\): .*evaluation_transforms"):
        folder(tree).check()
    folder(tree, evaluation_transforms=SIZE).check()
    picture(tree / "train/dog/7.png", 5, size=(9, 8))
    with pytest.raises(ValueError, match="^train split of folder: image shape in training.*random_resized_crop"):
        folder(tree, evaluation_transforms=SIZE).check()
    folder(tree, evaluation_transforms=SIZE, train_transforms=["random_resized_crop(6)"]).check()


def test_a_split_that_cannot_be_read_is_named(tree):
    for file in (tree / "val/cat").iterdir():
        file.write_bytes(b"no image")
    for file in (tree / "val/dog").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="^validation split of folder: no good image among the first"):
        folder(tree).check()
    folder(tree).check("train", "test")


@pytest.mark.parametrize(
    "test, message",
    [
        ((images(0), np.zeros(0, int)), r"^test split of npz: examples = 0: must be at least 1"),
        ((images(4, channels=1), [0, 1, 3, 0]), r"image shape = \(4, 4, 1\): must be \(4, 4, 3\), as in train"),
        ((images(4), [0, 1, 2, 7]), r"labels = \[0, 7\]: must be in \[0, 4\), the classes of train"),
        ((images(4), [0, 1, 2, 2]), r"^test split of npz: classes = \[2\]: must be classes that train has examples of"),
    ],
)
def test_a_test_split_that_does_not_fit_is_named(tmp_path, test, message):
    dataset = npz_set(tmp_path, train=(images(6), [0, 1, 3, 0, 1, 3]), test=test)
    with pytest.raises(ValueError, match=message):
        dataset.check()
    dataset.check("train", "validation")


def test_a_rare_class_may_be_carved_out_of_train_whole(tmp_path):
    """A class of one image that goes to validation is no reason to refuse the set."""
    labels = np.r_[np.zeros(18, int), 1, 2]
    dataset = npz_set(tmp_path, train=(images(20), labels), test=(images(3), [0, 0, 0]))
    for count in range(1, 18):
        options = {"path": str(tmp_path), "validation_examples": count}
        data.build("npz", **options).check()
    dataset.check()


def test_labels_that_are_missing_are_named():
    """The test parts of many public sets have -1 for every label."""

    dataset = data.build("digits")
    dataset.__dict__["test"] = arrays.ArraySource(dataset.test.source.images[:4], np.full(4, -1), 10, "unlabelled")
    with pytest.raises(ValueError, match=r"^test split of digits: labels = \[-1, -1\]: .*a split without labels"):
        dataset.check("test")


def changed(before, after):
    return [split for split in splits.SPLITS if before[split] != after[split]]


def test_moving_test_images_into_train_changes_both_digests(tree):
    before = folder(tree).digests()
    for i in range(2):
        (tree / f"test/cat/{i}.png").rename(tree / f"train/cat/moved{i}.png")
    assert changed(before, folder(tree).digests()) == ["train", "test"]


@pytest.mark.parametrize("change", ["add", "remove", "rename", "relabel", "resize"])
def test_every_change_of_a_folder_changes_its_digest(tree, change):
    before = folder(tree).digests()
    file = tree / "test/cat/1.png"
    if change == "add":
        shutil.copy(file, tree / "test/cat/9.png")
    elif change == "remove":
        file.unlink()
    elif change == "rename":
        file.rename(tree / "test/cat/1b.png")
    elif change == "relabel":
        file.rename(tree / "test/dog/11.png")
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    assert changed(before, folder(tree).digests()) == ["test"]


def test_a_folder_digest_knows_neither_place_nor_order_nor_time(tree, tmp_path, monkeypatch):
    before = folder(tree).digests()
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy)
    for file in copy.rglob("*.png"):
        os.utime(file, (1, 1))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: iter(sorted(scandir(path), key=lambda e: e.name, reverse=True)))
    assert folder(copy).digests() == before


def test_an_npz_digest_knows_its_contents(tmp_path):
    parts = {"train": (images(8), np.arange(8) % 2), "test": (images(4), np.arange(4) % 2)}
    before = npz_set(tmp_path, **parts).digests()
    assert npz_set(tmp_path, **parts).digests() == before  # written again, at another time
    parts["test"][0][0, 0, 0, 0] += 1
    assert changed(before, npz_set(tmp_path, **parts).digests()) == ["test"]


def test_carved_parts_have_digests_of_their_own(tmp_path):
    npz_set(tmp_path, train=(images(20), np.arange(20) % 2), test=(images(4), np.arange(4) % 2))
    few, more = (data.build("npz", path=str(tmp_path), validation_examples=n).digests() for n in (4, 5))
    assert changed(few, more) == ["train", "validation"]


def test_a_source_without_a_digest_is_known_by_its_labels():
    class Plain(list):
        num_classes = 2

    plain = Plain({"image": np.zeros((2, 2, 1), np.uint8), "label": 0} for _ in range(4))
    longer = Plain([*plain, plain[0]])
    assert catalogue.digest(plain) != catalogue.digest(longer) == catalogue.digest(Plain(longer))
    longer.labels = np.zeros(5, int)
    assert catalogue.digest(longer) != catalogue.digest(Plain(longer))
