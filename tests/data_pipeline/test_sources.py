"""The registry, its errors, and the rendered shapes."""

import pickle

import numpy as np
import pytest

from robust_vit import data
from robust_vit.data import sources


def test_every_name_is_documented_by_its_error():
    with pytest.raises(ValueError, match="data.name = 'digit': must be one of digits, .*did you mean 'digits'"):
        sources.build("digit", "train")
    with pytest.raises(ValueError, match="data.options.pth: folder takes path, .*did you mean 'path'"):
        data.build("folder", pth="x")
    with pytest.raises(ValueError, match="data.options.path = None: must be given for folder"):
        data.build("folder")
    with pytest.raises(ValueError, match="data.options.path = None: must be given for folder"):
        data.sources.check_options("folder", {"path": None})  # as configurations leave a place for it
    with pytest.raises(ValueError, match="data.options.size: digits takes no options"):
        data.build("digits", size=8)
    with pytest.raises(ValueError, match="split = 'dev'"):
        sources.build("digits", "dev")
    with pytest.raises(ValueError, match="data.options.path = '/nowhere'"):
        sources.build("npz", "train", path="/nowhere")


def test_build_opens_nothing_before_it_is_asked():
    dataset = data.build("folder", path="/nowhere", train_transforms=["flip"])
    assert dataset.train_transforms == (data.host.Flip(),)
    with pytest.raises(ValueError, match="data.options.path"):
        _ = dataset.train


def test_dataset_knows_shape_and_classes_after_transforms():
    dataset = data.build("digits", evaluation_transforms=["rgb", "resize_centre_crop(16, crop_fraction=1.0)"])
    assert dataset.image_shape == (16, 16, 3)
    assert dataset.num_classes == 10
    assert dataset.split("test") is dataset.test
    with pytest.raises(ValueError, match="split"):
        dataset.split("tests")


@pytest.mark.parametrize("channels, classes", [(3, 10), (3, 36), (1, 6)])
def test_synthetic_is_repeatable_and_its_splits_differ(channels, classes):
    options = {"size": 12, "channels": channels, "classes": classes, "examples": 50, "seed": 3}
    train, again = (sources.build("synthetic", "train", **options) for _ in range(2))
    test = sources.build("synthetic", "test", **options)
    assert (len(train), len(test)) == (50, max(classes, 10))
    assert train[7]["image"].shape == (12, 12, channels) and train[7]["image"].dtype == np.uint8
    assert np.array_equal(train[7]["image"], pickle.loads(pickle.dumps(again))[7]["image"])
    assert not np.array_equal(train[7]["image"], test[7]["image"])
    assert {train[i]["label"] for i in range(50)} == set(range(classes))
    with pytest.raises(IndexError):
        train[50]


def test_synthetic_classes_can_be_told_apart():
    """A nearest-neighbour rule on blurred pixels beats chance by far, so that a training test can ask for progress."""
    train = sources.build("synthetic", "train", size=16, classes=4, channels=1, examples=400)
    test = sources.build("synthetic", "test", size=16, classes=4, channels=1, examples=400)

    def arrays(source):
        examples = [source[i] for i in range(len(source))]
        return np.stack([e["image"] for e in examples]).reshape(len(source), -1) / 255, [e["label"] for e in examples]

    (x, y), (u, v) = arrays(train), arrays(test)
    nearest = ((u[:, None] - x[None]) ** 2).sum(-1).argmin(1)
    assert np.mean(np.array(y)[nearest] == v) > 0.6


def test_synthetic_refuses_what_it_cannot_draw():
    for option, value in {"classes": 37, "channels": 2, "size": 2, "examples": 0}.items():
        with pytest.raises(ValueError, match=f"data.options.{option} = {value}"):
            sources.build("synthetic", "train", **{option: value})
