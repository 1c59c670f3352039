"""APGD beyond the golden tape: its timetable, early stop, stochastic models, few classes, its losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import losses
from robust_vit.attacks.autoattack.timetable import timetable

UNTARGETED = -jnp.ones(4, jnp.int32)


def test_timetable_of_100_steps():
    table = timetable("linf", 100)
    np.testing.assert_array_equal(np.flatnonzero(table.check), [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_allclose(table.limit[table.check], 0.75 * np.array([22, 19, 16, 13, 10, 7, 6, 6]))
    assert len(table.start) == attacks.apgd_run(steps=100).ticks == 101


def test_timetable_of_three_radii():
    table = timetable("l1", 100, large_radii=True)
    np.testing.assert_array_equal(np.flatnonzero(table.start), [0, 31, 62])
    np.testing.assert_array_equal(np.flatnonzero(table.end), [30, 61, 102])
    np.testing.assert_array_equal(table.next_radius[table.end], [2, 1, 1])
    np.testing.assert_array_equal(np.flatnonzero(table.final), np.arange(62, 103))
    np.testing.assert_array_equal(np.flatnonzero(timetable("l1", 100).check), np.arange(4, 101, 4))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_have_a_timetable(steps):
    for norm, large in (("linf", False), ("l1", True)):
        assert timetable(norm, steps, large).final.sum() >= 1


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr", "margin", "probability_margin"])
def test_early_stop_changes_no_flag_and_each_loss_breaks(loss, problem):
    keys, logits_fn, images, labels = problem()
    broken = []
    for stop in ("broken", "never"):
        run = attacks.apgd_run("l2", 20, loss=loss, stop=stop)
        keys, *_ = problem()
        state = run.start(keys, logits_fn, images, labels, UNTARGETED, jnp.array([0.05, 0.2, 0.4, 3.0]))
        state = jax.jit(run.advance, static_argnums=2)(logits_fn, state, run.ticks)
        assert (state.tick[~state.broken] == 21).all()
        assert (stop == "never") or (state.tick[state.broken] < 21).all()
        broken.append(state.broken)
    np.testing.assert_array_equal(*broken)
    assert broken[0][3] and not broken[0][0]


def test_a_stochastic_model_gets_fresh_keys_for_every_draw(problem):
    """A model that adds noise from its keys: the averaged gradient differs from that of one draw, and is
    reproducible.
    """
    found = []
    for eot in (1, 3, 3):
        keys, logits_fn, images, labels = problem()
        run = attacks.apgd_run("l2", 3, eot=eot, stochastic=True, stop="never")

        def noisy(points, keys, logits_fn=logits_fn):
            noise = jax.vmap(lambda key: jax.random.normal(key, points.shape[1:]))(keys)
            return logits_fn(points + 0.3 * noise)

        state = run.start(keys, None, images, labels, UNTARGETED, jnp.full(4, 0.5))
        found.append(jax.jit(lambda s, run=run, noisy=noisy: run.advance(noisy, s, run.ticks).best)(state))
    np.testing.assert_array_equal(found[1], found[2])
    assert jnp.abs(found[0] - found[1]).max() > 1e-4


def test_averaging_a_deterministic_model_changes_nothing(problem):
    found = []
    for eot in (1, 2):
        keys, logits_fn, images, labels = problem()
        attack = attacks.apgd(epsilon=0.05, steps=4, eot=eot, keep="loss")
        found.append(jax.jit(attack)(keys, logits_fn, images, labels))
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    "loss, classes, instead", [("dlr", 2, "margin"), ("targeted_dlr", 3, "targeted_cross_entropy")]
)
def test_too_few_classes_say_what_to_use_instead(loss, classes, instead, problem):
    keys, logits_fn, images, labels = problem(classes=classes)
    with pytest.raises(ValueError, match=f"{loss}.*model has {classes}; use '{instead}'"):
        attacks.apgd(epsilon=0.1, loss=loss)(keys, logits_fn, images, labels)
    attack = attacks.apgd(epsilon=0.5, loss=instead, steps=5)
    adversarial = jax.jit(attack)(problem(classes=classes)[0], logits_fn, images, labels)
    assert (logits_fn(adversarial).argmax(-1) != labels).any()


def test_restarts_and_targets_only_add_successes(problem):
    keys, logits_fn, images, labels = problem((12, 6, 5, 3))
    count = []
    for restarts, targets in ((1, 1), (2, 3)):
        attack = attacks.apgd(epsilon=0.03, loss="targeted_dlr", steps=8, restarts=restarts, targets=targets)
        keys, *_ = problem((12, 6, 5, 3))
        adversarial = jax.jit(attack)(keys, logits_fn, images, labels)
        broken = logits_fn(adversarial).argmax(-1) != labels
        np.testing.assert_array_equal(adversarial[~broken], images[~broken])
        count.append(int(broken.sum()))
    assert 0 < count[0] <= count[1] < 12


def test_what_is_misclassified_already_comes_back_unchanged(problem):
    keys, logits_fn, images, labels = problem()
    wrong = (labels + jnp.array([1, 0, 1, 0])) % 5
    adversarial = jax.jit(attacks.apgd(epsilon=0.3, steps=5))(keys, logits_fn, images, wrong)
    np.testing.assert_array_equal(adversarial[::2], images[::2])
    assert (adversarial[1::2] != images[1::2]).any()


def test_dlr_is_flat_where_the_label_comes_third():
    """There DLR is 1 whatever the logits; rounding noise in its gradient would turn into full sign steps."""
    logits = jnp.array([[3.1, 2.7, 0.3, -1.2, 0.1]])
    gradient = jax.grad(lambda z: losses.dlr(z, jnp.array([2])).sum())(logits)
    np.testing.assert_array_equal(gradient, jnp.zeros((1, 5)))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"norm": "l3"}, "norm = 'l3'"),
        ({"loss": "targeted_dl"}, "did you mean 'targeted_dlr'"),
        ({"stop": "soon"}, "stop = 'soon'"),
        ({"steps": 0}, "steps = 0"),
        ({"large_radii": True}, "large_radii = True: must be False for norm linf"),
    ],
)
def test_bad_settings_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.apgd_run(**keywords)
