"""The sheet of augmentations draws every row, with what training would see in it."""

import re

import numpy as np
import pytest
from PIL import Image

from robust_vit import config as config_lib
from robust_vit import data, preview
from robust_vit.analysis import augmentations
from robust_vit.data import host, mixing

DIGITS = ["robust-vit preview", "--config=digits"]
TWO = "--config.data.train_transforms=('random_crop(8, padding=1)', 'random_affine(10, translate=0.5)')"


def shown(figure):
    """The names of the rows, the images and the captions of a sheet of eight columns."""
    grid = np.array(figure.axes).reshape(-1, augmentations.SHOWN)
    names = [line[0].get_ylabel().replace("\n", " ").replace("( ", "(") for line in grid]
    images = [[axes.images[0].get_array() for axes in line] for line in grid]
    return names, images, [[axes.get_xlabel() for axes in line] for line in grid]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """What two transforms, both kinds of mixing and erasing make of eight digits."""
    out = tmp_path_factory.mktemp("sheet") / "deep" / "a.png"
    on = ["mixup=0.8", "cutmix=1.0", "erase=1.0", "erase_fill=black"]
    figure = preview.main([*DIGITS, TWO, *[f"--config.augmentation.{one}" for one in on], f"--out={out}"])
    return out, shown(figure)


def test_every_step_of_the_configuration_has_its_row(drawn):
    out, (names, images, _) = drawn
    assert names[0] == "as stored" and len(names) == 5
    assert names[1].startswith("+ random_crop") and names[2].startswith("+ random_affine")
    assert names[3] == "+ mixup 0.8 / cutmix 1" and names[4] == "+ erase 1"
    assert Image.open(out).size[0] > 1000
    for before, after in zip(images, images[1:]):
        assert np.mean([not np.array_equal(a, b) for a, b in zip(before, after)]) > 0.4


def test_rows_hold_what_training_would_see(drawn):
    _, (_, images, captions) = drawn
    dataset = data.build("digits")
    specifications = ("random_crop(8, padding=1)", "random_affine(10, translate=0.5)")
    (crop,) = host.build(specifications[:1])
    index = np.linspace(0, len(dataset.train) - 1, augmentations.SHOWN).astype(int)
    for i, place in enumerate(index):
        pixels = dataset.train[int(place)]["image"]
        np.testing.assert_allclose(np.squeeze(images[0][i]), pixels[..., 0] / 255, atol=1e-6)
        cut = crop(pixels, data.loading.generator(0, int(place)))
        np.testing.assert_allclose(np.squeeze(images[1][i]), cut[..., 0] / 255, atol=1e-6)
    assert captions[0] == [str(dataset.train[int(place)]["label"]) for place in index]
    shares = [sum(float(line.split()[0]) for line in words.splitlines()) for words in captions[3] if "\n" in words]
    assert len(shares) > 4 and np.allclose(shares, 1, atol=0.011)


def test_the_last_row_is_what_the_step_does_at_once(drawn):
    _, (_, images, _) = drawn
    examples = augmentations.Examples(data.build("digits"))
    transforms = host.build(("random_crop(8, padding=1)", "random_affine(10, translate=0.5)"))
    given = augmentations.as_batch(examples.transformed(transforms))
    both, _ = examples.augmented(given, mixup=0.8, cutmix=1.0, erase=1.0, erase_fill="black")
    np.testing.assert_allclose(np.stack(images[-1]), both[..., 0], atol=1e-6)


@pytest.mark.slow
def test_all_shows_every_augmentation_that_the_images_allow():
    colour = data.build("synthetic", size=16, examples=40)
    rows = {row.name: row for row in augmentations.every(colour)}
    known = {spec.partition("(")[0].partition("-")[0] for spec in rows}
    assert known >= {name.replace("rand_augment", "rand") for name in set(host.names()) - {"rgb"}}
    assert {f"erase, {fill}" for fill in mixing.FILLS} - set(rows) == {"erase, black"} and "cutout" in rows
    assert all(len(row.images) == len(row.captions) == augmentations.SHOWN for row in rows.values())
    plain = np.array(rows["untouched"].images)
    for name, row in rows.items():
        assert name in ("untouched", "resize_centre_crop(16)") or not np.array_equal(plain, row.images), name
    figure = augmentations.sheet(list(rows.values()))
    names, _, _ = shown(figure)
    assert [name.replace(" ", "") for name in names] == [name.replace(" ", "") for name in rows]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.train_transforms=('random_crop(9)',)", "train split of digits: random_crop size = 9: must be"),
        (
            "--config.data.train_transforms=('color_jitter(0.4, 0.4, 0.4)',)",
            "train split of digits: color_jitter saturation = 0.4: must be 0 for images of 1 channel",
        ),
        ("--config.data.train_transforms=('rand-m9-k2',)", "data.train_transforms: .*section = 'k': must be one of"),
        ("--config.augmentation.erase=2.0", r"augmentation.erase = 2.0: must be in \[0, 1\]"),
        ("--al", "'--al': is no flag|Unknown"),
    ],
)
def test_what_cannot_be_applied_is_one_line(flag, message):
    with pytest.raises(SystemExit) as stop:
        preview.main([*DIGITS, flag])
    assert str(stop.value).startswith("error: ") and "\n" not in str(stop.value)
    assert re.search(message, str(stop.value)), stop.value


def test_the_default_configuration_shows_its_images():
    dataset = data.build("digits")
    (row,) = augmentations.configured(dataset, (), config_lib.plain(config_lib.base().augmentation))
    assert row.name == "as stored" and len(row.images) == augmentations.SHOWN
