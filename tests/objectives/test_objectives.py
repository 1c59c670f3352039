"""Losses against hand-computed numbers and a float64 NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from robust_vit import attacks, objectives, randomness
from robust_vit.attacks.losses import cross_entropy
from robust_vit.objectives.trades import kl_divergence

K = 4


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(12, K)), jnp.float32)
    images = jnp.asarray(rng.uniform(size=(5, 2, 2, 3)), jnp.float32)
    labels = jax.nn.one_hot(jnp.array([0, 1, 2, 3, 0]), K)
    return weights, images, labels


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def arguments(weights, images, labels, attack, key):
    def forward(x, statistics):
        return linear(weights, x), statistics + 1

    keys = randomness.example_keys(jax.random.clone(key), jnp.arange(len(images)), randomness.TRAIN_ATTACK)
    return forward, 0, Partial(linear, weights), attack, keys, images, labels


def test_cross_entropy_by_hand():
    assert cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]]))[0] == pytest.approx(np.log(2), abs=1e-6)
    logits = jnp.array([[np.log(3.0), 0.0]])  # p = 3/4, 1/4
    soft = 0.5 * (np.log(4 / 3) + np.log(4))
    assert cross_entropy(logits, jnp.array([[0.5, 0.5]]))[0] == pytest.approx(soft, abs=1e-6)
    assert optax.smooth_labels(jnp.array([[1.0, 0.0]]), 0.1).tolist() == [[pytest.approx(0.95), pytest.approx(0.05)]]


def test_kl_by_hand():
    p, q = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.75, 0.25]]))
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert kl_divergence(p, q)[0] == pytest.approx(expected, abs=1e-6)
    assert kl_divergence(p, p)[0] == pytest.approx(0, abs=1e-7)


def test_standard_is_clean_cross_entropy(problem, key):
    weights, images, labels = problem
    outcome = objectives.build("standard")(*arguments(weights, images, labels, None, key))
    expected = -(np.asarray(labels) * log_softmax(linear(weights, images))).sum(-1)
    np.testing.assert_allclose(outcome.loss, expected, rtol=1e-5)
    assert outcome.loss.shape == (5,) and outcome.adversarial_logits is None and outcome.statistics == 1


def test_adversarial_is_cross_entropy_at_the_attacked_images_and_spends_one_forward(problem, key):
    weights, images, labels = problem
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=3)
    given = arguments(weights, images, labels, attack, key)
    outcome = objectives.build("adversarial", label_smoothing=0.2)(*given)
    attacked = attack(given[4], given[2], images, labels)
    targets = 0.8 * np.asarray(labels) + 0.2 / K
    np.testing.assert_allclose(outcome.loss, -(targets * log_softmax(linear(weights, attacked))).sum(-1), rtol=1e-5)
    assert outcome.clean_logits is None and outcome.statistics == 1  # the clean images are never looked at


@pytest.mark.parametrize(("statistics", "updates"), [("clean", 1), ("adversarial", 1), ("both", 2)])
def test_trades_against_the_oracle(problem, key, statistics, updates):
    weights, images, labels = problem
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=3)
    given = arguments(weights, images, labels, attack, key)
    outcome = objectives.build("trades", beta=3.0, statistics=statistics)(*given)
    clean = log_softmax(linear(weights, images))
    attacked = attack(given[4], given[2], images, jax.nn.softmax(linear(weights, images)))
    divergence = (np.exp(clean) * (clean - log_softmax(linear(weights, attacked)))).sum(-1)
    np.testing.assert_allclose(outcome.loss, -(np.asarray(labels) * clean).sum(-1) + 3.0 * divergence, rtol=1e-4)
    assert (divergence > 0).all() and outcome.statistics == updates


def test_the_trades_attack_is_told_the_clean_prediction_and_not_the_label(problem, key):
    weights, images, labels = problem
    seen = []

    def spy(keys, logits_fn, images, targets, strength=1.0):
        seen.append(targets)
        return images

    objectives.build("trades")(*arguments(weights, images, labels, spy, key))
    np.testing.assert_allclose(seen[0], jax.nn.softmax(linear(weights, images)), rtol=1e-5)


def test_trades_gradient_flows_through_both_sides(problem, key):
    weights, images, labels = problem
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=2)

    def loss(w):
        return objectives.build("trades", beta=6.0)(*arguments(w, images, labels, attack, key)).loss.mean()

    _, _, adversary, _, keys, *_ = arguments(weights, images, labels, attack, key)
    attacked = attack(keys, adversary, images, jax.nn.softmax(linear(weights, images)))

    def written_out(w):
        clean, moved = jax.nn.log_softmax(linear(w, images)), jax.nn.log_softmax(linear(w, attacked))
        return jnp.mean(-(labels * clean).sum(-1) + 6.0 * (jnp.exp(clean) * (clean - moved)).sum(-1))

    np.testing.assert_allclose(jax.grad(loss)(weights), jax.grad(written_out)(weights), atol=1e-5)


@pytest.mark.parametrize("name", ["standard", "gradient_norm", "adversarial", "mixed", "trades"])
def test_what_is_clean_training_at_strength_0(problem, key, name):
    weights, images, labels = problem
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=2)
    objective = objectives.build(name)

    def run(w, strength):
        return objective(*arguments(w, images, labels, attack, key), strength).loss

    full = run(weights, 1.0)
    assert full.shape == (5,) and full.dtype == jnp.float32 and jnp.isfinite(full).all()
    np.testing.assert_allclose(jax.jit(run)(weights, 1.0), full, rtol=1e-5)
    clean = cross_entropy(linear(weights, images), labels)
    np.testing.assert_allclose(run(weights, 0.0), clean, rtol=1e-5)
    assert jnp.abs(jax.grad(lambda w: run(w, 1.0).mean())(weights)).max() > 0


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("trades", dict(beta=-1), "objective.beta = -1: must be >= 0"),
        ("standard", dict(label_smoothing=1.0), r"objective.label_smoothing = 1.0: must be in \[0, 1\)"),
        ("madry", {}, "objective.name = 'madry': must be one of"),
    ],
)
def test_bad_keywords(name, keywords, message):
    with pytest.raises(ValueError, match=message):
        objectives.build(name, **keywords)
