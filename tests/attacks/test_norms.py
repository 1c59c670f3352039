"""Balls against float64 NumPy oracles, the reference's L1 projection, and the definitions of start and step."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.attacks import norms

DATA = pathlib.Path(__file__).parent.parent / "data"
NORMS = sorted(norms.BALLS)
SHAPES = [(3, 4, 7, 1), (2, 5, 3, 3)]
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
PROJECT = {name: jax.jit(ball.project) for name, ball in norms.BALLS.items()}
START = {name: jax.jit(ball.start) for name, ball in norms.BALLS.items()}


def length(delta, norm):
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), ord=ORDER[norm], axis=1)


def sorted_l1_projection(d, x, epsilon):
    """The projection of one vector by sorting the kinks of |delta(lambda)|_1, piecewise linear and falling."""
    magnitude, room = np.abs(d), np.where(d > 0, 1.0 - x, x)

    def total(threshold):
        return np.clip(magnitude - threshold, 0.0, room).sum()

    if total(0.0) <= epsilon:
        return np.sign(d) * np.clip(magnitude, 0.0, room)
    kinks = np.unique(np.concatenate([[0.0], magnitude, np.maximum(magnitude - room, 0.0)]))
    totals = np.array([total(kink) for kink in kinks])
    after = np.argmax(totals <= epsilon)
    low, high = kinks[after - 1], kinks[after]
    slope = (totals[after] - totals[after - 1]) / (high - low)
    threshold = low + (epsilon - totals[after - 1]) / slope
    return np.sign(d) * np.clip(magnitude - threshold, 0.0, room)


def oracle_projection(points, images, epsilon, norm):
    """Projections in float64, one image after the other."""
    result = []
    for point, image, radius in zip(*(np.asarray(a, np.float64) for a in (points, images, epsilon)), strict=True):
        d = (point - image).ravel()
        if norm == "linf":
            delta = np.clip(d, -radius, radius)
        elif norm == "l2":
            delta = d * min(1.0, radius / max(np.linalg.norm(d), 1e-12))
        else:
            delta = sorted_l1_projection(d, image.ravel(), radius)
        result.append(np.clip(image.ravel() + delta, 0.0, 1.0).reshape(image.shape))
    return np.stack(result)


def cloud(seed, shape, spread):
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.1, 1.1, shape), 0.0, 1.0).astype(np.float32)
    return images, (images + spread * rng.normal(size=shape)).astype(np.float32), rng


cases = given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from(SHAPES),
    spread=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    scale=st.floats(0.0, 1.0),
)


@pytest.mark.parametrize("norm", NORMS)
@examples(25)
@cases
def test_projection_is_the_oracles(norm, seed, shape, spread, scale):
    images, points, rng = cloud(seed, shape, spread)
    largest = {"linf": 1.0, "l2": 3.0, "l1": 20.0}[norm]
    epsilon = (scale * largest * rng.uniform(size=shape[0])).astype(np.float32)
    projected = np.asarray(PROJECT[norm](points, images, epsilon))
    resolution = 2e-6 * max(1.0, spread)  # a float32 of size 30 has a spacing of 2e-6
    np.testing.assert_allclose(projected, oracle_projection(points, images, epsilon, norm), atol=resolution)
    assert np.all(length(projected - images.astype(np.float64), norm) <= epsilon * (1 + 1e-6) + 1e-6)
    assert projected.min() >= 0.0 and projected.max() <= 1.0
    np.testing.assert_allclose(PROJECT[norm](projected, images, epsilon), projected, atol=2e-6)  # idempotent


@pytest.mark.parametrize("norm", ["linf", "l1"])
@examples(15)
@cases
def test_exact_projections_are_the_nearest_points(norm, seed, shape, spread, scale):
    """p is the projection of d on a convex set exactly when <d - p, q - p> <= 0 for every q of the set."""
    images, points, rng = cloud(seed, shape, spread)
    epsilon = np.float32(0.01 + scale)
    projected = np.asarray(PROJECT[norm](points, images, epsilon), np.float64)
    for _ in range(5):
        other = images + spread * rng.normal(size=shape) * rng.binomial(1, 0.3, shape)
        feasible = np.asarray(PROJECT[norm](other.astype(np.float32), images, epsilon), np.float64)
        product = ((points - projected) * (feasible - projected)).reshape(len(images), -1).sum(axis=1)
        assert np.all(product <= 1e-5 * (1.0 + spread))


def test_l1_projection_matches_the_reference():
    """Eight cases projected by the official AutoAttack code."""
    golden = np.load(DATA / "l1_ball_projection.npz")
    images = golden["images"].reshape(8, 10, 10, 3)
    points = images + golden["perturbations"].reshape(images.shape)
    projected = PROJECT["l1"](points, images, golden["epsilon"])
    np.testing.assert_allclose(projected - images, golden["projected"].reshape(images.shape), atol=2e-6)


def test_l1_projection_in_float64_is_the_oracles_to_float64():
    images, points, _ = cloud(5, (3, 4, 7, 1), 1.0)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (points, images)]
        found = np.asarray(norms.l1_project(*wide, np.array([0.1, 1.0, 5.0])))
    np.testing.assert_allclose(found, oracle_projection(points, images, [0.1, 1.0, 5.0], "l1"), atol=1e-14)
    assert np.all(length(found - images, "l1") <= np.array([0.1, 1.0, 5.0]) + 1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_radius_and_no_excess(norm):
    images, points, _ = cloud(0, (3, 4, 7, 1), 0.05)
    np.testing.assert_array_equal(PROJECT[norm](points, images, np.zeros(3, np.float32)), images)
    np.testing.assert_allclose(PROJECT[norm](points, images, np.float32(100.0)), np.clip(points, 0, 1), atol=1e-7)
    np.testing.assert_array_equal(PROJECT[norm](images, images, np.float32(0.3)), images)


@pytest.mark.parametrize("norm", NORMS)
def test_start_is_uniform_in_the_ball(norm):
    """In n dimensions the fraction of points within r of the radius is r^n; every coordinate is symmetric around 0."""
    count, n, epsilon = 8192, 3, 0.4
    images = jnp.full((count, 1, 1, n), 0.5)
    points = START[norm](jax.random.split(jax.random.key(3), count), images, epsilon)
    radii = length(points - images, norm) / epsilon
    for r in (0.5, 0.8, 0.95):
        assert abs((radii <= r).mean() - r**n) < 4 * np.sqrt(0.25 / count)
    assert radii.max() <= 1 + 1e-6
    delta = np.asarray(points - images).reshape(count, n) / epsilon
    assert np.all(np.abs(delta.mean(axis=0)) < 4 * delta.std(axis=0) / np.sqrt(count))
    assert np.all(np.abs(np.corrcoef(delta, rowvar=False) - np.eye(n)) < 0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_start_belongs_to_the_example(norm):
    """The same keys give the same starts in any order; clipped to [0,1] and inside per-example radii."""
    images, _, _ = cloud(1, (4, 3, 5, 2), 0.1)
    epsilon = jnp.array([0.0, 0.1, 0.5, 1.0])
    points = START[norm](jax.random.split(jax.random.key(0), 4), images, epsilon)
    again = START[norm](jax.random.split(jax.random.key(0), 4)[jnp.arange(4)[::-1]], images[::-1], epsilon[::-1])
    np.testing.assert_array_equal(points, again[::-1])
    assert np.all(length(points - images, norm) <= epsilon * (1 + 1e-6) + 1e-6)
    assert points.min() >= 0.0 and points.max() <= 1.0
    np.testing.assert_array_equal(points[0], images[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
def test_steepest_step_attains_the_dual_norm(norm, scale):
    """<gradient, step> is the dual norm of the gradient, also for gradients whose squares float32 cannot hold."""
    rng = np.random.default_rng(0)
    gradient = (scale * rng.normal(size=(3, 4, 6, 2))).astype(np.float32)
    step = np.asarray(norms.get(norm).steepest(jnp.asarray(gradient), jnp.full(gradient.shape, 0.5)), np.float64)
    np.testing.assert_allclose(length(step, norm), 1.0, rtol=1e-6)
    gain = (gradient.astype(np.float64) * step).reshape(3, -1).sum(axis=1)
    dual = np.linalg.norm(gradient.astype(np.float64).reshape(3, -1), ord=DUAL[norm], axis=1)
    np.testing.assert_allclose(gain, dual, rtol=1e-5)  # 48 values: 1 % is one coordinate, the exact steepest L1 step


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_no_step(norm):
    zero = jnp.zeros((2, 3, 3, 1))
    np.testing.assert_array_equal(norms.get(norm).steepest(zero, zero), zero)


def test_sparse_sign_takes_the_largest_coordinates():
    gradient = jnp.array([0.1, -4.0, 2.0, 0.3, -0.2, 1.0, 0.0, 3.0, 0.5, -0.6]).reshape(1, 2, 5, 1)
    np.testing.assert_allclose(norms.sparse_sign(gradient, 0.1).ravel()[1], -1.0)
    thirds = norms.sparse_sign(gradient, jnp.array([0.3])).ravel()
    np.testing.assert_allclose(thirds[jnp.array([1, 2, 7])], [-1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    assert jnp.count_nonzero(thirds) == 3


def test_l1_step_spends_nothing_on_saturated_pixels():
    gradient = jnp.array([5.0, -4.0, 3.0, 1.0]).reshape(1, 2, 2, 1)
    points = jnp.array([1.0, 0.0, 0.5, 0.5]).reshape(1, 2, 2, 1)
    step = norms.get("l1").steepest(gradient, points).ravel()
    np.testing.assert_array_equal(step, [0.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize("norm", NORMS)
def test_distance(norm):
    images, points, _ = cloud(2, (3, 4, 7, 1), 0.3)
    np.testing.assert_allclose(
        norms.get(norm).distance(points, images), length(points.astype(np.float64) - images, norm), rtol=1e-6
    )


def test_unknown_norm_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"norm = 'Linf'.*did you mean 'linf'\?"):
        norms.get("Linf")


def test_radius_of_a_wrong_shape_is_named():
    images, points, _ = cloud(2, (3, 4, 7, 1), 0.3)
    with pytest.raises(ValueError, match=r"must be a scalar or \(3,\)"):
        norms.get("l2").project(points, images, np.ones(2))
