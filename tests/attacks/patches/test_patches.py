"""Patches fit where they are put, do better than noise of the same place, and stay what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_apply, tiny_weights

from robust_vit import attacks, physical
from robust_vit.attacks import patches
from robust_vit.attacks.patches import losses, masks
from robust_vit.attacks.patches.placing import STILL, Patch, Placement, placed, random_patch

SHAPE = (10, 10, 3)


@pytest.fixture(scope="module")
def data():
    """A model, images, and the labels it gives them."""
    logits_fn = jax.tree_util.Partial(tiny_apply, tiny_weights(0, 300, 4))
    images = jnp.clip(0.5 + 0.15 * jax.random.normal(jax.random.key(1), (48, *SHAPE)), 0, 1)
    return logits_fn, images, jnp.argmax(logits_fn(images), -1)


def keys(seed, count=48):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("place", ["random", *(pytest.param(p, marks=pytest.mark.slow) for p in ("center", (0, 6)))])
def test_a_patch_changes_what_it_covers_and_more_than_noise_there(place, data):
    logits_fn, images, labels = data
    attack = attacks.patch(epsilon=1.0, size=4, place=place, steps=10)
    found = jax.jit(attack)(keys(2), logits_fn, images, labels)
    changed = np.any(np.asarray(found != images), -1)
    rows, columns = changed.any(2), changed.any(1)
    for line in (*rows, *columns):
        places = np.flatnonzero(line)
        assert places.size == 0 or places[-1] - places[0] < 4
    noise = jnp.where(jnp.asarray(changed)[..., None], jax.random.uniform(jax.random.key(5), images.shape), images)
    fooled, by_noise = (np.mean(np.argmax(logits_fn(x), -1) != labels) for x in (found, noise))
    assert fooled > by_noise + 0.2
    if place == "random":
        assert len({(r.argmax(), c.argmax()) for r, c in zip(rows, columns)}) > 5


def test_any_shape_of_mask(data):
    logits_fn, images, labels = data
    cross = np.zeros((10, 10), bool)
    cross[4:6, :], cross[:, 4:6] = True, True
    attack = attacks.patch(norm="l2", epsilon=2.0, mask=cross, steps=3)
    found = jax.jit(attack)(keys(2), logits_fn, images, labels)
    np.testing.assert_array_equal(found[:, ~cross], images[:, ~cross])
    assert np.any(found != images) and masks.circle(5).sum() == 21 and masks.rectangle(2, 3).shape == (2, 3)


def test_a_patch_is_placed_as_said():
    images = jnp.zeros((1, 6, 6, 1))
    patch = Patch(jnp.arange(1, 5).reshape(2, 2, 1) / 4.0, np.array([[True, True], [True, False]]))
    still = placed(keys(0, 1), patch, images, STILL)[0, ..., 0]
    expected = np.zeros((6, 6))
    expected[2:4, 2:4] = [[0.25, 0.5], [0.75, 0.0]]
    np.testing.assert_allclose(still, expected, atol=1e-6)
    turned = placed(keys(0, 1), patch, images, STILL._replace(scale=(2.0, 2.0)))[0, ..., 0]
    assert abs(turned.sum() - 4 * expected.sum()) < 1.0
    white = Patch(jnp.ones((3, 3, 1)), masks.rectangle(3))
    somewhere = placed(keys(1, 64), white, jnp.zeros((64, 9, 9, 1)), Placement(brightness=0.0))
    inside = somewhere.sum((1, 2, 3))
    assert np.all(np.abs(inside - 9) < 0.6)  # nothing of it is lost at an edge
    centres = np.einsum("bhwc,h->b", somewhere, np.arange(9)) / inside
    assert centres.min() < 2.5 and centres.max() > 5.5


@pytest.mark.parametrize("target", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_a_universal_patch_works_on_images_it_has_not_seen(target, data):
    logits_fn, images, labels = data
    given = dict(size=5, target=target, steps=60, batch_size=8, learning_rate=0.1)
    found = patches.universal_patch(logits_fn, images[:24], labels[:24], **given)
    assert found.pixels.shape == (5, 5, 3) and found.pixels.min() >= 0 and found.pixels.max() <= 1
    noise = random_patch(jax.random.key(9), found.mask, 3)

    def rate(patch):
        seen = jnp.argmax(logits_fn(placed(keys(7, 24), patch, images[24:])), -1)
        return np.mean(seen == target) if target is not None else np.mean(seen != labels[24:])

    assert rate(found) > rate(noise) + (0.08 if target is None else 0.15)


def test_total_variation_and_printability_in_numpy():
    pixels = np.random.default_rng(0).uniform(size=(4, 5, 3))
    down, right = pixels[1:, :-1] - pixels[:-1, :-1], pixels[:-1, 1:] - pixels[:-1, :-1]
    variation = np.mean(np.sqrt((down**2 + right**2).sum(-1)))
    np.testing.assert_allclose(losses.total_variation(jnp.asarray(pixels)), variation, rtol=1e-4)
    apart = np.linalg.norm(pixels.reshape(-1, 1, 3) - losses.PRINTABLE[None], axis=-1) / np.sqrt(3)
    expected = np.mean(np.prod(apart, -1))
    np.testing.assert_allclose(losses.non_printability(jnp.asarray(pixels, jnp.float32)), expected, rtol=1e-3)
    printable = jnp.asarray(losses.PRINTABLE[:6].reshape(2, 3, 3), jnp.float32)
    assert losses.non_printability(printable) < 1e-6 * expected + 1e-9


def detector(weights, images):
    """How sure it is of an object in each of 2 x 2 windows, [B,4]: a linear template."""
    windows = images.reshape(len(images), 2, 5, 2, 5, 3).swapaxes(2, 3).reshape(len(images), 4, -1)
    return jax.nn.sigmoid(1.5 * jnp.einsum("bnd,d->bn", windows - 0.5, weights))


def test_a_patch_hides_an_object_from_a_detector():
    template = np.sign(np.random.default_rng(0).normal(size=75)).astype(np.float32)
    images = np.full((8, *SHAPE), 0.5, np.float32)
    images[:, 5:, :5] += 0.05 * template.reshape(5, 5, 3)
    model = jax.tree_util.Partial(detector, jnp.asarray(template))
    labels = jnp.zeros(8, jnp.int32)
    hiding = patches.objectness(lambda scores: scores)
    mask = np.zeros((10, 10), bool)
    mask[6:9, 1:4] = True
    given = dict(mask=mask, placement=STILL, objective=hiding, steps=40, batch_size=4, learning_rate=0.1)
    found = patches.universal_patch(model, jnp.asarray(images), labels, **given)
    before, after = (hiding(model(x), labels) for x in (images, placed(keys(0, 8), found, jnp.asarray(images), STILL)))
    assert before.min() > 0.99 and after.max() < 0.6


@pytest.mark.slow
def test_stickers_turn_photographs_into_the_target_through_the_camera(data):
    logits_fn, images, labels = data
    photos = images[:1] + 0.03 * jax.random.normal(jax.random.key(4), (6, *SHAPE))
    photos = jnp.clip(photos, 0, 1)
    target = int((labels[0] + 1) % 4)
    mask = np.zeros((10, 10), bool)
    mask[1:4, 1:9] = mask[6:9, 1:9] = True
    see = physical.chain(physical.ink(0.05), physical.lighting(0.2, 0.05, 0.1))
    change = patches.sticker(logits_fn, photos, target, mask, transform=see, steps=40)
    np.testing.assert_array_equal(change[~mask], 0.0)
    seen = see(keys(8, 6), jnp.clip(photos + change[None], 0, 1))
    assert np.mean(np.argmax(logits_fn(seen), -1) == target) >= 5 / 6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, x, y: attacks.patch(epsilon=1.0, size=11)(0, f, x, y), r"mask = \(11, 11\): must be \[h,w\] within"),
        (lambda f, x, y: attacks.patch(epsilon=1.0, size=4, place=(7, 0))(0, f, x, y), r"place = \(7, 0\): must be"),
        (lambda f, x, y: attacks.patch(epsilon=1.0, size=0), "size = 0"),
        (lambda f, x, y: attacks.patch(epsilon=1.0, size=2, mask=np.ones((2, 2))), "size = 2: must be left out"),
        (lambda f, x, y: attacks.patch(epsilon=1.0, place="middle"), "place = 'middle'"),
        (lambda f, x, y: patches.universal_patch(f, x, y, size=12), r"mask = \(12, 12\)"),
        (lambda f, x, y: patches.universal_patch(f, x, y, size=3, target=9), r"target = 9: must be in \[0, 4\)"),
        (lambda f, x, y: patches.universal_patch(f, x, y), "size = None: must be given"),
        (lambda f, x, y: patches.sticker(f, x, 1, np.ones((3, 3))), r"mask = \(3, 3\): must be \(10, 10\)"),
    ],
)
def test_what_does_not_fit_is_one_line(call, message, data):
    with pytest.raises(ValueError, match=message) as caught:
        call(*data)
    assert "\n" not in str(caught.value)
