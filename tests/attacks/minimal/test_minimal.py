"""Minimal-norm attacks find the distance to the boundary where it is known, and tell what they found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import minimal, norms
from robust_vit.attacks.minimal.pdpgd import proximal

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
CASES = [("ddn", "l2"), ("fmn", "linf"), ("fmn", "l2"), ("fmn", "l1")]
CASES += [("deepfool", "l2"), ("deepfool", "linf"), ("pdpgd", "linf")]
LONGER = {("pdpgd", "l1"): 1.2, ("ead", "l1"): 1.8}  # elastic nets weigh the squares too, which spreads the change
LONG = [("pdpgd", "l2"), ("pdpgd", "l1"), ("cw", "l2"), ("ead", "l1")]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in LONG]


def affine(weights, images):
    """Two classes, apart by w x + b."""
    value = images.reshape(len(images), -1) @ weights["w"] + weights["b"]
    return jnp.stack([value, -value], axis=-1)


@pytest.fixture(scope="module")
def linear():
    """Images far from the border of the pixel range, and their exact distances to the boundary in each norm."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5 * 4 * 3))
    images = 0.5 + 0.05 * rng.uniform(-1, 1, size=(6, 5, 4, 3))
    b = -w.sum() * 0.5
    value = images.reshape(6, -1) @ w + b
    weights = {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(b)}
    labels = jnp.asarray(value < 0, jnp.int32)
    exact = {norm: np.abs(value) / np.linalg.norm(w, ord=order) for norm, order in DUAL.items()}
    return jax.tree_util.Partial(affine, weights), jnp.asarray(images, jnp.float32), labels, exact


@pytest.mark.parametrize("name, norm", CASES)
def test_the_distance_to_a_hyperplane_is_found(name, norm, linear):
    logits_fn, images, labels, exact = linear
    search = minimal.search(name, norm=norm, **({"steps": 20} if name == "deepfool" else {"steps": 200}))
    found = jax.jit(search)(jax.random.split(jax.random.key(0), 6), logits_fn, images, labels)
    assert np.all(np.argmax(logits_fn(found.points), -1) != labels)
    np.testing.assert_allclose(norms.get(norm).distance(found.points, images), found.norm, rtol=1e-5, atol=1e-7)
    assert np.all(found.norm >= exact[norm] * (1 - 1e-3))  # nothing is nearer than the boundary
    longer = LONGER.get((name, norm), 1.1)
    assert np.all(found.norm <= exact[norm] * longer + 1e-3), found.norm / exact[norm]


@pytest.mark.parametrize("name, norm", CASES)
def test_what_is_misclassified_needs_no_change_and_what_cannot_change_is_told(name, norm, linear):
    logits_fn, images, labels, _ = linear
    keys = jax.random.split(jax.random.key(0), 6)
    search = jax.jit(minimal.search(name, norm=norm, steps=3))
    wrong = search(keys, logits_fn, images, 1 - labels)
    np.testing.assert_array_equal(wrong.norm, 0.0)
    np.testing.assert_array_equal(wrong.points, images)
    constant = jax.tree_util.Partial(lambda w, x: jnp.broadcast_to(w, (len(x), 2)), jnp.array([1.0, 0.0]))
    never = search(jax.random.split(jax.random.key(1), 6), constant, images, jnp.zeros(6, jnp.int32))
    assert np.all(np.isinf(never.norm))
    np.testing.assert_array_equal(never.points, images)


def test_ddn_needs_less_than_pgd(problem):
    """At the radius where PGD breaks a point, DDN's change is no longer than PGD's."""
    keys, logits_fn, images, labels = problem()
    epsilon = 1.0
    other = jax.jit(attacks.pgd(norm="l2", epsilon=epsilon, steps=20, keep="success"))(keys, logits_fn, images, labels)
    broken = np.argmax(logits_fn(other), -1) != labels
    assert broken.any()
    keys, *_ = problem()
    found = jax.jit(minimal.search("ddn", steps=60))(keys, logits_fn, images, labels)
    assert np.all(found.norm[broken] <= norms.get("l2").distance(other, images)[broken] + 1e-5)


def test_a_shrinking_step_is_the_proximal_one():
    """Against the optimality of 1/2 |z - x|^2 + w |z|: x - z lies in w times the subgradients of the norm at z."""
    x = np.random.default_rng(0).normal(size=(3, 4, 3, 2))
    weight = np.array([0.3, 1.0, 2.5])
    for norm, order in DUAL.items():
        z = np.asarray(proximal(norm, jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32)), np.float64)
        rest = (x - z).reshape(3, -1)
        np.testing.assert_array_less(np.linalg.norm(rest, ord=order, axis=1), weight * (1 + 1e-5))
        primal = {1: np.inf, 2: 2, np.inf: 1}[order]
        inner = (rest * z.reshape(3, -1)).sum(1)
        np.testing.assert_allclose(inner, weight * np.linalg.norm(z.reshape(3, -1), ord=primal, axis=1), atol=1e-4)


def test_sigma_zero_needs_as_few_values_as_the_largest_weights_ask_for(linear):
    """A value can move by about a half: the values of largest weight, one after the other, until the sign turns."""
    logits_fn, images, labels, _ = linear
    search = jax.jit(minimal.search("sigma_zero", steps=150))
    found = search(jax.random.split(jax.random.key(0), 6), logits_fn, images, labels)
    assert np.all(np.argmax(logits_fn(found.points), -1) != labels)
    counted = (np.asarray(found.points) != np.asarray(images)).sum((1, 2, 3))
    np.testing.assert_array_equal(counted, found.norm)
    w = np.asarray(logits_fn.args[0]["w"], np.float64)
    x, y = np.asarray(images, np.float64).reshape(6, -1), np.asarray(labels)
    value = np.abs(x @ w + float(logits_fn.args[0]["b"]))
    push = -np.where(y == 0, 1.0, -1.0)[:, None] * w  # the direction in which the value falls
    gains = -np.sort(-np.abs(w) * np.where(push > 0, 1 - x, x), axis=1)
    fewest = (np.cumsum(gains, 1) < value[:, None]).sum(1) + 1
    assert np.all(counted >= fewest) and np.all(counted <= fewest + 2), (counted, fewest)


@pytest.mark.parametrize(
    "name, keywords, field",
    [
        ("ddn", {"norm": "linf"}, "norm = 'linf'"),
        ("ddn", {"gamma": 1.0}, "gamma = 1.0"),
        ("ddn", {"start": 0.0}, "start = 0.0"),
        ("fmn", {"norm": "l3"}, "norm = 'l3'"),
        ("fmn", {"steps": 0}, "steps = 0"),
        ("fmn", {"step_size": -1.0}, "step_size = -1.0"),
        ("deepfool", {"norm": "l1"}, "norm = 'l1'"),
        ("deepfool", {"candidates": 1}, "candidates = 1"),
        ("cw", {"norm": "linf"}, "norm = 'linf'"),
        ("cw", {"rounds": 0}, "rounds = 0"),
        ("ead", {"norm": "l2"}, "norm = 'l2'"),
        ("pdpgd", {"learning_rate": 0.0}, "learning_rate = 0.0"),
    ],
)
def test_bad_keywords_are_one_line(name, keywords, field):
    with pytest.raises(ValueError) as error:
        attacks.build(name, epsilon=0.1, **keywords)
    assert str(error.value).startswith(field) and "\n" not in str(error.value)
