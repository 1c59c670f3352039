"""Rotation, shift and zoom against a float64 oracle and against Pillow."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples
from PIL import Image

from robust_vit.data import host
from robust_vit.data.transforms import affine


def smooth(height, width, channels=1, seed=0):
    """A picture without edges, in uint8 [H,W,C]."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), dtype=np.uint8)
    image = Image.fromarray(small[..., 0] if channels == 1 else small)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


def bilinear(image, matrix, fill):
    """float64: for each pixel centre, where it comes from, weighted by the four pixels around; outside is `fill`."""
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[:height, :width] + 0.5
    u, v = a * x + b * y + c, d * x + e * y + f
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = u - 0.5, v - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    total = np.zeros(image.shape)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - i - (v - top)) * np.abs(1 - j - (u - left))
        rows, columns = np.clip(top + i, 0, height - 1), np.clip(left + j, 0, width - 1)
        total += weight[..., None] * image[rows, columns].astype(np.float64)
    return np.where(inside[..., None], total, fill)


class Fixed:
    """Stands for a generator: `uniform` gives the given numbers in their order."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high, size=None):
        value = self.values.pop(0)
        assert np.all(low <= np.asarray(value)) and np.all(np.asarray(value) <= high)
        return value


@examples(40)
@hypothesis.given(
    st.integers(4, 20),
    st.integers(4, 20),
    st.sampled_from([1, 3]),
    st.floats(-40, 40),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    st.floats(0.7, 1.4),
    st.integers(0, 99),
)
def test_affine_is_the_bilinear_map(height, width, channels, angle, shift, scale, seed):
    image = smooth(height, width, channels, seed)
    transform = host.RandomAffine(40.0, 2.0, (0.7, 1.4), fill=77)
    out = transform(image, Fixed(angle, scale, np.array(shift)))
    matrix = affine.inverse_map((width, height), angle, shift, scale)
    expected = bilinear(image, matrix, 77)
    assert out.shape == image.shape and out.dtype == np.uint8
    wrong = np.abs(out - expected) > 1.01  # Pillow rounds down where it interpolates twice
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[:height, :width] + 0.5
    u, v = a * x + b * y + c, d * x + e * y + f
    border = np.minimum(np.abs(u * (width - u)), np.abs(v * (height - v))) < 1e-6  # in or out by rounding alone
    assert not (wrong.any(-1) & ~border).any()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("angle", [-31.0, 0.0, 2.0, 90.0, 123.4])
def test_rotation_is_pillows(interpolation, angle):
    for shape in ((8, 8, 1), (9, 14, 3)):
        image = smooth(*shape)
        out = host.Rotation(180.0, interpolation, fill=9)(image, Fixed(angle))
        pil = Image.fromarray(image[..., 0] if shape[-1] == 1 else image)
        fill = 9 if shape[-1] == 1 else (9, 9, 9)
        resample = affine.WARPS[interpolation]
        reference = np.asarray(pil.rotate(angle, resample, fillcolor=fill)).reshape(shape)
        assert np.abs(out.astype(int) - reference).max() <= (0 if angle % 90 else 1)


def test_a_shift_by_half_a_pixel_is_the_mean_of_neighbours():
    image = (np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)[..., None]
    out = host.RandomAffine(translate=0.5)(image, Fixed(0.0, 1.0, np.array([0.5, 0.0])))
    expected = (image[:, 1:].astype(int) + image[:, :-1]) / 2
    assert np.abs(out[:, 1:] - expected).max() <= 0.5


def test_angles_shifts_and_zooms_are_uniform_over_their_ranges():
    image = np.zeros((33, 33, 1), np.uint8)
    image[15:18, 15:18] = image[15:18, 23:26] = 255  # of which the centre of mass is followed

    def centres(transform, count=200):
        outs = [transform(image, np.random.default_rng(i))[..., 0].astype(float) for i in range(count)]
        y, x = np.mgrid[:33, :33]
        return np.array([((out * x).sum() / out.sum(), (out * y).sum() / out.sum()) for out in outs])

    moved = centres(host.RandomAffine(translate=3.0)) - (20, 16)
    for axis in range(2):
        assert -3.05 < moved[:, axis].min() < -2.8 and 2.8 < moved[:, axis].max() < 3.05
        assert abs(moved[:, axis].mean()) < 0.3 and abs(moved[:, axis].std() - 3 / 3**0.5) < 0.2
    turned = centres(host.Rotation(20.0))
    angles = np.degrees(np.arcsin(np.clip((16 - turned[:, 1]) / 4, -1, 1)))
    assert -20.6 < angles.min() < -18.5 and 18.5 < angles.max() < 20.6 and abs(angles.mean()) < 2
    zoomed = centres(host.RandomAffine(scale=(0.5, 1.5)))[:, 0] - 16
    assert 1.9 < zoomed.min() < 2.2 and 5.7 < zoomed.max() < 6.15


def test_pictures_and_arrays_are_moved_alike_and_nothing_is_left_as_it_is():
    image = smooth(12, 10, 3)
    for transform in (host.Rotation(15.0), host.RandomAffine(10.0, 1.5, (0.9, 1.1), "bicubic", 200)):
        out = transform(image, np.random.default_rng(5))
        assert np.array_equal(out, np.asarray(transform(Image.fromarray(image), np.random.default_rng(5))))
        assert not np.array_equal(out, transform(image, np.random.default_rng(6)))
    assert np.array_equal(host.RandomAffine()(image, np.random.default_rng(0)), image)
    assert np.array_equal(host.Rotation(0.0)(image, np.random.default_rng(0)), image)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rotation(-1)", r"rotation degrees = -1: must be in \[0, 180\]"),
        ("rotation(15, fill=256)", "rotation fill = 256: must be a grey level"),
        ("rotation(15, 'lanczos')", "rotation interpolation = 'lanczos': must be one of bicubic, bilinear, nearest"),
        ("rotation('15')", "a value of the wrong kind"),
        ("random_affine(translate=-1)", "random_affine translate = -1: must be >= 0, in pixels"),
        ("random_affine(scale=(0, 1))", r"random_affine scale = \(0, 1\): must be 0 < low <= high"),
        ("random_affine(scale=1.1)", "random_affine scale = 1.1: must be 0 < low <= high"),
        ("random_affine(degrees=1e999)", r"random_affine degrees = inf: must be in \[0, 180\]"),
    ],
)
def test_what_cannot_be_done_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        host.build([wrong])


def test_a_shift_out_of_the_image_is_refused():
    with pytest.raises(ValueError, match="random_affine translate = 9: must be below the image's 8 pixels"):
        host.RandomAffine(translate=9)(smooth(8, 8), np.random.default_rng(0))
