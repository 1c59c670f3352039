"""Objectives on features: their losses by hand, whom their gradients reach, and what they let the attack climb."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robust_vit import attacks, models, randomness
from robust_vit.objectives.encoders import features
from robust_vit.objectives.encoders.fare import fare
from robust_vit.objectives.encoders.sim_clip import sim_clip
from robust_vit.objectives.encoders.tecoa import class_embeddings, tecoa
from robust_vit.typing import Aside

B, D, K, EPSILON = 6, 5, 3, 0.1


def encoder(w, images):
    """Images [B,2,2,3] -> features [B,5]."""
    return jnp.tanh(images.reshape(len(images), -1) @ w["encoder"])


def draw(seed):
    rng = np.random.default_rng(seed)
    return {"encoder": rng.normal(size=(12, D)), "head": {"kernel": rng.normal(size=(D, K))}}


RNG = np.random.default_rng(0)
X, PATTERN = RNG.uniform(size=(B, 2, 2, 3)), RNG.choice([-1.0, 1.0], size=(B, 2, 2, 3))
Y = np.eye(K)[RNG.integers(0, K, B)]
W, W0 = draw(1), draw(2)


def known(keys, logits_fn, images, targets, strength=1.0):
    """A known point of the ball, whatever the model says."""
    return jnp.clip(images + EPSILON * strength * PATTERN, 0.0, 1.0)


def run(objective, w, attack=known, strength=1.0):
    teacher = Partial(lambda v, x: encoder(v["params"], x), {"params": jax.tree.map(jnp.float32, W0)})

    def forward(images, statistics):
        return encoder(w, images), statistics + 1

    keys = randomness.example_keys(7, jnp.arange(B), randomness.TRAIN_ATTACK)
    given = (attack, keys, jnp.float32(X), jnp.float32(Y), strength, Aside(teacher))
    return objective(forward, 0, Partial(encoder, w), *given)


ATTACKED = np.clip(X + EPSILON * PATTERN, 0, 1)


def f(w, images):
    """The encoder in float64."""
    return np.tanh(images.reshape(B, -1) @ w["encoder"])


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def smoothed(y, amount):
    return (1 - amount) * y + amount / K


def cross_entropy(z, y):
    z = z - z.max(-1, keepdims=True)
    return -(y * (z - np.log(np.exp(z).sum(-1, keepdims=True)))).sum(-1)


def away(w, images):
    return ((f(w, images) - f(W0, X)) ** 2).sum(-1)


# name -> (objective, its loss in float64, passes)
CASES = {
    "fare": (fare(), lambda w: away(w, ATTACKED), 1),
    "fare, a quarter clean": (
        fare(clean_weight=0.25),
        lambda w: 0.75 * away(w, ATTACKED) + 0.25 * away(w, X),
        2,
    ),
    "sim_clip": (sim_clip(), lambda w: -(unit(f(w, ATTACKED)) * unit(f(w, X))).sum(-1), 2),
    "tecoa": (
        tecoa(),
        lambda w: cross_entropy(100 * unit(f(w, ATTACKED)) @ unit(W0["head"]["kernel"].T).T, Y),
        1,
    ),
    "tecoa, smoothed and soft": (
        tecoa(scale=3.0, label_smoothing=0.1),
        lambda w: cross_entropy(3 * unit(f(w, ATTACKED)) @ unit(W0["head"]["kernel"].T).T, smoothed(Y, 0.1)),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_float64(name):
    objective, oracle, passes = CASES[name]
    outcome = run(objective, jax.tree.map(jnp.float32, W))
    np.testing.assert_allclose(outcome.loss, oracle(W), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(outcome.attacked, ATTACKED, atol=1e-6)
    assert outcome.loss.shape == (B,) and outcome.statistics == passes


@pytest.mark.parametrize("name", [name for name in CASES if name != "sim_clip"])
def test_the_gradient_is_that_of_float64_and_reaches_the_encoder_alone(name):
    objective, oracle, _ = CASES[name]
    gradient = jax.grad(lambda w: run(objective, w).loss.sum())(jax.tree.map(jnp.float32, W))
    assert not jnp.any(gradient["head"]["kernel"])
    numeric = np.zeros_like(W["encoder"])
    for place in np.ndindex(numeric.shape):
        moved = [W["encoder"].copy(), W["encoder"].copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (oracle({"encoder": one}).sum() for one in moved)
        numeric[place] = (up - down) / 2e-6
    np.testing.assert_allclose(gradient["encoder"], numeric, rtol=1e-3, atol=1e-3 * np.abs(numeric).max())


def test_sim_clips_gradient_is_half_that_of_its_value():
    """Each of its two equal terms holds one side fixed: together they are half the gradient of the cosine itself."""
    w = jax.tree.map(jnp.float32, W)

    def cosine(w):
        return -features.cosine(encoder(w, jnp.float32(ATTACKED)), encoder(w, jnp.float32(X))).sum()

    found = jax.grad(lambda w: run(sim_clip(), w).loss.sum())(w)["encoder"]
    np.testing.assert_allclose(found, jax.grad(cosine)(w)["encoder"] / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["fare", "sim_clip"])
def test_the_attack_climbs_the_distance_of_features(name):
    """PGD on what it is shown takes the steps of PGD on the distance, written out."""
    w, steps, size = jax.tree.map(jnp.float32, W), 3, 0.03
    pgd = attacks.pgd(norm="linf", epsilon=EPSILON, step_size=size, steps=steps, random_start=False, keep="last")
    reference = jnp.float32(f(W0 if name == "fare" else W, X))

    def start(keys, logits_fn, images, targets, strength=1.0):  # off the point where sim_clip's gradient is 0
        moved = jnp.clip(images + 0.01 * PATTERN, 0.0, 1.0).astype(jnp.float32)
        return pgd(keys, logits_fn, moved, targets, strength)

    found = run(CASES[name][0], w, start).attacked
    origin = jnp.clip(jnp.float32(X) + 0.01 * PATTERN, 0.0, 1.0).astype(jnp.float32)
    x = origin
    for _ in range(steps):
        slope = jax.grad(lambda x: features.squared_distance(encoder(w, x), reference).sum())(x)
        x = jnp.clip(jnp.clip(x + size * jnp.sign(slope), origin - EPSILON, origin + EPSILON), 0, 1)
    np.testing.assert_allclose(found, x, atol=1e-6)
    further = features.squared_distance(encoder(w, found), reference)
    assert (further > features.squared_distance(encoder(w, origin), reference)).all()


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_finite_where_nothing_was_attacked_and_at_features_of_zero(name):
    for w in (W, {"encoder": np.zeros_like(W["encoder"]), "head": W["head"]}):
        w = jax.tree.map(jnp.float32, w)
        value, gradient = jax.value_and_grad(lambda w: run(CASES[name][0], w, strength=0.0).loss.sum())(w)
        assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_class_embeddings_are_the_columns_of_the_only_head():
    module = models.build("vit", depth=1, width=8, heads=2, patch_size=4, image_size=8, num_classes=K)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    variables["params"]["head"]["kernel"] = jnp.arange(8.0 * K).reshape(8, K)
    found = class_embeddings(models.logits_fn(module, variables))
    np.testing.assert_array_equal(found, np.arange(8.0 * K).reshape(8, K).T)
    del variables["params"]["head"]
    with pytest.raises(ValueError, match="^objective.teacher = '0 kernels in its head': must be a model of one linear"):
        class_embeddings(models.logits_fn(module, variables))
