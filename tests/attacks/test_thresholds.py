"""Sort-free thresholds against sorting in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.attacks.l1_ball import correction
from robust_vit.attacks.thresholds import largest, order_statistic, water_level


@examples(20)
@given(seed=st.integers(0, 2**16), power=st.floats(0.0, 12.0), ties=st.booleans())
def test_order_statistic_is_the_sorted_element(seed, power, ties):
    random = np.random.default_rng(seed)
    values = np.abs(random.normal(size=(3, 17))).astype(np.float32) ** np.float32(power)
    values = np.round(values, 1) if ties else values
    rank = random.integers(0, 17, 3)
    expected = np.sort(values, axis=-1)[np.arange(3), rank]
    np.testing.assert_array_equal(order_statistic(jnp.asarray(values), jnp.asarray(rank)), expected)


def test_largest_finds_the_last_bit_and_zero_when_nothing_holds():
    limit = np.float32([0.1, 3e30, 1e-30, 0.0])
    np.testing.assert_array_equal(largest(lambda t: t <= jnp.asarray(limit), 4), limit)
    np.testing.assert_array_equal(largest(lambda t: t < 0, 4), np.zeros(4))


def test_largest_finds_the_last_bit_of_float64():
    with jax.enable_x64(True):
        limit = np.float64([0.1, 3e300, 1e-300, 0.0])
        np.testing.assert_array_equal(largest(lambda t: t <= jnp.asarray(limit), 4, jnp.float64), limit)


def level_by_sorting(weights, caps, total):
    """Raises the level from cap to cap, in float64."""
    order = np.argsort(caps)
    weights, caps = weights[order].astype(np.float64), caps[order].astype(np.float64)
    spent, level = 0.0, 0.0
    for i in range(len(caps)):
        slope = weights[i:].sum()
        if slope > 0 and spent + slope * (caps[i] - level) >= total:
            return level + (total - spent) / slope
        spent, level = spent + slope * (caps[i] - level), caps[i]
    return level


@examples(20)
@given(seed=st.integers(0, 2**16), power=st.floats(0.5, 6.0), share=st.floats(0.0, 0.95))
def test_water_level_at_any_scale(seed, power, share):
    random = np.random.default_rng(seed)
    weights = (random.uniform(size=(2, 23)) ** power).astype(np.float32)
    caps = (random.uniform(size=(2, 23)) ** (3 - power)).astype(np.float32).clip(0, 1e3)
    total = (share * (weights * caps).sum(axis=-1)).astype(np.float32)
    level = water_level(jnp.asarray(weights), jnp.asarray(caps), jnp.asarray(total))
    expected = [level_by_sorting(*row) for row in zip(weights, caps, total)]
    np.testing.assert_allclose(level, expected, rtol=1e-4, atol=1e-7)


def test_water_level_that_cannot_be_reached_caps_everything():
    caps = jnp.asarray([[0.5, 0.1, 0.9]])
    assert water_level(jnp.ones((1, 3)), caps, jnp.asarray([7.0]))[0] >= 0.9


@examples(20)
@given(seed=st.integers(0, 2**16), epsilon=st.floats(0.01, 8.0))
def test_l1_projection_is_the_nearest_point(seed, epsilon):
    """Against bisection on the multiplier, in float64."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(size=(2, 40)), 0.5 * random.normal(size=(2, 40))
    room = np.where(y > 0, 1 - x, x)
    low, high = np.zeros((2, 1)), np.abs(y).max(axis=-1, keepdims=True)
    for _ in range(80):
        middle = (low + high) / 2
        long = np.clip(np.abs(y) - middle, 0, room).sum(axis=-1, keepdims=True) > epsilon
        low, high = np.where(long, middle, low), np.where(long, high, middle)
    inside = np.clip(np.abs(y), 0, room).sum(axis=-1, keepdims=True) <= epsilon
    expected = np.sign(y) * np.clip(np.abs(y) - np.where(inside, 0, high), 0, room)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(y + correction(x, y, jnp.full(2, epsilon, jnp.float32)), expected, atol=2e-6)
