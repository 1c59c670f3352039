"""Promise: what a file shows is what the model sees: scale, transparency, orientation, palettes, numbers as images."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from robust_vit import data
from robust_vit.data import decoding, host, sources


def picture(height=12, width=16, seed=0):
    """A smooth colour picture, uint8 [H,W,3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(file, channels=3, **options):
    return host.as_array(decoding.decode(file, channels, **options), channels)


LEVELS = np.linspace(0, 65535, 12 * 16).round().astype(np.uint16).reshape(12, 16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_levels(form, channels):
    expected = np.round(LEVELS / 257).astype(np.uint8)[..., None]
    found = decoded(encoded(Image.fromarray(LEVELS), form), channels)
    assert len(np.unique(found)) > 150
    assert np.array_equal(found, np.repeat(expected, channels, -1))


def test_a_transparent_level_of_sixteen_bits_shows_the_background():
    levels = LEVELS.copy()
    levels[2:5] = 1000
    file = encoded(Image.fromarray(levels), transparency=1000)
    for background, value in decoding.BACKGROUNDS.items():
        found = decoded(file, 1, background=background)[..., 0]
        assert (found[2:5] == value).all() and found[8, 3] == round(LEVELS[8, 3] / 257)


@pytest.mark.parametrize("values", [np.full((3, 3), 70000, np.int32), np.full((3, 3), 0.5, np.float32)])
def test_numbers_of_unknown_scale_are_bad_images(values):
    with pytest.raises(decoding.BadImage, match="must be 16 bits|whose scale the file does not say"):
        decoding.decode(encoded(Image.fromarray(values), "TIFF"))


def transparent(mode):
    """(image of a mode with transparency, its colours [H,W,3], its opacity [H,W] in 0..1)."""
    pixels, alpha = picture(), np.linspace(0, 255, 12 * 16).round().astype(np.uint8).reshape(12, 16)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    if mode == "LA":
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        return rgba.convert("LA"), np.repeat(grey[..., None], 3, -1), alpha / 255
    if mode == "P":  # one colour of the palette is transparent
        image = Image.fromarray(pixels).quantize(8)
        image.info["transparency"] = 3
        return image, np.asarray(image.convert("RGB")), (np.asarray(image) != 3) * 1.0
    if mode == "RGB":  # one colour is
        image = Image.fromarray(pixels)
        image.info["transparency"] = tuple(int(c) for c in pixels[4, 4])
        return image, pixels, (pixels != pixels[4, 4]).any(-1) * 1.0
    return rgba, pixels, alpha / 255


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("mode, form", [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG")])
def test_transparent_images_are_laid_on_the_background(mode, form, background):
    image, colours, opacity = transparent(mode)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    expected = colours * opacity[..., None] + decoding.BACKGROUNDS[background] * (1 - opacity[..., None])
    file = encoded(image, form, **options)
    assert np.abs(decoded(file, background=background) - expected).max() <= 1  # a level of rounding
    grey = np.asarray(Image.fromarray(expected.round().astype(np.uint8)).convert("L"))[..., None].astype(int)
    assert np.abs(decoded(file, 1, background=background) - grey).max() <= 1


@pytest.mark.parametrize(
    "mode, form", [("1", "PNG"), ("L", "PNG"), ("P", "GIF"), ("RGB", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF")]
)
def test_opaque_images_are_pillows_conversion(mode, form):
    file = encoded(Image.fromarray(picture()).convert(mode), form)
    for channels, target in decoding.MODES.items():
        expected = np.asarray(Image.open(io.BytesIO(file)).convert(target)).reshape(12, 16, channels)
        assert np.array_equal(decoded(file, channels), expected)


def test_grey_photographs_among_colours_have_three_channels():
    """Whatever transform comes first: a grey JPEG is decoded late, but not as another shape."""
    grey = decoding.decode(encoded(Image.fromarray(picture()).convert("L"), "JPEG"))
    for transform in (host.RandomCrop(8), host.Flip(1.0), host.RandomResizedCrop(8), host.ColorJitter(0.1, 0.1, 0.1)):
        image = host.as_array(transform(grey.copy(), np.random.default_rng(0)), 3)
        assert image.shape[-1] == 3 and (image == image[..., :1]).all()
    assert (
        host.as_array(host.RandomCrop(8)(decoding.decode(turned(1, "JPEG"), 1), np.random.default_rng(0))).shape[-1]
        == 1
    )


def turned(value, form):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return encoded(Image.fromarray(picture()), form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_photographs_stand_as_their_exif_says(value, form):
    file = turned(value, form)
    reference = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))
    assert reference.shape == ((12, 16, 3) if value < 5 else (16, 12, 3))
    assert np.array_equal(decoded(file), reference)
    stored = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert np.array_equal(decoded(file, orientation=False), stored)
    crop = host.RandomResizedCrop(6)  # which decodes a JPEG no larger than it must
    found = host.as_array(crop(decoding.decode(file), np.random.default_rng(0)), 3)
    expected = host.as_array(crop(Image.fromarray(reference), np.random.default_rng(0)))
    assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_it_is():
    file = turned(6, "JPEG")
    at = file.index(b"Exif\0\0") + 6
    for broken in (b"\xff" * 12, b"MM\0*\xff\xff\xff\xff\xff\xff\xff\xff"):
        damaged = file[:at] + broken + file[at + 12 :]
        assert decoded(damaged).shape == (12, 16, 3)


def test_a_source_says_background_and_orientation(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.png").write_bytes(encoded(Image.new("RGBA", (16, 12), (9, 9, 9, 0))))
            (tmp_path / name / f"{i}.jpg").write_bytes(turned(6, "JPEG"))
    seen = {}
    for options in ({}, {"background": "black", "orientation": False}):
        dataset = data.build("folder", path=str(tmp_path), **options)
        load = data.pipeline.Loader(dataset.train, ())  # a Subset, which hands the options on
        found = [load(i, None)[0] for i in range(len(dataset.train))]
        seen[bool(options)] = ({x.shape for x in found}, {int(x[0, 0, 0]) for x in found if x.std() == 0})
    assert seen == {False: ({(12, 16, 3), (16, 12, 3)}, {255}), True: ({(12, 16, 3)}, {0})}
    with pytest.raises(ValueError, match=r"data.options.background = 'grey': must be one of black, white"):
        data.build("folder", path=str(tmp_path), background="grey").check()
    with pytest.raises(ValueError, match=r"data.options.orientation = 'yes': must be of type bool"):
        data.build("folder", path=str(tmp_path), orientation="yes")


# ------------------------------------------------------------------------------------------------ numbers as images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
STORED = {  # how a set may hold PIXELS: (array, float_max)
    "uint8": (PIXELS, None),
    "int64": (PIXELS.astype(np.int64), None),
    "float 0..1": ((PIXELS / 255).astype(np.float32), 1.0),
    "float 0..255": (PIXELS.astype(np.float64), 255.0),
}


@pytest.fixture(params=["npz", "huggingface"])
def open_with(request, tmp_path):
    """Opens the test part of a set that holds these images as numbers."""

    def write(images, **options):
        labels = np.arange(len(images)) % 2
        if request.param == "npz":
            np.savez(tmp_path / "test.npz", image=images, label=labels)
            path = tmp_path
        else:
            datasets = pytest.importorskip("datasets", reason="needs .[huggingface]")
            feature = {"image": datasets.Array3D(images.shape[1:], images.dtype.name)} if images.ndim == 4 else {}
            features = datasets.Features({**feature, "label": datasets.Value("int64")}) if feature else None
            table = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)
            path = tmp_path / "set"
            datasets.DatasetDict({"test": table}).save_to_disk(path)
        return sources.build(request.param, "test", path=str(path), **options)

    return write


@pytest.mark.parametrize("form", STORED)
def test_numbers_become_the_levels_they_mean(form, open_with):
    images, float_max = STORED[form]
    test = open_with(images, **({} if float_max is None else {"float_max": float_max}))
    for i, pixels in enumerate(PIXELS):
        assert test[i]["image"].dtype == np.uint8 and np.array_equal(test[i]["image"], pixels)


def test_floats_of_unsaid_scale_are_refused(open_with):
    with pytest.raises(ValueError, match="must be uint8, or of a scale that is said: data.options.float_max=1.0") as e:
        open_with((PIXELS / 255).astype(np.float32))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (PIXELS.astype(np.float32), {"float_max": 1.0}, r"pixels of .*\[0\] = .*must be in 0\.\.1"),
        (PIXELS.astype(np.int64) * 2, {}, r"pixels of .*\[0\] = .*must be in 0\.\.255"),
        (PIXELS.astype(np.float32) - 9, {"float_max": 255.0}, r"pixels of .*must be in 0\.\.255"),
        (np.full_like(PIXELS, np.nan, np.float32), {"float_max": 1.0}, r"= \[nan, nan\]: must be in 0\.\.1"),
        (PIXELS.astype(np.float32), {"float_max": 2.0}, r"data.options.float_max = 2.0: must be 1.0 or 255.0"),
        (PIXELS.transpose(0, 3, 1, 2).copy(), {}, r"= \((6, )?3, 5, 4\): must be .*channels last"),
    ],
)
def test_numbers_that_are_no_pixels_are_named(images, options, message, open_with):
    with pytest.raises(ValueError, match=message) as e:
        _ = open_with(images, **options)[0]
    assert "\n" not in str(e.value)


def test_ragged_rows_are_named(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs .[huggingface]")
    table = datasets.Dataset.from_dict({"image": [[[1, 2], [3]]], "label": [0]})
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"image of .*:test\[0\]: must be an array"):
        sources.build("huggingface", "test", path=str(tmp_path))
