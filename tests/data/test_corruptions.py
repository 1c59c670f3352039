"""Every corruption keeps the kind of its image, grows with severity, and is the formula where there is one."""

import numpy as np
import pytest
from scipy import ndimage

from robust_vit.data import corruptions


def image(size=32, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size, channels)), (3, 3, 0))
    return np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def distance(a, b):
    return np.abs(a.astype(float) - b.astype(float)).mean()


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_severity_counts_and_the_kind_stays(name):
    clean = image()
    found = [corruptions.corrupt(clean, name, level, np.random.default_rng(1)) for level in corruptions.SEVERITIES]
    assert all(one.shape == clean.shape and one.dtype == np.uint8 for one in found)
    apart = [distance(one, clean) for one in found]
    assert apart[4] > 1.0 and (apart[4] > apart[0] or name in ("elastic_transform", "saturate"))
    np.testing.assert_array_equal(corruptions.corrupt(clean, name, 3, np.random.default_rng(1)), found[2])
    grey = corruptions.corrupt(image(8, 1), name, 5, np.random.default_rng(2))
    assert grey.shape == (8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_large_images_take_the_constants_of_imagenet(name):
    clean = image(96)
    found = corruptions.corrupt(clean, name, 5, np.random.default_rng(1))
    assert found.shape == clean.shape and distance(found, clean) > 2


def test_the_names_are_those_of_the_benchmark():
    assert len(corruptions.NAMES) == 15 and len(corruptions.EXTRA) == 4
    assert set(corruptions.NAMES) | set(corruptions.EXTRA) == set(corruptions.CORRUPTIONS)


def test_noise_is_as_strong_as_said():
    flat, rng = np.full((64, 64, 3), 128, np.uint8), np.random.default_rng(0)
    x = 128 / 255
    for name, expected in [("gaussian_noise", 0.1), ("shot_noise", np.sqrt(x / 50)), ("speckle_noise", 0.2 * x)]:
        found = corruptions.corrupt(flat, name, 5, rng).astype(float) / 255
        assert found.std() == pytest.approx(expected, rel=0.05)
    struck = corruptions.corrupt(flat, "impulse_noise", 5, rng)
    assert np.mean(struck != 128) == pytest.approx(0.07, abs=0.01) and set(np.unique(struck)) == {0, 128, 255}


def test_colours_are_changed_as_hsv_is():
    import colorsys

    clean, rng = image(8), np.random.default_rng(0)
    for name, change in [
        ("brightness", lambda h, s, v: (h, s, min(1.0, v + 0.15))),
        ("saturate", lambda h, s, v: (h, min(1.0, s * 1.5), v)),
    ]:
        found = corruptions.corrupt(clean, name, 3, rng)
        for pixel, got in zip(clean.reshape(-1, 3), found.reshape(-1, 3)):
            expected = np.array(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel / 255))))
            np.testing.assert_allclose(got, 255 * expected, atol=0.51)


def test_what_does_not_fit_is_one_line():
    rng = np.random.default_rng(0)
    for arguments, message in [
        ((image(), "fogg", 1), "corruption = 'fogg': .*did you mean 'fog'"),
        ((image(), "fog", 6), "severity = 6: must be a whole number from 1 to 5"),
        ((image().astype(float), "fog", 1), r"image = 'float64\[32, 32, 3\]'"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            corruptions.corrupt(*arguments, rng)
        assert "\n" not in str(caught.value)
