"""Losses against hand-computed numbers, float64 NumPy, and the places where naive formulas give NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.attacks import losses

LOSSES = sorted(losses.LOSSES)


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def oracle(name, z, p):
    """The formulas in float64, a row at a time."""
    log_q, y = log_softmax(z), p.argmax(axis=-1)
    rows = np.arange(len(z))
    ranked = -np.sort(-z, axis=-1)
    other = np.array([np.delete(row, label).max() for row, label in zip(z, y, strict=True)])
    if name == "cross_entropy":
        return -(p * log_q).sum(axis=-1)
    if name == "kl":
        return np.array([sum(a * (np.log(a) - b) for a, b in zip(*row) if a > 0) for row in zip(p, log_q)])
    if name == "squared_error":
        return ((np.exp(log_q) - p) ** 2).sum(axis=-1)
    if name == "margin":
        return other - z[rows, y]
    if name == "probability_margin":
        return oracle("margin", np.exp(log_q), p)
    return -(z[rows, y] - other) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("hard", [True, False])
@examples(20)
@given(seed=st.integers(0, 2**31), classes=st.sampled_from([3, 7]), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_losses_match_float64(name, hard, seed, classes, scale):
    rng = np.random.default_rng(seed)
    z = (scale * rng.normal(size=(5, classes))).astype(np.float32)
    labels = rng.integers(classes, size=5)
    p = np.eye(classes)[labels] if hard else rng.dirichlet(np.ones(classes), size=5)
    targets = jnp.asarray(labels) if hard else jnp.asarray(p, jnp.float32)
    found = losses.get(name)(jnp.asarray(z), targets)
    assert found.shape == (5,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(name, z.astype(np.float64), p), rtol=2e-4, atol=2e-5)


def test_hand_computed_numbers():
    z = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]]))  # softmax gives these probabilities back
    label = jnp.array([0])
    np.testing.assert_allclose(losses.cross_entropy(z, label), [0.693147], rtol=1e-5)  # -log 0.5
    np.testing.assert_allclose(losses.squared_error(z, label), [0.36], rtol=1e-5)  # .25 + .09 + .01 + .01
    uniform = jnp.full((1, 4), 0.25)
    # sum 1/4 (log 1/4 - log q) = -log 4 - (log .5 + log .3 + 2 log .1) / 4
    np.testing.assert_allclose(losses.kl(z, uniform), [0.239282], rtol=1e-4)
    np.testing.assert_allclose(losses.margin(z, label), [-0.510826], rtol=1e-5)  # log 0.3 - log 0.5
    np.testing.assert_allclose(losses.dlr(z, label), [-0.317394], rtol=1e-5)  # -log(5/3) / log 5
    np.testing.assert_allclose(losses.targeted_dlr(z, label, jnp.array([1])), [-0.317394], rtol=1e-5)
    np.testing.assert_allclose(losses.targeted_dlr(z, label, jnp.array([2])), [-1.0], rtol=1e-5)


def test_cross_entropy_and_kl_have_the_same_gradient():
    z = jax.random.normal(jax.random.key(0), (4, 6))
    p = jax.nn.softmax(jax.random.normal(jax.random.key(1), (4, 6)))
    gradients = [jax.grad(lambda z, f=f: f(z, p).sum())(z) for f in (losses.cross_entropy, losses.kl)]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_kl_is_zero_and_smooth_at_equality():
    z = 5.0 * jax.random.normal(jax.random.key(0), (4, 6))
    p = jax.nn.softmax(z)
    np.testing.assert_allclose(losses.kl(z, p), 0.0, atol=1e-6)
    in_z, in_p = jax.grad(lambda z, p: losses.kl(z, p).sum(), argnums=(0, 1))(z, p)
    np.testing.assert_allclose(in_z, 0.0, atol=1e-6)
    assert jnp.all(jnp.isfinite(in_p))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_at_extremes(name):
    """Saturated, tied and one-hot rows; DLR on exact ties is finite because its numerator is 0 there."""
    z = jnp.array([[80.0, -80.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 1.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda z: losses.get(name)(z, jnp.array([0, 1, 2])).sum())(z)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"dlr"}))  # DLR needs three finite logits
def test_a_masked_class_costs_nothing(name):
    """A class that a model excludes with -inf must not turn the loss of the others into NaN."""
    z = jnp.array([[1.0, 0.5, -jnp.inf], [0.0, 2.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda z: losses.get(name)(z, jnp.array([0, 1])).sum())(z)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_judged_in_float32(name, dtype):
    z = jax.random.normal(jax.random.key(0), (4, 5)).astype(dtype)
    label = jnp.array([0, 1, 2, 3])
    found = losses.get(name)(z, label)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, losses.get(name)(z.astype(jnp.float32), label))


def test_dlr_ignores_shift_and_scale():
    z = jax.random.normal(jax.random.key(0), (4, 5))
    label = jnp.array([0, 1, 2, 3])
    np.testing.assert_allclose(losses.dlr(7.0 * z + 3.0, label), losses.dlr(z, label), rtol=1e-4)


@pytest.mark.parametrize("name, classes", [("margin", 1), ("dlr", 2)])
def test_too_few_classes(name, classes):
    with pytest.raises(ValueError, match=f"needs at least {classes + 1} classes, the model has {classes}"):
        losses.get(name)(jnp.zeros((2, classes)), jnp.zeros(2, jnp.int32))


def test_targeted_dlr_needs_four_classes():
    with pytest.raises(ValueError, match="needs at least 4 classes, the model has 3"):
        losses.targeted_dlr(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32))


def test_distributions_and_labels():
    labels = jnp.array([2, 0])
    p = losses.as_distribution(labels, 3)
    np.testing.assert_array_equal(p, [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(losses.as_labels(p), labels)
    half = losses.as_distribution(p.astype(jnp.bfloat16), 3)
    assert half.dtype == jnp.float32
    for wrong in (jnp.zeros((2, 4)), jnp.zeros((2, 3), jnp.int32), jnp.zeros(2)):
        with pytest.raises(ValueError, match=r"must be integer labels \[B\] or distributions \[B,3\]"):
            losses.as_distribution(wrong, 3)


def test_unknown_loss_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"loss = 'crossentropy'.*did you mean 'cross_entropy'\?"):
        losses.get("crossentropy")
