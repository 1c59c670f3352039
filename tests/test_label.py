"""Promise: pseudo-labels are the classifier's own answers, with their probabilities, in a file that training reads."""

import jax
import numpy as np
import pytest

import robust_vit as rv
from robust_vit import commands
from robust_vit.data import sources, writing
from robust_vit.models.weights import converted

CLASSES, COUNT = 4, 21


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of converted weights: a tiny ViT for 8x8 images of one channel."""
    folder = tmp_path_factory.mktemp("weights")
    fields = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=CLASSES)
    module = rv.models.build("vit", pooling="mean", initializer="lecun", **fields)
    converted.save(folder, "vit", module, rv.models.init(module, jax.random.key(3)))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images without labels, in a file of their own."""
    path = tmp_path_factory.mktemp("images") / "generated.npz"
    np.savez(path, image=np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8))
    return path


def run(*flags):
    return commands.main(["robust-vit", "label", "--batch_size=16", *flags])


@pytest.fixture(scope="module")
def written(weights, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "labelled.npz"
    assert run(f"--data=npz:{images}", f"--converted={weights}", f"--out={out}") == out
    return out


def test_labels_and_confidences_are_the_classifiers(written, weights, images):
    with np.load(written) as file:
        found = dict(file)
    assert {name: (array.dtype.name, len(array)) for name, array in found.items()} == {
        "image": ("uint8", COUNT),
        "label": ("int32", COUNT),
        "confidence": ("float32", COUNT),
    }
    given = np.load(images)["image"]
    np.testing.assert_array_equal(found["image"], given)
    probabilities = np.asarray(jax.nn.softmax(rv.load(weights)(given)))
    np.testing.assert_array_equal(found["label"], probabilities.argmax(-1))
    np.testing.assert_allclose(found["confidence"], probabilities.max(-1), atol=1e-6)
    assert len(set(found["label"])) > 1


def test_the_file_is_an_extra_source(written):
    extra = rv.data.Extra("npz", {"path": str(written)}, ratio=0.5)
    assert len(extra.source) == COUNT and extra.source[3]["label"] == np.load(written)["label"][3]
    assert list(written.parent.iterdir()) == [written]  # and nothing of its making is left


def test_a_data_set_with_labels_is_labelled_anew_and_told_about(weights, tmp_path, capsys):
    out = tmp_path / "digits.npz"
    run("--data=digits", "--split=test", f"--converted={weights}", f"--out={out}")
    dataset = rv.data.build("digits")
    np.testing.assert_array_equal(np.load(out)["image"], dataset.arrays("test")[0])
    assert np.load(out)["label"].max() < CLASSES
    said = capsys.readouterr().out
    assert said.startswith("360 images of ") and "median confidence 0." in said and f"written to {out}" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data="], "data = '': must be given: the images, --data=npz:/file.npz"),
        (["--split=tset"], "split = 'tset': must be one of .*did you mean 'test'"),
        (["--converted="], "workdir = None: must be given, a run folder, or --converted, but not both"),
        (["--workdir=runs/x"], "workdir = 'runs/x': must be given, a run folder, or --converted, but not both"),
        (["--checkpoint=latest"], "converted = .*: must be given without --checkpoint and --weights"),
        (["--out="], "out = '': must be given: the file, --out=FILE.npz"),
        (["--out=labels.csv"], "out = 'labels.csv': must be given: the file, --out=FILE.npz"),
        (["--out={written}"], "out = .*: must be a file that is not there yet"),
        (["--batch_size=0"], "batch_size = 0: must be at least 1"),
        (["--batch_size=15"], "batch_size = 15: must be divisible by the number of devices, 8"),
        (["--devices=99"], "parallel.devices = 99: only 8"),
        (["--converted=/nowhere"], "path = '/nowhere': must be a run folder, a folder of converted weights"),
        (
            ["--data=npz:/nowhere.npz"],
            "data.options.path = '/nowhere.npz': must be a folder with train.npz, ..., or one",
        ),
        (["--data=npz:{images}", "--split=test"], "data.options.path = .*: a file has no test split"),
        (["--data=synthetic"], r"data: image shape = \(32, 32, 3\): must be \(8, 8, 1\), as the classifier takes them"),
        (["--dat=x"], "Unknown command line flag 'dat'"),
    ],
)
def test_what_cannot_be_labelled_is_one_line(flags, message, weights, images, written, tmp_path):
    usual = [f"--data=npz:{images}", f"--converted={weights}", f"--out={tmp_path / 'new.npz'}"]
    with pytest.raises(SystemExit, match=f"error: {message}") as stop:
        run(*usual, *(flag.format(images=images, written=written) for flag in flags))
    assert "\n" not in str(stop.value) and not list(tmp_path.iterdir())


def test_a_kill_while_writing_leaves_nothing(tmp_path):
    def parts():
        yield np.zeros((2, 4, 4, 1), np.uint8), {"label": np.zeros(2, int)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.write_npz(tmp_path / "a.npz", 4, parts())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_images_are_counted(tmp_path, count):
    parts = [(np.zeros((2, 4, 4, 1), np.uint8), {"label": np.zeros(2, int)})] if count else []
    with pytest.raises(ValueError, match=f"images written = {2 if count else 0}: must be {count}"):
        writing.write_npz(tmp_path / "a.npz", count, iter(parts))
    assert not list(tmp_path.iterdir())


def test_parts_are_joined_in_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    parts = [(images[:3], {"label": np.arange(3)}), (images[3:], {"label": np.arange(3, 7)})]
    writing.write_npz(tmp_path / "a.npz", 7, iter(parts))
    source = sources.build("npz", "train", path=str(tmp_path / "a.npz"))
    np.testing.assert_array_equal([source[i]["image"] for i in range(7)], images)
    assert source.labels.tolist() == list(range(7))
