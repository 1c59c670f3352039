"""Square beyond the golden tape: window sizes, any image shape, its bumps, shared draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import norms
from robust_vit.attacks.autoattack.square.patterns import bump, sizes


@pytest.mark.parametrize(
    "side, expected", [(32, [29, 20, 14, 10, 7, 5, 4, 3]), (224, [200, 142, 100, 71, 50, 35, 25, 18])]
)
def test_window_sizes_of_5000_queries(side, expected):
    sides, levels = sizes(side, side, 5000, 0.8, False, "linf")
    np.testing.assert_array_equal(sides, expected)
    changes = np.flatnonzero(np.diff(levels)) + 1
    np.testing.assert_array_equal(changes, [11, 51, 201, 501, 1001, 2001, 4001])


def test_rescaled_schedule_and_odd_windows():
    sides, levels = sizes(28, 20, 1000, 0.8, True, "l2")
    np.testing.assert_array_equal(np.flatnonzero(np.diff(levels)) + 1, [2, 6, 21, 51, 101, 201, 401, 601, 801])
    assert (sides[:-1] >= sides[1:]).all() and (sides >= 3).all() and sides.max() <= 20


def bump_by_the_book(side, power):
    """The sum of growing centred windows, as the paper draws it."""
    halves = []
    for height, sign in ((side // 2, 1), (side - side // 2, -1)):
        lobe, top, left = np.zeros((height, side)), height // 2, side // 2
        for k in range(max(height // 2, side // 2) + 1):
            lobe[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += (k + 1.0) ** -power
        size = np.sqrt((lobe**2).sum()) if power == 2 else lobe.sum()
        halves.append(sign * lobe / size if height else lobe)
    whole = np.concatenate(halves)
    return whole / (np.sqrt((whole**2).sum()) if power == 2 else np.abs(whole).sum())


@pytest.mark.parametrize("side", [1, 2, 3, 6, 13])
@pytest.mark.parametrize("norm, power", [("l2", 2), ("l1", 4)])
def test_bumps(side, norm, power):
    np.testing.assert_allclose(bump(side, norm), bump_by_the_book(side, power), atol=1e-6)


@pytest.mark.parametrize("norm, shape", [("linf", (3, 1)), ("l2", (14, 2)), ("l2", (3, 1)), ("l1", (7, 4))])
def test_any_shape_starts_and_proposes_inside(norm, shape):
    images = jax.random.uniform(jax.random.key(0), (2, 9, *shape))
    logits_fn = jax.tree_util.Partial(lambda x: jnp.stack([1 + x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], -1))
    epsilon = jnp.array([0.3, 1.0]) * {"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm]
    run = attacks.square_run(norm, 30)
    zero = jnp.zeros(2, jnp.int32)
    keys = jax.random.split(jax.random.key(1), 2)
    first = jax.jit(run.start)(keys, logits_fn, images, zero, zero - 1, epsilon)
    state = jax.jit(run.advance, static_argnums=2)(logits_fn, first, run.ticks)
    begun = -logits_fn(first.best)[:, 0]
    assert (state.best_loss > begun).any() and (state.best_loss >= begun - 1e-5).all()
    for points in (first.best, state.best):
        assert (points >= -1e-6).all() and (points <= 1 + 1e-6).all()
        distance = norms.get(norm).distance(points, images)
        assert (distance <= epsilon * (1 + 1e-5) + 1e-6).all() and (distance > 0.2 * epsilon).all()


@pytest.mark.parametrize("quirks, last", [(True, 7), (False, 8)])
def test_windows_reach_the_last_row_only_without_the_quirk(quirks, last):
    run = attacks.square_run(reference_quirks=quirks)
    places = jnp.linspace(0, 1, 64, endpoint=False)[:, None].repeat(2, axis=1)
    window = run._window(jnp.full(64, 3), places, 9, 9)
    assert jnp.flatnonzero(window.mask.any((0, 2, 3))).max() == last


def test_shared_draws_are_the_first_examples(problem):
    keys, _, _, _ = problem()
    shared = attacks.square_run(shared_square=True).draws.proposal(keys, jnp.zeros(4, jnp.int32), 3)
    keys, _, _, _ = problem()
    own = attacks.square_run().draws.proposal(keys, jnp.zeros(4, jnp.int32), 3)
    for a, b in zip(shared, own):
        np.testing.assert_array_equal(a, jnp.broadcast_to(b[:1], b.shape))
    assert len(np.unique(own.places)) == own.places.size
    assert set(np.unique(own.signs)) == {-1.0, 1.0}


def test_more_than_32_channels_get_signs_of_their_own(problem):
    keys, *_ = problem()
    signs = attacks.square_run().draws.proposal(keys, jnp.zeros(4, jnp.int32), 70).signs
    assert signs.shape == (4, 70) and 60 < (signs > 0).sum() < 220
    assert (signs[:, :32] != signs[:, 32:64]).any()


def test_two_classes_break(problem):
    keys, logits_fn, images, labels = problem(classes=2)
    adversarial = jax.jit(attacks.square(epsilon=0.5, queries=50))(keys, logits_fn, images, labels)
    assert (logits_fn(adversarial).argmax(-1) != labels).any()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="p_init = 2"):
        attacks.square_run(p_init=2)
    with pytest.raises(ValueError, match="queries = 0"):
        attacks.square_run(queries=0)


@pytest.mark.parametrize("quirks", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 1), (4, 4, 2)])
def test_passing_over_repeats_changes_nothing(shape, quirks):
    images = jax.random.uniform(jax.random.key(0), (6, *shape))
    weights = jax.random.normal(jax.random.key(1), (np.prod(shape), 3))
    logits_fn = jax.tree_util.Partial(lambda w, x: jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w), weights)
    labels = logits_fn(images).argmax(-1)
    keys, ends = jax.random.key_data(jax.random.split(jax.random.key(2), 6)), []
    for skip in (True, False):
        run = attacks.square_run(queries=2500, skip_repeats=skip, reference_quirks=quirks)
        begun = run.start(
            jax.random.wrap_key_data(keys), logits_fn, images, labels, labels, jnp.linspace(0.003, 0.2, 6)
        )
        ends.append(jax.jit(lambda s, run=run: counted(run, logits_fn, s))(begun))
    (fast, asked), (slow, all_asked) = ends
    for field in ("best", "best_loss", "adversarial", "broken", "done", "non_finite"):
        np.testing.assert_array_equal(getattr(fast, field), getattr(slow, field), err_msg=field)
    assert slow.broken.any() and not slow.broken.all()
    np.testing.assert_array_equal(all_asked[~slow.broken], 2501)
    assert (asked[~slow.broken] < 1000).all()


def counted(run, logits_fn, state):
    """Ticks until all are done; returns the state and the queries of each slot."""

    def tick(carry):
        state, asked = carry
        return run.advance(logits_fn, state, 1), asked + ~state.done

    return jax.lax.while_loop(lambda c: ~c[0].done.all(), tick, (state, jnp.zeros(len(state.done), jnp.int32)))


def test_repeats_are_not_told_apart_where_there_are_hardly_any():
    count = lambda side, channels, **k: attacks.square_run(**k)._numbers((1, side, side, channels))  # noqa: E731
    assert count(8, 1) == 128 and count(32, 3) == 0 and count(8, 20) == 0
    assert count(8, 1, norm="l2") == 0 and count(8, 1, shared_square=True) == 0
