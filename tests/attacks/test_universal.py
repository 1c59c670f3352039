"""One change for a whole data set, and what people type besides: eot, least-likely targets, aliases as functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_apply, tiny_weights

from robust_vit import attacks
from robust_vit.attacks import expectation, norms

SHAPE = (6, 5, 3)


@pytest.fixture(scope="module")
def data():
    """A model, and images that it agrees with the labels of; the first half to make a change on, the rest to try it."""
    logits_fn = jax.tree_util.Partial(tiny_apply, tiny_weights(0, 6 * 5 * 3, 3))
    images = 0.5 + 0.15 * jax.random.normal(jax.random.key(1), (60, *SHAPE))
    return logits_fn, (images := images.clip(0, 1)), jnp.argmax(logits_fn(images), -1)


@pytest.mark.parametrize(
    "norm, epsilon",
    [("linf", 0.1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("l2", 1.0), ("l1", 6.0)))],
)
def test_a_universal_change_fools_images_it_was_not_made_on_more_than_noise(norm, epsilon, data):
    logits_fn, images, labels = data
    given = dict(norm=norm, epsilon=epsilon, epochs=5, batch_size=8)
    change, fooled = attacks.universal(logits_fn, images[:30], labels[:30], **given)
    assert change.shape == SHAPE and fooled.shape == (30,)
    half = jnp.full_like(change, 0.5)[None]
    assert norms.get(norm).distance(half + change[None], half)[0] <= epsilon * (1 + 1e-5)
    told = jnp.argmax(logits_fn(jnp.clip(images + change[None], 0, 1)), -1) != labels
    np.testing.assert_array_equal(told[:30], fooled)
    noise = norms.get(norm).start(jax.random.split(jax.random.key(2), 1), half, epsilon) - half
    random = jnp.argmax(logits_fn(jnp.clip(images + noise, 0, 1)), -1) != labels
    assert told[30:].mean() > random[30:].mean() + 0.2


def test_what_does_not_fit_is_one_line(data):
    logits_fn, images, labels = data
    for change, message in [
        ({"epsilon": 8}, "epsilon = 8: must be at most 1"),
        ({"epsilon": 0.1, "epochs": 0}, "epochs = 0"),
        ({"epsilon": 0.1, "labels": labels[:4]}, r"labels = 'int32\[4\]'"),
        ({"epsilon": 0.1, "images": 255 * images}, "images: values from .*divide by 255"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            attacks.universal(logits_fn, **{"images": images, "labels": labels, **change})
        assert "\n" not in str(caught.value)


def test_aliases_are_functions_too():
    assert attacks.bim(epsilon=0.1, steps=2) and attacks.options("bim")["random_start"] is False
    with pytest.raises(AttributeError, match="no attribute 'pdg'; did you mean 'pgd'"):
        attacks.pdg  # noqa: B018


def test_the_least_likely_class_is_reached(problem):
    keys, logits_fn, images, labels = problem()
    least = jnp.argmin(logits_fn(images), -1)
    attack = attacks.build("llc", epsilon=0.5, steps=20)
    found = jax.jit(attack)(keys, logits_fn, images, labels)
    np.testing.assert_array_equal(jnp.argmax(logits_fn(found), -1), least)
    with pytest.raises(ValueError, match="targeted = 'least': must be True, False or 'least_likely'"):
        attacks.fgsm(epsilon=0.1, targeted="least")


def noisy(keys, images):
    """Moves the image by normal noise that drowns a single gradient's direction."""
    return images + 1.0 * norms.draw(keys, images, jax.random.normal)


@pytest.fixture(scope="module")
def robust_to_noise():
    """A model whose gradient swings with the noise, images, labels, and how often a point is right under the noise."""
    weights = tiny_weights(3, 90, 4)
    logits_fn = jax.tree_util.Partial(lambda w, x: 3 * tiny_apply(w, x), weights)
    images = jnp.clip(0.5 + 0.1 * jax.random.normal(jax.random.key(1), (16, *SHAPE)), 0, 1)
    keys = jax.random.split(jax.random.key(5), 16)
    mean = jax.jit(expectation.over(logits_fn, noisy, keys, 64))
    return logits_fn, images, jnp.argmax(mean(images), -1), mean


def test_eot_finds_what_lasts_under_the_transformation_better_than_one_draw(robust_to_noise):
    logits_fn, images, labels, mean = robust_to_noise
    seen = expectation.under(logits_fn, noisy)

    def remaining(eot):
        attack = attacks.pgd(epsilon=0.1, steps=4, step_size=0.05, keep="last", stochastic=True, eot=eot)
        found = jax.jit(attack)(3, seen, images, labels)
        return jax.nn.softmax(mean(found))[jnp.arange(16), labels].mean()

    assert remaining(16) < remaining(1) - 0.02


def test_eot_is_the_mean_of_gradients_and_the_fixed_average_serves_any_attack(robust_to_noise):
    logits_fn, images, labels, _ = robust_to_noise
    with pytest.raises(ValueError, match="eot = 3: must be 1 without stochastic"):
        attacks.pgd(epsilon=0.1, eot=3)
    keys = jax.random.split(jax.random.key(9), 16)
    fixed = expectation.over(logits_fn, noisy, keys, 3)
    draws = [jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n) for n in range(3)]
    expected = jnp.log(jnp.mean(jnp.stack([jax.nn.softmax(logits_fn(noisy(k, images))) for k in draws]), 0))
    np.testing.assert_allclose(fixed(images), expected, rtol=1e-4, atol=1e-5)
    adversarial = jax.jit(attacks.fgsm(epsilon=0.1))(0, fixed, images, labels)
    assert jnp.abs(adversarial - images).max() <= 0.1 + 1e-6
