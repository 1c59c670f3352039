"""What every objective promises by being registered."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from objective_case import EPSILON, logits

from robust_vit import attacks, objectives
from robust_vit.attacks.losses import as_labels
from robust_vit.objectives.passes import own_keys

NAMES = objectives.names()
ATTACKLESS = objectives.WITHOUT_ATTACK
TWO_PASSES = [name for name in NAMES if "statistics" in objectives.options(name)]
# Those that draw something themselves, and the keywords with which they do.
DRAWING = {"adversarial": dict(grad_align=0.5, epsilon=EPSILON), "mixed": dict(passes=1)}


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_loss_an_example_and_the_attack_once_at_most(case, name):
    outcome = case.run(name, objectives.build(name))
    assert outcome.loss.shape == (6,) and outcome.loss.dtype == jnp.float32 and jnp.isfinite(outcome.loss).all()
    assert len(case.told) == (name not in ATTACKLESS)
    if name in ATTACKLESS:
        assert outcome.attacked is None and outcome.adversarial_logits is None
    else:
        np.testing.assert_array_equal(outcome.attacked, case.attack(None, None, jnp.asarray(case.x), None))
    for z, images in ((outcome.clean_logits, case.x), (outcome.adversarial_logits, outcome.attacked)):
        if z is not None:
            np.testing.assert_allclose(z, logits(case.w, jnp.asarray(images)), rtol=1e-6)
    assert outcome.clean_logits is not None or outcome.adversarial_logits is not None


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_finite_also_where_nothing_was_attacked(case, name, strength):
    def mean(w):
        return case.run(name, objectives.build(name), w, strength=strength).loss.mean()

    gradient = jax.grad(mean)(case.w)
    assert all(jnp.isfinite(g).all() and jnp.abs(g).max() > 0 for g in gradient)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_not_depend_on_its_batch(case, name):
    objective = objectives.build(name, **DRAWING.get(name, {}))
    before = case.run(name, objective, targets=case.soft).loss
    case.x[3:], case.soft[3:] = case.x[:3] ** 2, case.soft[:3]
    np.testing.assert_allclose(case.run(name, objective, targets=case.soft).loss[:3], before[:3], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_remembered_keeps_its_shape(case, name):
    memory = objectives.memory(name, 4)
    outcome = case.run(name, objectives.build(name), memory=memory)
    if name not in objectives.MEMORIES:
        assert memory == () and outcome.memory == ()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), memory) == jax.tree.map(
        lambda x: (x.shape, x.dtype), outcome.memory
    )


@pytest.mark.parametrize("name", sorted(objectives.TEACHERS))
def test_the_teacher_is_frozen_and_sees_clean_images(case, name):
    shown = []

    def teacher(w, images):
        shown.append(images)
        return logits(w, images)

    def mean(w):
        return case.run(name, objectives.build(name), teacher=Partial(teacher, w)).loss.mean()

    assert not any(jnp.any(g) for g in jax.grad(mean)(case.teacher))
    attacked = case.attack(None, None, jnp.asarray(case.x), None)
    np.testing.assert_array_equal(
        shown[0], attacked if name == "hat" else case.x
    )  # HAT's helper names what is attacked
    with pytest.raises(ValueError, match="^objective.teacher: must be given"):
        case.run(name, objectives.build(name), teacher=None)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in objectives.TEACHERS])
def test_no_teacher_is_asked_for_where_none_is_needed(case, name):
    case.run(name, objectives.build(name), teacher=None)


@pytest.mark.parametrize("name", sorted(set(NAMES) - ATTACKLESS - {"rslad"}))
def test_the_attack_leads_away_from_the_label_or_from_the_prediction(case, name):
    """The clean prediction must be told to it exactly for those that say so: they need a random start."""
    case.run(name, objectives.build(name))
    own = jax.nn.softmax(logits(case.w, jnp.asarray(case.x)))
    away = name in objectives.AWAY_FROM_PREDICTION
    np.testing.assert_allclose(case.told[0], own if away else case.y, rtol=1e-6)


def test_rslad_attacks_away_from_the_soft_label_of_its_teacher(case):
    case.run("rslad", objectives.build("rslad"))
    np.testing.assert_allclose(case.told[0], jax.nn.softmax(logits(case.teacher, jnp.asarray(case.x))), rtol=1e-6)


@pytest.mark.parametrize("statistics", ["clean", "adversarial", "both"])
@pytest.mark.parametrize("name", TWO_PASSES)
def test_which_pass_moves_the_running_averages(case, name, statistics):
    """The pass that counts sees the averages it should, and returns them with its own count alone."""
    outcome = case.run(name, objectives.build(name, statistics=statistics))
    assert outcome.statistics == (1 if statistics != "both" else 3 if name == "hat" else 2)
    with pytest.raises(ValueError, match="^objective.statistics = 'all': must be one of adversarial, both, clean"):
        objectives.build(name, statistics="all")


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TWO_PASSES)))
def test_one_pass_moves_them_once(case, name):
    assert case.run(name, objectives.build(name, **DRAWING.get(name, {}))).statistics == 1


@pytest.mark.parametrize("name", DRAWING)
def test_what_an_objective_draws_is_not_what_the_attack_draws(case, name):
    """Under JAX's check of keys that are used twice, with an attack that uses the keys up."""

    def attack(keys, logits_fn, images, targets, strength=1.0):
        noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-1.0))(keys)
        return jnp.clip(images + EPSILON * noise, 0.0, 1.0)

    objective = objectives.build(name, **DRAWING[name])
    outcome = jax.jit(lambda w: case.run(name, objective, w, attack=attack))(case.w)
    assert jnp.isfinite(outcome.loss).all()
    keys = case.keys()
    data = [np.asarray(jax.random.key_data(k)) for k in (own_keys(keys), case.keys())]
    assert not np.intersect1d(*data).size


def test_draws_belong_to_the_example_and_change_with_its_key(case):
    objective = objectives.build("mixed", passes=1, share=0.5)

    def replaced(keys):
        given = (keys, jnp.asarray(case.x), jnp.asarray(case.y))
        seen = []

        def forward(images, statistics):
            seen.append(jnp.any(images != case.x, axis=(1, 2, 3)))
            return logits(case.w, images), statistics

        objective(forward, 0, Partial(logits, case.w), case.attack, *given)
        return seen[0]

    np.testing.assert_array_equal(replaced(case.keys()), replaced(case.keys()))
    others = [replaced(jax.random.split(jax.random.key(i), 6)) for i in range(20)]
    assert 0.3 < np.mean(others) < 0.7 and len({tuple(np.asarray(one)) for one in others}) > 5


@pytest.mark.parametrize("name", sorted(objectives.AWAY_FROM_PREDICTION))
def test_every_registered_attack_that_starts_at_random_leaves_the_image(case, name):
    attack = attacks.pgd(norm="linf", epsilon=EPSILON, step_size=EPSILON, steps=1, keep="last")
    outcome = case.run(name, objectives.build(name), attack=attack)
    assert jnp.all(jnp.max(jnp.abs(outcome.attacked - case.x), axis=(1, 2, 3)) > 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_factory_is_told_in_words(name):
    made = inspect.getdoc(objectives.OBJECTIVES[name])
    assert made.startswith("Minimises ")
    arguments = made.partition("Args:")[2]
    assert all(keyword in arguments for keyword in objectives.options(name)), name


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("mart", dict(beta=-1), "objective.beta = -1: must be >= 0"),
        ("hat", dict(h=0), "objective.h = 0: must be > 0"),
        ("gkl", dict(temperature=0), "objective.temperature = 0: must be > 0"),
        ("gkl", dict(gamma=-0.1), "objective.gamma = -0.1: must be >= 0"),
        ("mixed", dict(share=1.5), r"objective.share = 1.5: must be in \[0, 1\]"),
        ("mixed", dict(passes=3), "objective.passes = 3: must be 1 or 2"),
        ("mixed", dict(passes=1, statistics="clean"), "objective.statistics = 'clean': must be 'both' with one pass"),
        ("rslad", dict(alpha=2.0), r"objective.alpha = 2.0: must be in \[0, 1\]"),
        ("score_trades", dict(clip=-0.1), "objective.clip = -0.1: must be >= 0"),
        ("adversarial", dict(grad_align=-0.2), "objective.grad_align = -0.2: must be >= 0"),
        ("gradient_norm", dict(norm="l3"), "norm = 'l3': must be one of"),
        ("gradient_norm", dict(epsilon=8), "epsilon = 8: must be at most 1"),
    ],
)
def test_values_out_of_range_are_one_line(name, keywords, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        objectives.build(name, **keywords)
    assert "\n" not in str(error.value)


def test_a_smoothing_that_would_pass_the_uniform_distribution_is_refused(case):
    with pytest.raises(ValueError, match=r"objective.label_smoothing = 0.8: must be at most 1 - 1/K = 0.75"):
        case.run("score_adversarial", objectives.build("score_adversarial", label_smoothing=0.8))


def test_labels_of_the_hard_teacher_are_its_classes(case):
    z = logits(case.teacher, jnp.asarray(case.x))
    assert len(set(np.asarray(as_labels(z)).tolist())) > 1  # or the oracle's argmax would prove nothing
