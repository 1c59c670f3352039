"""Every stage from printer to camera against Pillow, SciPy or its formula; and images that have to survive them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from robust_vit import attacks, physical
from robust_vit.attacks import expectation
from robust_vit.physical import geometry, light


def smooth(shape, seed=0):
    """A smooth image of random blobs, with edges, in [0,1]."""
    rng = np.random.default_rng(seed)
    image = scipy.ndimage.gaussian_filter(rng.normal(size=shape), (2, 2, 0))
    image = (image - image.min()) / np.ptp(image)
    image[3:9, 4:11] = rng.uniform(size=shape[-1])
    return image


def keys(count=1, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def pillow(image, **keywords):
    """What Pillow's libjpeg makes of an image of bytes."""
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(squeezed).save(file := io.BytesIO(), "JPEG", **keywords)
    found = np.asarray(Image.open(file))
    return found.reshape(image.shape).astype(int)


@pytest.mark.parametrize("channels, subsampled", [(1, False), (3, False), (3, True)])
def test_jpeg_is_pillows(channels, subsampled):
    """To a level or two, by which libjpeg's integer transform differs from the exact one, but for a few blocks of which
    it rounds a coefficient the other way.
    """
    image = np.round(255 * smooth((48, 32, channels))).astype(np.uint8)
    for quality in (10, 50, 75, 95):
        found = physical.jpeg(quality, subsampled)(None, jnp.asarray(image[None] / 255.0, jnp.float32))
        found = np.round(np.asarray(found)[0] * 255).astype(int)
        apart = np.abs(found - pillow(image, quality=quality, subsampling=2 if subsampled else 0))
        assert np.mean(apart > 2) < 0.12 and apart.mean() < (0.3 if channels == 1 else 0.6)
        blocky = np.abs(found - image.astype(int)).mean()
        assert quality > 50 or blocky > 3 * apart.mean()


def test_jpeg_of_odd_sizes_and_its_gradient():
    image = jnp.asarray(smooth((13, 11, 3))[None], jnp.float32)
    stage = physical.jpeg(60)
    assert stage(None, image).shape == image.shape
    weights = jax.random.normal(jax.random.key(0), image.shape)
    slope = jax.grad(lambda x: (stage(None, x) * weights).sum())(image)
    assert np.linalg.norm(slope - weights) < 1.2 * np.linalg.norm(weights) and np.abs(slope).max() > 0.1
    flat = jax.grad(lambda x: physical.jpeg(100, False)(None, x).sum())(jnp.full((1, 8, 8, 3), 0.4))
    np.testing.assert_allclose(flat, 1.0, atol=1e-4)  # straight through: the sum of what goes in


def test_blur_is_scipys():
    images = np.stack([smooth((12, 15, 3), seed) for seed in (0, 1)])
    found = light.blurred(jnp.asarray(images, jnp.float32), jnp.array([0.8, 1.5]), 1.5)
    for image, deviation, got in zip(images, (0.8, 1.5), found):
        expected = scipy.ndimage.gaussian_filter(image, (deviation, deviation, 0), radius=6)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_perspective_is_pillows():
    image = smooth((20, 26, 3))
    corners = np.array([[0, 0], [0, 26], [20, 0], [20, 26]], np.float32)
    moved = corners + np.array([[1, 2], [-1, 1], [2, 0.5], [-1.5, -2]], np.float32)
    matrix = geometry.homography(jnp.asarray(corners), jnp.asarray(moved))
    there = np.c_[corners, np.ones(4)] @ np.asarray(matrix).T
    np.testing.assert_allclose(there[:, :2] / there[:, 2:], moved, rtol=1e-3, atol=1e-3)
    m = np.asarray(matrix, np.float64)
    swapped = m[[1, 0, 2]][:, [1, 0, 2]]  # Pillow counts (x, y)
    for channel in range(3):
        picture = Image.fromarray(image[..., channel].astype(np.float32), "F")
        data = tuple(swapped.ravel()[:8])
        expected = np.asarray(picture.transform((26, 20), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR))
        found = geometry.warped(jnp.asarray(image[..., channel : channel + 1], jnp.float32), matrix)[..., 0]
        np.testing.assert_allclose(found[3:-3, 3:-3], expected[3:-3, 3:-3], atol=2e-3)


def test_the_lens_is_scipys():
    image, k = smooth((15, 12, 1)), 0.1
    rows, columns = np.meshgrid(np.arange(15) - 7, np.arange(12) - 5.5, indexing="ij")
    factor = 1 + k * (rows**2 + columns**2) / (7**2 + 5.5**2)
    expected = scipy.ndimage.map_coordinates(
        image[..., 0], [rows * factor + 7, columns * factor + 5.5], order=1, mode="nearest"
    )
    found = geometry.distorted(jnp.asarray(image, jnp.float32), jnp.float32(k))[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_another_resolution_is_pillows():
    image = smooth((24, 32, 1)).astype(np.float32)
    small = Image.fromarray(image[..., 0], "F").resize((16, 12), Image.Resampling.BILINEAR)
    found = geometry.scaled(jnp.asarray(image)[None], 0.5)[0, ..., 0]
    np.testing.assert_allclose(found, np.asarray(small), atol=1e-4)
    back = np.asarray(small.resize((32, 24), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(physical.resampled(0.5)(None, jnp.asarray(image)[None])[0, ..., 0], back, atol=1e-4)


def test_noise_is_as_strong_as_said_and_the_printers_range_is_kept():
    images = jnp.concatenate([jnp.full((1, 40, 40, 3), value) for value in (0.2, 0.8)])
    noisy = physical.sensor(0.1, 0.05)(keys(2), images) - images
    expected = np.sqrt(0.1**2 * np.array([0.2, 0.8]) + 0.05**2)
    np.testing.assert_allclose(noisy.std((1, 2, 3)), expected, rtol=0.05)
    grain = physical.ink(0.1)(keys(2, 1), images) - images
    np.testing.assert_allclose(grain.std((1, 2, 3)), 0.1 * np.array([0.9, 0.6]), rtol=0.05)
    printed = physical.gamut(0.1, 0.9, 0.5)(keys(), jnp.array([[[[1.0, 0, 0], [0, 0, 0], [1, 1, 1]]]]))
    np.testing.assert_allclose(printed[0, 0, 1:], [[0.1] * 3, [0.9] * 3], atol=1e-6)
    assert 0.1 < printed[0, 0, 0, 1] < printed[0, 0, 0, 0] < 0.9


def test_light_falls_from_one_side():
    images = jnp.full((200, 5, 5, 1), 0.5)
    seen = physical.lighting(0.2, 0.1, 0.3)(keys(200), images)
    middle = np.asarray(seen[:, 2, 2, 0])
    assert 0.28 < middle.min() < 0.36 and 0.64 < middle.max() < 0.72
    tilt = np.abs(np.asarray(seen[:, 0, 2, 0] - seen[:, 4, 2, 0]))
    assert 0.2 < tilt.max() <= 0.3 and tilt.min() < 0.02


@pytest.mark.slow
def test_the_chain_is_each_examples_own_and_passes_gradients():
    images = jnp.stack([jnp.asarray(smooth((16, 16, 3), seed), jnp.float32) for seed in range(3)])
    see = jax.jit(physical.camera())
    seen = see(keys(3), images)
    assert seen.min() >= 0 and seen.max() <= 1 and np.abs(seen - images).mean() > 0.01
    np.testing.assert_array_equal(
        see(keys(3)[jnp.array([2, 0, 1])], images[jnp.array([2, 0, 1])]), seen[jnp.array([2, 0, 1])]
    )
    slope = jax.jit(jax.grad(lambda x: physical.camera()(keys(3), x).sum()))(images)
    assert np.all(np.isfinite(slope)) and np.mean(slope != 0) > 0.5


@pytest.mark.slow
def test_expectation_over_the_chain_survives_it_better_than_none():
    """What EOT makes is fooling under the camera more often than what plain PGD makes in the same ball."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(192, 4)) / 8, jnp.float32)
    fine = jnp.asarray(np.where(np.indices((8, 8)).sum(0) % 2, 1.0, -1.0)[..., None] * np.ones(3), jnp.float32)
    # Besides its weights, it looks at the finest pattern there is, which the camera does not see.
    logits_fn = jax.tree_util.Partial(
        lambda w, f, x: (
            (x.reshape(len(x), -1) - 0.5) @ w
            + 3 * jnp.tanh(jnp.einsum("bhwc,hwc->b", x - 0.5, f) / 2)[:, None] * jnp.array([[1.0, -1.0, 1.0, -1.0]])
        ),
        weights,
        fine,
    )
    see = physical.chain(physical.blur(1.5), physical.lighting(0.2, 0.05, 0.1))
    images = jnp.stack(
        [
            jnp.asarray(scipy.ndimage.gaussian_filter(rng.uniform(size=(8, 8, 3)), (1, 1, 0)), jnp.float32)
            for _ in range(24)
        ]
    )
    seen = expectation.under(logits_fn, see)
    labels = jnp.argmax(jax.jit(expectation.over(logits_fn, see, keys(24, 3), 16))(images), -1)
    given = dict(epsilon=0.08, steps=8, keep="last")
    plain = jax.jit(attacks.pgd(**given))(0, logits_fn, images, labels)
    robust = jax.jit(attacks.pgd(**given, stochastic=True, eot=8))(0, seen, images, labels)

    def fooled(x):
        return np.mean([np.asarray(jnp.argmax(logits_fn(see(keys(24, 50 + n), x)), -1) != labels) for n in range(8)])

    assert fooled(robust) > fooled(plain) + 0.02


def test_a_sheet_is_as_large_as_said(tmp_path):
    pixels, mask = smooth((10, 10, 3)), np.ones((10, 10), bool)
    mask[0] = False
    page = physical.sheet(pixels, tmp_path / "sheet.png", mask=mask, width_mm=50, dpi=100)
    assert page.shape == (1169, 827, 3)
    with Image.open(tmp_path / "sheet.png") as image:
        np.testing.assert_allclose(image.info["dpi"], 100, atol=0.1)
        assert image.size == (827, 1169)
    margin, side = round(10 / 25.4 * 100), round(50 / 25.4 * 100)
    copy = page[margin : margin + side, margin : margin + side]
    np.testing.assert_array_equal(copy[: side // 10 - 1], 255)
    np.testing.assert_allclose(copy[side // 2, side // 2] / 255, pixels[5, 5], atol=0.01)
    assert np.all(page[:margin] == 255) and np.all(page[:, :margin] == 255)
    physical.sheet(pixels, tmp_path / "sheet.pdf", width_mm=50, dpi=50)
    assert (tmp_path / "sheet.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: physical.sheet(np.ones((2, 2, 3)), width_mm=0), "width_mm = 0: must be above 0"),
        (
            lambda: physical.sheet(np.ones((2, 2, 3)), width_mm=300),
            "width_mm = 300: must be above 0, and the copy within",
        ),
        (lambda: physical.sheet(np.ones((2, 2, 3)), width_mm=50, paper="a5"), "paper = 'a5'"),
        (lambda: physical.jpeg(0), "quality = 0"),
        (lambda: physical.jpeg(50)(None, jnp.zeros((1, 8, 8, 2))), "channels = 2: must be 1 or 3"),
        (lambda: physical.blur(-1.0), "most = -1.0"),
        (lambda: physical.perspective(0.9), "most = 0.9"),
        (lambda: physical.resampled(0.0), "share = 0.0"),
        (lambda: physical.gamut(0.5, 0.4), "black = 0.5"),
        (lambda: physical.chain(), "stages = 0"),
    ],
)
def test_what_does_not_fit_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
