"""Defences planted inside a vision transformer: each is named, and what can be passed through is undone."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robust_vit import attacks, models
from robust_vit.attacks.straight_through import passes
from robust_vit.evaluation import masking
from robust_vit.evaluation.masking import checks, probes
from robust_vit.evaluation.masking.program import lint

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
import planted_vit as planted  # noqa: E402
from tiny import TINY  # noqa: E402

RANK_PROMOTION = "allow"  # of the models that are made here

IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)

# What the static check names, and where; the other defences leave no sign in the program.
STATIC = {
    "half_stopped": {"stop_gradient"},
    "mean_sparse": {"dead_zone"},
    "winners": {"winners_take_all"},
    "eight_levels": {"rounding"},
    "bits": {"integer_cast"},
    "hash_gate": {"hash_gate"},
    "abstaining": {"dead_zone"},
    "never_returns": {"while_loop"},
    "wrong_gradient": {"custom_gradient"},
    "rounded activations": {"rounding"},
    "stopped attention": {"stop_gradient"},
    "purified": {"test_time_gradient", "loop_over_image", "sign"},
    "noisy": {"randomness"},
}
PASSED = set(STATIC) - {"noisy"}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", STATIC)
def test_operation_inside_the_transformer_is_named(name, scan):
    logits_fn = planted.defended(name, scan)
    warned = [item for item in lint.check(logits_fn, IMAGES) if item.severity == "warning"]
    assert {item.kind for item in warned} == STATIC[name]
    if name not in ("purified", "stopped attention"):
        assert all("planted_vit.py" in item.where or item.kind == "custom_gradient" for item in warned)
    assert bool(passes(logits_fn, IMAGES)) == (name in PASSED)


FORMS = [{"scan": True}, {"remat": True}, {"dtype": jnp.bfloat16}, {"attention": "xla"}]


@pytest.mark.parametrize("family, fields", [*((name, {}) for name in TINY), *(("vit", form) for form in FORMS)])
def test_honest_families_are_silent(family, fields):
    module = models.build(family, **TINY[family], **fields)
    shape = (2, *models.image_shape(module))
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros(shape)), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    logits_fn, images = models.logits_fn(module, variables), jax.ShapeDtypeStruct(shape, jnp.float32)
    assert [item for item in lint.check(logits_fn, images) if item.severity == "warning"] == []
    assert passes(logits_fn, images) == ()


@functools.cache
def robust_accuracy():
    """A compiled (logits_fn attacked, logits_fn judged) -> accuracy under PGD on the test points."""
    images, labels = (jnp.asarray(part[1400:]) for part in planted.digits())
    attack = attacks.pgd(norm="linf", epsilon=planted.EPSILON, steps=20, keep="success")

    @jax.jit
    def measure(attacked, judged):
        return jnp.mean(judged(attack(7, attacked, images, labels)).argmax(-1) == labels)

    return measure


def test_mean_sparse_raises_the_figure_and_straight_through_takes_it_back():
    """As on published leaderboards: a gain of a few points under the standard attack, all of it masking."""
    honest, sparse, accuracy = planted.honest(), planted.defended("mean_sparse"), robust_accuracy()
    base, raised = accuracy(honest, honest), accuracy(sparse, sparse)
    adaptive = accuracy(attacks.straight_through(sparse), sparse)
    assert raised >= base + 0.01 and adaptive <= base and adaptive <= raised - 0.01


@pytest.mark.parametrize("name, gain", [("eight_levels", 0.15), ("bits", 0.15), ("wrong_gradient", 0.15)])
@pytest.mark.slow
def test_hidden_gradient_raises_the_figure_and_straight_through_takes_it_back(name, gain):
    honest, hidden, accuracy = planted.honest(), planted.defended(name), robust_accuracy()
    masked, adaptive = accuracy(hidden, hidden), accuracy(attacks.straight_through(hidden), hidden)
    assert masked >= adaptive + gain and abs(adaptive - accuracy(honest, honest)) < 0.06


def test_a_detector_that_never_returns_is_named_by_a_report_that_does():
    images, labels = (part[1400:1432] for part in planted.digits())
    for name, verdict in (("never_returns", ["warning"]), ("eight_levels", [])):
        logits_fn = planted.defended(name)
        points = checks.ending(probes.Sample(logits_fn, images, labels, np.arange(32), 0, 32))
        found = checks.endless_loop(points, logits_fn, "linf", planted.EPSILON)
        assert [one.verdict for one in found] == verdict


NAMED = {
    **{name: STATIC[name] for name in STATIC},
    "mean_sparse": {"dead_zone"},
    "eight_levels": {"rounding", "straight_through", "unavailable_gradients"},
    "bits": {"integer_cast", "straight_through"},
    "wrong_gradient": {"custom_gradient", "hidden_gradient", "straight_through"},
    "half_stopped": {"stop_gradient", "hidden_gradient"},
    "probabilities": {"probabilities_as_logits"},
    "temperature": {"saturated_loss"},
    "never_returns": {"while_loop", "endless_loop"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_report_names_the_cause(name):
    images, labels = (part[1400:1528] for part in planted.digits())
    report = masking.report(planted.defended(name), images, labels, norm="linf", epsilon=planted.EPSILON, queries=200)
    assert NAMED[name] <= {found.name for found in report.warnings}, report.table()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"scan": True}, {"dtype": jnp.bfloat16}])
def test_honest_transformer_is_silent(fields):
    images, labels = (part[1400:1528] for part in planted.digits())
    logits_fn = planted.honest(**fields)
    report = masking.report(logits_fn, images, labels, norm="linf", epsilon=planted.EPSILON, queries=200)
    assert report.warnings == (), report.table()
    assert report["straight_through"].verdict == "skipped"


def test_probabilities_and_integers_are_named():
    """On a linear model, whose report is quick."""
    images, labels = (part[1400:1440] for part in planted.digits())
    train, classes = planted.digits()[0][:1400].reshape(1400, -1), planted.digits()[1][:1400]
    means = jnp.asarray(np.stack([train[classes == k].mean(axis=0) for k in range(10)], axis=1) - train.mean())
    linear = Partial(lambda matrix, x: x.reshape(len(x), -1) @ matrix, means)
    few = {"norm": "linf", "epsilon": 0.05, "queries": 5, "steps": 5}
    soft = masking.report(lambda x: jax.nn.softmax(linear(x)), images, labels, **few)
    assert "probabilities_as_logits" in {found.name for found in soft.warnings}
    whole = masking.report(lambda x: (100 * linear(x)).astype(jnp.int32), images, labels, **few)
    names = {found.name for found in whole.warnings}
    assert {"integer_cast", "unavailable_gradients"} <= names and "probabilities_as_logits" not in names
    assert whole["straight_through"].numbers["through"] <= whole["straight_through"].numbers["without"]
    for wrong in (lambda x: linear(x)[:1], lambda x: (linear(x), 0), lambda x: linear(x).astype(jnp.complex64)):
        with pytest.raises(ValueError, match="logits"):
            masking.report(wrong, images, labels, **few)
