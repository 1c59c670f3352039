"""Per-image transforms against plain NumPy, Pillow and (where installed) torchvision."""

import io
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples
from PIL import Image

from robust_vit.data import decoding, host


def picture(height, width, seed=0):
    """A smooth colour picture, so that resizing and JPEG change it little."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, form="JPEG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "form, mode",
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_becomes_uint8_of_the_channels_wanted(form, mode, channels):
    pixels = picture(20, 30)
    image = host.as_array(decoding.decode(encoded(pixels, form, mode), channels), channels)
    assert image.shape == (20, 30, channels) and image.dtype == np.uint8
    reference = np.asarray(Image.fromarray(pixels).convert("L" if channels == 1 or mode == "L" else "RGB"))
    assert np.abs(image.mean() - reference.mean()) < 6


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_file_is_a_bad_image_wherever_it_is_read(form):
    data = encoded(picture(64, 64), form)
    for transform in (host.RandomResizedCrop(8), host.ResizeCentreCrop(8), host.RandomCrop(8), host.Flip(1.0)):
        with pytest.raises(decoding.BadImage):
            host.as_array(transform(decoding.decode(data[: len(data) // 2]), rng()))
    with pytest.raises(decoding.BadImage, match="15 bytes that are no image"):
        decoding.decode(b"no image at all")


def test_flip_mirrors_arrays_and_pictures_alike():
    pixels = picture(6, 8)
    assert np.array_equal(host.Flip(1.0)(pixels, rng()), pixels[:, ::-1])
    assert np.array_equal(host.as_array(host.Flip(1.0)(Image.fromarray(pixels), rng())), pixels[:, ::-1])
    assert np.array_equal(host.Flip(0.0)(pixels, rng()), pixels)
    flips = [np.array_equal(host.Flip(0.3)(pixels, rng(i)), pixels) for i in range(300)]
    assert 0.6 < np.mean(flips) < 0.8


@examples(25)
@hypothesis.given(st.integers(4, 20), st.integers(4, 20), st.integers(0, 4), st.booleans(), st.integers(0, 99))
def test_random_crop_is_a_window_of_the_padded_image(height, width, padding, reflect, seed):
    padding = min(padding, height - 1, width - 1)
    pixels, size = picture(height, width, seed), min(height, width)
    out = host.RandomCrop(size, padding, reflect)(pixels, rng(seed))
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)), mode="reflect" if reflect else "constant")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    assert (windows == out).all((2, 3, 4)).any()


def test_the_border_of_a_random_crop_shows_its_fill():
    (crop,) = host.build(["random_crop(16, padding=4, fill=128)"])
    out = crop(np.zeros((8, 8, 3), np.uint8), rng())
    assert out.shape == (16, 16, 3) and not out[4:12, 4:12].any() and (out == 128).mean() == 3 / 4


def test_random_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="random_crop size = 9: must be at most the padded 8x8"):
        host.RandomCrop(9)(picture(8, 8), rng())


@examples(50)
@hypothesis.given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_random_resized_crop_boxes_lie_inside(height, width, seed):
    top, left, h, w = host.RandomResizedCrop(8).box(height, width, rng(seed))
    assert 0 <= top and 0 <= left and 1 <= h and 1 <= w and top + h <= height and left + w <= width


def test_random_resized_crop_covers_its_ranges():
    transform = host.RandomResizedCrop(8, scale=(0.2, 0.4), ratio=(0.5, 2.0))
    boxes = np.array([transform.box(400, 500, rng(i)) for i in range(500)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / (400 * 500), boxes[:, 3] / boxes[:, 2]
    assert 0.195 < area.min() < 0.22 and 0.38 < area.max() < 0.405
    assert 0.49 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.02
    assert abs(np.log(ratio).mean()) < 0.08  # log-uniform: wide and tall alike


def test_random_resized_crop_draws_again_what_does_not_fit():
    """The range 0.8 to 1.2 of published CIFAR-10 runs."""
    transform = host.RandomResizedCrop(32, scale=(0.8, 1.2), ratio=(0.95, 1.05))
    boxes = np.array([transform.box(32, 32, rng(i)) for i in range(300)])
    area = boxes[:, 2] * boxes[:, 3] / 32**2
    assert 0.78 < area.min() < 0.85 and area.max() == 1 and boxes[:, 2:].max() == 32


def test_reduced_jpeg_decoding_changes_the_crop_little():
    pixels = picture(480, 640)
    whole = Image.fromarray(pixels)
    jpeg = decoding.decode(encoded(pixels, quality=98))
    box = (37, 51, 301, 403)
    reduced = host.as_array(host.resized_crop(jpeg, box, 32, "bicubic")).astype(int)
    exact = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC, box=(51, 37, 454, 338))).astype(int)
    assert jpeg.size == (80, 60)  # the box has 301 rows for 32: an eighth of the picture is enough
    assert np.abs(reduced - exact).mean() < 2


def test_array_and_file_take_the_same_crop():
    pixels = picture(50, 60)
    png = decoding.decode(encoded(pixels, "PNG"))
    transform = host.RandomResizedCrop(16)
    assert np.array_equal(transform(pixels, rng(3)), host.as_array(transform(png, rng(3))))
    grey = pixels[..., :1]
    assert transform(grey, rng(3)).shape == (16, 16, 1)


@pytest.mark.parametrize("height, width", [(300, 400), (401, 333), (256, 256), (100, 700)])
def test_resize_centre_crop_is_robustbench_256_224(height, width):
    pixels = picture(height, width)
    out = host.as_array(host.ResizeCentreCrop(224, 0.875, "bilinear")(Image.fromarray(pixels)))
    h, w = (256, int(256 * width / height)) if height <= width else (int(256 * height / width), 256)
    resized = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
    top, left = int(round((h - 224) / 2.0)), int(round((w - 224) / 2.0))
    assert np.array_equal(out, resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("height, width", [(300, 401), (401, 333), (100, 703)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_centre_crop_equals_torchvision(height, width, interpolation):
    try:
        from torchvision import transforms
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        pytest.skip(f"compares with torchvision (.[peers]): {error}")
    image = Image.fromarray(picture(height, width))
    peer = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
        ]
    )
    ours = host.as_array(host.ResizeCentreCrop(224, 0.875, interpolation)(image))
    assert np.array_equal(ours, np.asarray(peer(image)))


def test_color_jitter_moves_colours_within_its_range_and_keeps_the_rest():
    pixels = picture(16, 16)
    assert np.array_equal(host.ColorJitter()(pixels, rng()), pixels)
    means = [host.ColorJitter(brightness=0.4)(pixels, rng(i)).mean() / pixels.mean() for i in range(100)]
    assert 0.55 < min(means) < 0.75 and 1.1 < max(means) < 1.45
    grey = host.ColorJitter(saturation=1.0)(pixels, rng(1))
    assert grey.shape == pixels.shape and abs(grey.mean() - pixels.mean()) < 8


def test_what_an_image_does_not_allow_is_refused():
    grey = picture(8, 8)[..., :1]
    with pytest.raises(ValueError, match="color_jitter saturation = 0.4: must be 0 for images of 1 channel"):
        host.ColorJitter(saturation=0.4)(grey, rng())
    assert host.ColorJitter(brightness=0.4)(grey, rng()).shape == grey.shape
    with pytest.raises(ValueError, match="random_crop padding = 8: must be at most 7, to be mirrored"):
        host.RandomCrop(8, 8, reflect=True)(grey, rng())
    with pytest.raises(ValueError, match="data transform = 5: must be text such as 'flip', or a function"):
        host.build([5])


def test_rgb_repeats_grey_and_keeps_colour():
    grey = picture(4, 5)[..., :1]
    assert np.array_equal(host.Rgb()(grey), np.repeat(grey, 3, -1))
    colour = picture(4, 5)
    assert host.Rgb()(colour) is colour


def test_build_reads_names_with_arguments():
    built = host.build(["flip", "random_crop(32, padding=4)", "random_resized_crop(224, scale=(0.25, 1))", host.Rgb()])
    assert built == (
        host.Flip(),
        host.RandomCrop(32, padding=4),
        host.RandomResizedCrop(224, scale=(0.25, 1)),
        host.Rgb(),
    )
    every = host.build(["rotation(5)", "random_affine", "rand-m9", "augmix", "color_jitter", "resize_centre_crop(8)"])
    assert pickle.loads(pickle.dumps(built + every)) == built + every  # to workers
    assert host.names() == sorted(host.TRANSFORMS)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("flop", "data transform = 'flop': must be one of .*did you mean 'flip'"),
        ("flip(", "must read like 'flip' or"),
        ("random_crop(32, pading=4)", "it takes size, padding, reflect, fill; did you mean 'padding'"),
        ("random_crop", "missing a required argument: 'size'"),
        ("random_crop(__import__('os'))", "must read like"),
        ("random_resized_crop(0)", "crop size = 0"),
        ("random_resized_crop(8, scale=(1, 0.5))", "scale = "),
        ("resize_centre_crop(8, interpolation='cubic')", "interpolation = 'cubic'.*did you mean 'bicubic'"),
        ("resize_centre_crop(8, crop_fraction=1.5)", "crop_fraction = 1.5"),
        ("flip(-0.1)", "flip p = -0.1: must be a probability"),
        ("random_crop(8, padding=-1)", "random_crop padding = -1: must be a whole number >= 0"),
        ("random_crop(8, padding=1, fill=256)", "random_crop fill = 256: must be a grey level of 0..255"),
        ("random_crop(8, padding=1, fill=1, reflect=True)", "random_crop fill = 1: must be left out with reflect"),
        ("random_crop(7.5)", "random_crop size = 7.5"),
        ("color_jitter(-0.4)", "color_jitter brightness = -0.4: must be >= 0"),
        ("color_jitter('much')", "data transform = .*a value of the wrong kind"),
        ("random_resized_crop(8, scale=0.5)", "random_resized_crop scale = 0.5: must be 0 < low <= high"),
        ("random_resized_crop(8, scale=(1.1, 1.2))", "must be at most 1 at its low end"),
    ],
)
def test_build_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        host.build([wrong])
    with pytest.raises(ValueError, match="must be a list"):
        host.build("flip")
