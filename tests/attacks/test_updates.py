"""The update rules of PGD: each against its paper's algorithm in float64 NumPy, and inside ball and box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import attacks
from robust_vit.attacks import losses, norms, updates

RULES = {"steepest": {"momentum": 1.0}, "heavy_ball": {"momentum": 0.9}, "nesterov": {"momentum": 1.0}, "adam": {}}


def gradient_of(logits_fn, labels):
    return jax.jit(jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum()))


def boxed(x, clean, epsilon):
    return np.clip(np.clip(x, clean - epsilon, clean + epsilon), 0.0, 1.0)


def run(problem, **keywords):
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(random_start=False, keep="last", **keywords)
    return jax.jit(attack)(keys, logits_fn, images, labels), logits_fn, np.asarray(images, np.float64), labels


def test_every_rule_is_tested():
    assert set(RULES) == set(updates.UPDATES)


def test_adam_is_that_of_the_papers(problem):
    """Learning rate 0.1, then 0.01 after half of 5 steps, rounded up; projected after every step."""
    found, logits_fn, clean, labels = run(problem, epsilon=0.3, steps=5, update="adam")
    gradient, x = gradient_of(logits_fn, labels), clean
    mean = square = np.zeros_like(clean)
    for step in range(5):
        g = np.asarray(gradient(x.astype(np.float32)), np.float64)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        hats = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        x = boxed(x + (0.1 if step < 3 else 0.01) * hats[0] / (np.sqrt(hats[1]) + 1e-8), clean, 0.3)
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_nesterov_looks_ahead_along_what_it_accumulated(problem):
    """Momentum of gradients of mean size 1, taken half a momentum ahead."""
    found, logits_fn, clean, labels = run(
        problem, epsilon=0.3, steps=4, step_size=0.05, update="nesterov", momentum=0.5
    )
    gradient, x, memory = gradient_of(logits_fn, labels), clean, np.zeros_like(clean)
    for _ in range(4):
        ahead = boxed(x + 0.05 * 0.5 * memory, clean, 0.3)
        g = np.asarray(gradient(ahead.astype(np.float32)), np.float64)
        memory = 0.5 * memory + g / np.abs(g).mean(axis=(1, 2, 3), keepdims=True)
        x = boxed(x + 0.05 * np.sign(memory), clean, 0.3)
    assert np.mean(np.abs(np.asarray(found) - x) > 1e-4) < 0.01  # a sign may differ where a sum is about 0


def test_adam_takes_the_steps_of_optax(problem):
    *_, images, _ = problem()
    rule, tx = updates.adam(norms.get("linf"), 8, 0.0), optax.adam(1.0)
    memory, state = rule.start(jnp.zeros_like(images)), tx.init(images)
    for number in range(3):
        gradient = jax.random.normal(jax.random.key(number), images.shape)
        direction, memory = rule.step(gradient, images, memory, jnp.int32(number))
        update, state = tx.update(gradient, state)
        np.testing.assert_allclose(direction, -update, rtol=2e-5, atol=1e-6)


def test_heavy_ball_in_l2_is_that_of_fare(problem):
    found, logits_fn, clean, labels = run(
        problem, norm="l2", epsilon=0.4, step_size=0.15, steps=4, update="heavy_ball", momentum=0.9
    )
    gradient, x, velocity = gradient_of(logits_fn, labels), clean, np.zeros_like(clean)

    def unit(v):
        return v / np.sqrt((v**2).sum(axis=(1, 2, 3), keepdims=True))

    for _ in range(4):
        velocity = unit(0.9 * velocity + unit(np.asarray(gradient(x.astype(np.float32)), np.float64)))
        delta = x + 0.15 * velocity - clean
        length = np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
        x = np.clip(clean + delta * np.minimum(1.0, 0.4 / length), 0.0, 1.0)
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_heavy_ball_in_linf_goes_on_where_the_gradient_is_zero_and_is_the_sign_elsewhere():
    rule, points = updates.heavy_ball(norms.get("linf"), 3, 0.9), jnp.full((1, 1, 1, 3), 0.5)
    memory = rule.start(jnp.zeros_like(points))
    expected = ([1, -1, 0], [-1, -1, 1], [-1, 1, 1])
    for number, (gradient, signs) in enumerate(zip(([2.0, -3.0, 0.0], [-1e-9, 0.0, 4.0], [0.0, 1.0, 0.0]), expected)):
        step, memory = rule.step(jnp.reshape(jnp.array(gradient), (1, 1, 1, 3)), points, memory, jnp.int32(number))
        np.testing.assert_array_equal(step.ravel(), signs)


@functools.cache
def compiled(norm, update):
    """One program for all radii; the start of TRADES, which need not be inside of a small ball."""

    def attack(epsilon, *arguments):
        keywords = {"start": "normal", "start_scale": 0.05, **RULES[update]}
        made = attacks.pgd(norm=norm, epsilon=epsilon, step_size=epsilon, steps=3, update=update, **keywords)
        return made(*arguments)

    return jax.jit(attack)


@pytest.mark.parametrize(
    ("norm", "update"),
    [
        pytest.param(norm, update, marks=() if norm == "linf" else pytest.mark.slow)
        for norm in sorted(norms.BALLS)
        for update in sorted(updates.UPDATES)
    ],
)
@examples(8)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.0, 1.0), strength=st.floats(0.0, 1.0))
def test_every_rule_stays_in_ball_and_box(norm, update, problem, seed, scale, strength):
    epsilon = np.float32({"linf": 1.0, "l2": 4.0, "l1": 30.0}[norm] * scale**3)
    keys, logits_fn, images, labels = problem((2, 5, 4, 3), seed=seed)
    found = compiled(norm, update)(epsilon, keys, logits_fn, images, labels, np.float32(strength))
    distance = norms.get(norm).distance(np.asarray(found, np.float64), np.asarray(images, np.float64))
    assert np.all(np.asarray(distance) <= epsilon * strength * (1 + 1e-6) + 1e-6)
    assert found.min() >= 0.0 and found.max() <= 1.0


@pytest.mark.parametrize(
    "update", [name if name == "adam" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RULES)]
)
def test_every_rule_climbs_example_by_example(update, problem):
    """Higher losses than at the image; and an example alone goes where it went in the batch."""
    keys, logits_fn, images, labels = problem()
    attack = jax.jit(attacks.pgd(epsilon=0.1, steps=6, update=update, keep="last", **RULES[update]))
    found = attack(keys, logits_fn, images, labels)
    before, after = (losses.cross_entropy(logits_fn(x), labels) for x in (images, found))
    assert jnp.all(after > before + 1e-2)
    keys, *_ = problem()
    order = jnp.array([3, 1, 0, 2])
    np.testing.assert_array_equal(attack(keys[order], logits_fn, images[order], labels[order]), found[order])


@pytest.mark.parametrize(
    "keywords, message",
    [
        (
            {"update": "adams"},
            r"update = 'adams': must be one of adam, .*, steepest; did you mean 'adam'\?",
        ),
        ({"update": "heavy_ball"}, r"momentum = 0.0: must be above 0 with update = 'heavy_ball', 0.9 in its paper"),
        ({"update": "adam", "momentum": 0.5}, r"momentum = 0.5: must be 0 with update = 'adam', which has its own"),
    ],
)
def test_bad_rules_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(**{"epsilon": 0.1, **keywords})
