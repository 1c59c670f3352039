"""The stepping protocol: what a scheduler of slots relies on, for each of AutoAttack's parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import norms
from robust_vit.attacks.autoattack import protocol

RUNS = {
    "apgd": lambda norm: attacks.apgd_run(norm, 9, loss="targeted_dlr"),
    "apgd_never": lambda norm: attacks.apgd_run(norm, 9, stop="never"),
    "fab": lambda norm: attacks.fab_run(norm, 6),
    "square": lambda norm: attacks.square_run(norm, 12),
}
EPSILON = {"linf": 0.04, "l2": 0.25, "l1": 1.0}
every_run = pytest.mark.parametrize("name, norm", [(n, "linf") for n in RUNS] + [("square", "l2"), ("apgd", "l1")])


@functools.cache
def programs(name, norm):
    run = RUNS[name](norm)
    return run, jax.jit(run.start), jax.jit(run.advance, static_argnums=2), jax.jit(protocol.refill)


@pytest.fixture
def slot_problem(problem):
    """Arguments of `start` for 4 slots whose order can be given: some break early, some never."""

    def make(order=(0, 1, 2, 3), norm="linf"):
        keys, logits_fn, images, labels = problem()
        order = jnp.asarray(order)
        runner_up = jnp.argsort(logits_fn(images), axis=-1)[:, -2]
        epsilon = jnp.array([0.0, 1.0, 0.5, 3.0]) * EPSILON[norm]
        return keys[order], logits_fn, images[order], labels[order], runner_up[order], epsilon[order]

    return make


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def at(state, where):
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(where)], state)


@every_run
def test_every_leaf_has_the_slots_first_and_small_bites_are_one_meal(name, norm, slot_problem):
    run, start, advance, _ = programs(name, norm)
    logits_fn = slot_problem()[1]
    whole = start(*slot_problem(norm=norm))
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(whole))
    bites = whole
    whole = advance(logits_fn, whole, run.ticks)
    for _ in range(-(-run.ticks // 4)):
        bites = advance(logits_fn, bites, 4)
    assert whole.done.all()
    equal(whole, bites)


@every_run
def test_finished_slots_keep_every_bit_and_refilled_ones_start_afresh(name, norm, slot_problem):
    run, start, advance, refill = programs(name, norm)
    logits_fn = slot_problem()[1]
    old = advance(logits_fn, start(*slot_problem(norm=norm)), run.ticks)
    fresh = start(*slot_problem((3, 2, 1, 0), norm))
    mixed = refill(old, jnp.array([True, False, True, False]), fresh)
    equal(at(mixed, [1, 3]), at(old, [1, 3]))
    equal(at(mixed, [0, 2]), at(fresh, [0, 2]))
    mixed = advance(logits_fn, mixed, run.ticks)
    equal(at(mixed, [1, 3]), at(old, [1, 3]))
    equal(at(mixed, [0, 2]), at(old, [3, 1]))


@every_run
def test_broken_says_whether_adversarial_is_misclassified_and_inside(name, norm, slot_problem):
    run, start, advance, _ = programs(name, norm)
    _, logits_fn, images, labels, _, epsilon = slot_problem(norm=norm)
    state = advance(logits_fn, start(*slot_problem(norm=norm)), run.ticks)
    np.testing.assert_array_equal(protocol.misclassified(logits_fn(state.adversarial), labels), state.broken)
    assert jnp.all(norms.get(norm).distance(state.adversarial, images) <= epsilon * (1 + 1e-6) + 1e-7)
    np.testing.assert_array_equal(state.adversarial[~state.broken], images[~state.broken])
    assert not state.broken[0] and (state.broken.any() or name == "square")


@every_run
def test_nan_logits_are_no_success_and_are_told(name, norm, slot_problem):
    run, start, advance, _ = programs(name, norm)
    nan = jax.tree_util.Partial(lambda images: images[:, 0, 0, :1] * jnp.full((1, 5), jnp.nan))
    state = advance(nan, start(*slot_problem(norm=norm)), run.ticks)
    assert state.non_finite.all() and not state.broken.any()


def test_start_does_not_evaluate_the_model(slot_problem):
    for make in RUNS.values():
        keys, _, *rest = slot_problem()
        state = make("linf").start(keys, None, *rest)
        assert not state.done.any() and not state.broken.any() and (state.tick == 0).all()
