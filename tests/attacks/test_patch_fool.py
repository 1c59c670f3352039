"""Patch-Fool changes one patch of a transformer's grid, the one that is looked at most, and draws attention to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks, models
from robust_vit.attacks import losses
from robust_vit.models.parts import taps


@pytest.fixture(scope="module")
def vit():
    """A tiny transformer whose class token looks at some patches more than at others, 12 images, its labels."""
    sizes = dict(depth=2, width=16, heads=2, patch_size=2, image_size=8, channels=1, num_classes=4)
    module = models.build("vit", **sizes, initializer="lecun")
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    variables = jax.tree.map(lambda w: 2 * w if w.ndim > 1 else w, variables)
    logits_fn = models.logits_fn(module, variables)
    images = jax.random.uniform(jax.random.key(1), (12, 8, 8, 1))
    return logits_fn, images, jnp.argmax(jax.jit(lambda f, x: f(x))(logits_fn, images), -1)


def run(vit, **keywords):
    logits_fn, images, labels = vit
    attack = attacks.patch_fool(**{"epsilon": 1.0, "steps": 12, **keywords})
    return jax.jit(attack)(jax.random.split(jax.random.key(2), 12), logits_fn, images, labels)


def attention(logits_fn, images):
    """The mean log attention to each of the 16 patches in the second block, [B,16]."""
    maps = []
    with taps.handled(lambda module, point, value: maps.append(value) or value, ("attention_probabilities",)):
        logits_fn(images)
    return jnp.log(maps[1].mean(1)).mean(1)[:, 1:]


@pytest.mark.slow
def test_it_raises_the_loss_and_the_attention_of_one_patch_and_leaves_the_rest(vit):
    logits_fn, images, labels = vit
    looked = jax.jit(lambda x: (losses.cross_entropy(logits_fn(x), labels), attention(logits_fn, x)))
    loss, before = looked(images)
    paid = {}
    for weight in (0.0, 1.0):
        found = run(vit, weight=weight, patch_size=2)
        changed = np.any(np.asarray(found != images).reshape(12, 4, 2, 4, 2), (2, 4)).reshape(12, 16)
        assert np.all(changed.sum(1) == 1)
        np.testing.assert_array_equal(changed.argmax(1), np.asarray(_most(logits_fn, images)))
        after, seen = looked(found)
        assert np.mean(after > loss) >= (0.9 if weight == 0 else 0.5)
        paid[weight] = np.mean(np.asarray(seen)[changed])
    assert paid[1.0] > paid[0.0] and paid[1.0] > np.mean(np.asarray(before)[changed])


@jax.jit
def _most(logits_fn, images):
    maps = []
    with taps.handled(lambda module, point, value: maps.append(value) or value, ("attention_probabilities",)):
        logits_fn(images)
    return jnp.argmax(maps[-1].mean((1, 2))[:, 1:], -1)


@pytest.mark.slow
def test_more_patches_by_gradient_and_a_small_ball(vit):
    _, images, _ = vit
    found = run(vit, patches=3, choose="gradient", weight=0.0, patch_size=2, epsilon=0.1)
    patches = np.any(np.asarray(found != images).reshape(12, 4, 2, 4, 2), (2, 4))
    assert np.all(patches.sum((1, 2)) == 3) and np.abs(found - images).max() <= 0.1 + 1e-6


def test_models_without_maps_and_bad_keywords_are_one_line(vit, problem):
    keys, logits_fn, images, labels = problem()
    for given, message in [
        ({}, "model = 'without maps': must be a transformer"),
        ({"patch_size": 4, "choose": "random", "weight": 0.0}, "patch_size = 4: must be a divisor of the image"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            attacks.patch_fool(epsilon=1.0, steps=1, **given)(keys, logits_fn, images, labels)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="patches = 17: must be at most 16"):
        run(vit, patches=17)
    for given in ({"choose": "attentoin"}, {"patches": 0}, {"weight": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(given))):
            attacks.patch_fool(**given)
