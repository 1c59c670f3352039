"""FAB beyond the golden tape: the exact answer on a linear model, two classes, its early stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks.autoattack import hyperplanes, protocol

RANK_PROMOTION = "allow"  # of the models that are made here


@pytest.mark.parametrize("norm, dual", [("linf", "l1"), ("l2", "l2"), ("l1", "linf")])
def test_finds_the_distance_of_a_linear_model(norm, dual):
    """Grey images far from the faces of the box: the distance to the boundary is |gap| / dual norm of the
    difference.
    """
    batch = 3
    w = jax.random.normal(jax.random.key(0), (48, 2))
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w + jnp.array([0.1, 0.0]), w - w.mean(0))
    images = 0.5 + 0.02 * jax.random.normal(jax.random.key(1), (batch, 4, 4, 3))
    logits = logits_fn(images)
    labels = logits.argmax(-1)
    run = attacks.fab_run(norm, 30, stop="never")
    keys = jax.random.split(jax.random.key(2), batch)
    arguments = (keys, logits_fn, images, labels, 1 - labels, jnp.full(batch, 100.0))
    state = jax.jit(lambda *a: run.advance(a[1], run.start(*a), run.ticks))(*arguments)
    gap = jnp.abs(logits[:, 0] - logits[:, 1])
    exact = gap / protocol.length((w[:, 0] - w[:, 1] - (w.mean(0)[0] - w.mean(0)[1])).reshape(1, 4, 4, 3), dual)
    np.testing.assert_allclose(state.distance, exact, rtol=0.01)
    assert state.broken.all()


def test_early_stop_changes_no_flag(problem):
    *_, logits_fn, images, labels = problem()
    runner_up = jnp.argsort(logits_fn(images), axis=-1)[:, -2]
    found = {}
    for stop in ("broken", "never"):
        run = attacks.fab_run("linf", 15, stop=stop)
        arguments = (problem()[0], logits_fn, images, labels, runner_up, jnp.array([0.01, 0.02, 0.05, 0.1]))
        found[stop] = jax.jit(lambda *a, run=run: run.advance(a[1], run.start(*a), run.ticks))(*arguments)
        assert found[stop].done.all()
    broken = found["never"].broken
    assert broken.any() and not broken.all()
    np.testing.assert_array_equal(found["broken"].broken, broken)
    assert (found["broken"].tick[broken] < 15).all() and (found["never"].tick == 15).all()
    assert (found["never"].distance <= found["broken"].distance).all()


@pytest.mark.parametrize("targeted", [True, False])
def test_two_classes(targeted, problem):
    keys, logits_fn, images, labels = problem(classes=2)
    adversarial = jax.jit(attacks.fab(epsilon=0.5, steps=10, targeted=targeted))(keys, logits_fn, images, labels)
    assert (logits_fn(adversarial).argmax(-1) != labels).any()


def test_only_later_restarts_start_away_from_the_image(problem):
    keys, logits_fn, images, labels = problem()
    run = attacks.fab_run("l2")
    state = run.start(keys, logits_fn, images, labels, labels, jnp.full(4, 0.5), restart=jnp.array([0, 1, 0, 2]))
    away = protocol.length(state.current - images, "l2")
    np.testing.assert_array_equal(away[::2], [0, 0])
    assert (away[1::2] > 0.1).all() and (away <= 0.25 + 1e-6).all()


def test_a_hyperplane_out_of_reach_gives_the_corner():
    points, normals = jnp.full((1, 3), 0.25), jnp.array([[1.0, -2.0, 0.0]])
    for norm in ("linf", "l2", "l1"):
        moved = points + hyperplanes.displacement(points, normals, jnp.array([-9.0]), norm)
        np.testing.assert_allclose(moved, [[0.0, 1.0, 0.25]], atol=1e-6)


def test_a_flat_model_moves_nothing():
    points = jnp.full((1, 3), 0.25)
    for norm in ("linf", "l2", "l1"):
        np.testing.assert_array_equal(hyperplanes.displacement(points, jnp.zeros((1, 3)), jnp.ones(1), norm), [[0] * 3])


@pytest.mark.parametrize("keywords", [{"norm": "l0"}, {"steps": 1.5}, {"stop": "now"}])
def test_bad_settings_are_named(keywords):
    with pytest.raises(ValueError, match=f"^{next(iter(keywords))} = "):
        attacks.fab_run(**keywords)
