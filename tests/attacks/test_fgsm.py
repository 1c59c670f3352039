"""FGSM is one step of length epsilon, written out here in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import losses, norms


def gradient_of(logits_fn, images, labels):
    return jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())(images)


def test_is_the_sign_step(problem):
    keys, logits_fn, images, labels = problem()
    found = attacks.fgsm(epsilon=0.07)(keys, logits_fn, images, labels)
    expected = np.clip(images + 0.07 * np.sign(gradient_of(logits_fn, images, labels)), 0.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_l2_step_follows_the_gradient(problem):
    keys, logits_fn, images, labels = problem()
    found = attacks.fgsm(norm="l2", epsilon=0.5)(keys, logits_fn, images, labels)
    g = np.asarray(gradient_of(logits_fn, images, labels))
    expected = np.clip(images + 0.5 * g / np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True)), 0.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_l1_step_changes_few_pixels(problem):
    """1 % of 90 values is one pixel, and the box may cut its step short."""
    keys, logits_fn, images, labels = problem()
    found = attacks.fgsm(norm="l1", epsilon=0.3)(keys, logits_fn, images, labels)
    np.testing.assert_array_equal(jnp.count_nonzero(found != images, axis=(1, 2, 3)), 1)


def test_only_a_random_start_uses_the_keys(problem):
    keys, logits_fn, images, labels = problem()
    others = jax.random.split(jax.random.key(99), 4)
    still, drawn = attacks.fgsm(epsilon=0.1), attacks.fgsm(epsilon=0.1, step_size=0.125, random_start=True)
    first, second = (still(jax.random.clone(k), logits_fn, images, labels) for k in (keys, others))
    np.testing.assert_array_equal(first, second)
    first, second = (drawn(k, logits_fn, images, labels) for k in (keys, others))
    assert not jnp.array_equal(first, second)
    assert jnp.all(norms.get("linf").distance(first, images) <= 0.1 + 1e-6)


def test_targeted_step_lowers_the_targets_loss(problem):
    keys, logits_fn, images, labels = problem()
    wanted = (labels + 1) % 5
    found = attacks.fgsm(epsilon=0.02, targeted=True)(keys, logits_fn, images, wanted)
    before, after = (losses.cross_entropy(logits_fn(x), wanted) for x in (images, found))
    assert jnp.all(after < before)


def test_bad_epsilon_is_named():
    with pytest.raises(ValueError, match="epsilon = 4: must be at most 1 for norm linf"):
        attacks.fgsm(epsilon=4)


def test_a_ball_of_radius_zero_needs_no_step_size(problem):
    keys, logits_fn, images, labels = problem()
    np.testing.assert_array_equal(attacks.fgsm(epsilon=0.0)(keys, logits_fn, images, labels), images)
