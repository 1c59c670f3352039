"""The masking report names every planted failure, by the program and by what attacks see; honest models are silent."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robust_vit.evaluation import masking, suites, tables
from robust_vit.evaluation.masking import failures, findings
from robust_vit.evaluation.masking.program import true_gradient

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import planted  # noqa: E402

RANK_PROMOTION = "allow"  # of the models that are made here

POINTS = 64
NORM = {"norm": "linf", "epsilon": planted.EPSILON}


@pytest.fixture(scope="module")
def split():
    images, labels = planted.digits()
    return images[:1400], labels[:1400], images[1400 : 1400 + POINTS], labels[1400 : 1400 + POINTS]


@pytest.fixture(scope="module")
def robust(split):
    return planted.train(split[0], split[1], planted.EPSILON)


@pytest.fixture(scope="module")
def weak(split):
    return planted.train(split[0], split[1], 0.0)


@pytest.fixture(scope="module")
def made(split, robust, weak):
    """Report of a defence around the robust model, made once each."""

    @functools.cache
    def make(name):
        params = weak if name == "weak" else robust
        defence = getattr(planted, "honest" if name == "weak" else name)
        other = Partial(planted.honest, weak) if name in ("honest", "bits") else None
        return masking.report(Partial(defence, params), split[2], split[3], transfer_from=other, **NORM)

    return make


def warned(report):
    return {found.name for found in report.warnings}


# What must be named: the operation by the static check, and what an attack sees of it.
NAMED = {
    "bits": {
        "rounding",
        "unavailable_gradients",
        "gradient_mismatch",
        "epsilon_sweep",
        "loss_against_steps",
        "black_box",
    },
    "jpeg": {
        "rounding",
        "unavailable_gradients",
        "gradient_mismatch",
        "epsilon_sweep",
        "loss_against_steps",
        "black_box",
    },
    "temperature": {"unavailable_gradients", "saturated_loss", "cross_entropy_against_dlr"},
    "dropout": {"randomness", "batch_dependence"},
    "stopped": {"stop_gradient", "hidden_gradient", "gradient_mismatch", "epsilon_sweep", "loss_against_steps"},
    "saturated": {"unavailable_gradients", "saturated_activation", "epsilon_sweep", "black_box"},
    "wrong_gradient": {"custom_gradient", "hidden_gradient", "gradient_mismatch", "black_box"},
    "optimised": {"test_time_gradient", "loop_over_image", "black_box"},
    "optimised_until": {"test_time_gradient", "while_loop", "unavailable_gradients", "black_box", "noise"},
}


ALIKE = {"jpeg": "bits", "optimised": "optimised_until"}  # slow, with the one that is found in the same way


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in NAMED])
def test_planted_failure_is_named(made, name):
    report = made(name)
    assert NAMED[name] <= warned(report), report.table()
    assert not report.ok


@pytest.mark.parametrize("name", ["honest", "weak"])
def test_honest_model_is_silent(made, name):
    report = made(name)
    assert report.warnings == (), report.table()
    assert report.ok and "no sign of masked gradients" in report.table()
    assert report["transfer"].verdict == ("ok" if name == "honest" else "skipped")


def test_weak_model_is_weak(made):
    assert made("weak").robust_accuracy < 0.4 < made("honest").robust_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("norm, epsilon", [("l2", 0.6), ("l1", 2.0)])
def test_honest_model_is_silent_in_other_norms(split, robust, norm, epsilon):
    report = masking.report(Partial(planted.honest, robust), split[2], split[3], norm=norm, epsilon=epsilon)
    assert report.warnings == (), report.table()
    assert report["transfer"].verdict == "skipped"


@pytest.mark.slow
def test_honest_bfloat16_is_silent(split, robust):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), robust)
    logits_fn = Partial(lambda p, x: planted.honest(p, x.astype(jnp.bfloat16)).astype(jnp.float32), half)
    report = masking.report(logits_fn, split[2], split[3], **NORM)
    assert report.warnings == (), report.table()


def test_two_classes(split, robust):
    few = split[3] < 2
    report = masking.report(
        Partial(lambda p, x: planted.honest(p, x)[:, :2], robust), split[2][few], split[3][few], **NORM
    )
    assert "cross_entropy_against_margin" in {found.name for found in report.findings}
    assert report.warnings == (), report.table()


def means(split):
    images, labels = split[0].reshape(len(split[0]), -1), split[1]
    return np.stack([images[labels == k].mean(axis=0) for k in range(10)], axis=1) - images.mean()


def test_fresh_randomness_at_every_call_is_seen(split):
    draws, weights = np.random.default_rng(0), {"matrix": jnp.asarray(means(split)), "bias": jnp.zeros(10)}

    def logits_fn(x):  # what the program cannot show: noise from outside of JAX
        return linear(weights, x + 0.1 * draws.standard_normal(x.shape).astype(np.float32))

    report = masking.report(logits_fn, split[2], split[3], **NORM)
    assert "repeatability" in warned(report)
    assert report["batch_dependence"].verdict == "skipped"


def test_harmless_stop_gradient_is_excused(split, robust):
    def shifted(params, x):  # a shift of all logits by a value that is not their maximum: it changes no decision
        z = planted.honest(params, x)
        return z - jax.lax.stop_gradient(jnp.mean(x**2))

    report = masking.report(Partial(shifted, robust), split[2], split[3], **NORM)
    assert report["stop_gradient"].verdict == "ok" and "changes no gradient" in report["stop_gradient"].saw
    assert report.warnings == (), report.table()


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights["matrix"] + weights["bias"]


def test_constant_model_is_not_called_masked(split):
    weights = {"matrix": 1e-3 * jnp.ones((64, 10)), "bias": 50.0 * jax.nn.one_hot(3, 10)}
    report = masking.report(Partial(linear, weights), split[2], split[3], queries=20, **NORM)
    assert report["epsilon_sweep"].verdict == "skipped"


def test_suite_reads_the_first_points_of_the_split(split):
    def batches():
        for rows in (slice(0, 24), slice(24, 48)):
            image = np.round(255 * split[2][rows]).astype(np.uint8)
            yield {"image": image, "label": split[3][rows], "index": np.arange(48)[rows], "mask": np.arange(24) > 0}

    weights = {"matrix": jnp.asarray(means(split)), "bias": jnp.zeros(10)}
    options = {"masking_points": 30, "masking_queries": 20}
    context = suites.Context(Partial(linear, weights), batches, epsilon=0.1, norm="linf", options=options)
    entry = suites.SUITES["masking"](context)
    assert entry["points"] == 30 and entry["epsilon"] == 0.1
    json.dumps(entry, allow_nan=False)
    made = tables.DETAILS["masking"](entry)
    assert made.row_count == len(entry["findings"])


def test_report_is_json_and_text(made):
    report = made("bits")
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["ok"] is False and "rounding" in told["warnings"] and told["points"] == POINTS
    assert {"name", "verdict", "saw", "threshold", "advice", "numbers"} <= set(told["findings"][0])
    table = report.table()
    assert "planted.py" in table and "do:" in table and f"{len(report.warnings)} warnings" in table


@pytest.mark.slow
def test_batch_size_changes_no_verdict(split, robust, made):
    again = masking.report(
        Partial(planted.honest, robust), split[2], split[3], batch_size=25, transfer_from=None, queries=100, **NORM
    )
    for found in made("honest").findings:
        if found.name not in ("transfer", "black_box"):
            other = again[found.name]
            assert other.verdict == found.verdict
            if "accuracy" in found.numbers:
                np.testing.assert_allclose(other.numbers["accuracy"], found.numbers["accuracy"], atol=1.5 / POINTS)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"norm": "linf2"}, "did you mean 'linf'"),
        ({"epsilon": 8.0}, "at most 1"),
        ({"epsilon": 0.0}, "above 0"),
        ({"queries": 0}, "queries = 0"),
    ],
)
def test_bad_arguments_are_named(change, match, split):
    with pytest.raises(ValueError, match=match):
        masking.report(lambda x: x, split[2], split[3], **(NORM | change))


def test_integer_images_and_hopeless_models_are_refused(split):
    with pytest.raises(ValueError, match="images"):
        masking.report(lambda x: x, (split[2] * 255).astype(np.uint8), split[3], **NORM)
    nothing_right = Partial(lambda y, x: -jax.nn.one_hot(y, 10)[: len(x)] + 0 * jnp.sum(x), jnp.asarray(split[3]))
    with pytest.raises(ValueError, match="right at no point"):
        masking.report(nothing_right, split[2], split[3], **NORM)


# --- the parts --------------------------------------------------------------------------------------------------


def test_true_gradient_has_the_values_of_the_model_and_the_derivative_of_the_function(split, robust):
    x, y = jnp.asarray(split[2][:8]), jnp.asarray(split[3][:8])
    logits_fn = Partial(planted.wrong_gradient, robust)
    honest = Partial(planted.honest, robust)
    open_fn = true_gradient.unmasked(logits_fn, x)
    np.testing.assert_allclose(open_fn(x), logits_fn(x), rtol=1e-6)
    total = lambda f: jax.grad(lambda v: jnp.sum(f(v) ** 2))(x)  # noqa: E731
    np.testing.assert_allclose(total(open_fn), total(honest), rtol=1e-4, atol=1e-5)
    assert np.all(true_gradient.compare(honest, x, y) == 0)


def test_true_gradient_walks_loops_and_branches(split):
    def f(x):
        step = lambda c, t: (c + jax.lax.stop_gradient(c) * t, c[:, 0, 0])  # noqa: E731
        last, seen = jax.lax.scan(step, x, jnp.arange(1.0, 3.0))
        kept = jax.lax.cond(x[0, 0, 0, 0] > 0.5, jnp.sin, jax.lax.stop_gradient, last)
        return kept.reshape(len(x), -1) + jnp.sum(seen, axis=0)

    x = jnp.asarray(split[2][:4])
    np.testing.assert_allclose(true_gradient.unmasked(f, x)(x), f(x), rtol=1e-6)
    g = jax.grad(lambda v: jnp.sum(true_gradient.unmasked(f, x)(v)))(x)
    np.testing.assert_allclose(g[:, 1:], 6.0, rtol=1e-6)  # (1 + 1) (1 + 2) through the loop, nothing from `seen`


def test_incomplete_optimisation_asks_surviving_points_only():
    t = np.linspace(0.0, 1.0, 31)[:, None]
    rising, settled = np.repeat(t, 10, axis=1), np.repeat(np.minimum(4 * t, 1), 10, axis=1)
    nobody = np.zeros(10, bool)
    assert failures.incomplete_optimisation(rising, nobody).verdict == "warning"
    assert failures.incomplete_optimisation(settled, nobody).verdict == "ok"
    assert failures.incomplete_optimisation(rising, ~nobody).verdict == "skipped"


def test_loss_must_climb():
    t = np.linspace(0.0, 1.0, 31)[:, None] * np.ones((1, 4))
    assert failures.loss_against_steps(t).verdict == "ok"
    assert failures.loss_against_steps(1 - t).verdict == "warning"
    assert failures.loss_against_steps(0 * t).verdict == "warning"
    assert failures.loss_against_steps(np.sin(3 * t)).verdict == "warning"


def test_silent_success_and_sweep():
    wrong = np.zeros((5, 20), bool)
    wrong[2, :4] = True
    assert failures.silent_success(wrong).verdict == "warning"
    wrong[-1, :4] = True
    assert failures.silent_success(wrong).verdict == "ok"
    assert failures.epsilon_sweep([1, 2, 3], [0.5, 0.1, 0.0]).verdict == "ok"
    assert failures.epsilon_sweep([1, 2, 3], [0.5, 0.1, 0.1]).verdict == "warning"
    assert failures.epsilon_sweep([1, 2, 3], [0.1, 0.5, 0.0]).verdict == "warning"


def test_gradient_mismatch_judges_signal_only():
    rng = np.random.default_rng(0)
    slope, scale = rng.normal(size=(2, 8, 20)), np.ones(20)
    assert findings.gradient_mismatch(slope, slope, scale, 1e-7).verdict == "ok"
    assert findings.gradient_mismatch(slope, 0 * slope, scale, 1e-7).verdict == "warning"
    assert findings.gradient_mismatch(1e-9 * slope, 0 * slope, scale, 1e-7).verdict == "skipped"


def test_weaker_attack_may_not_win():
    none, some = np.zeros(100, bool), np.arange(100) < 5
    judge = functools.partial(failures.weaker_attack_wins, "black_box", "Square", advice="")
    assert judge(wins=some, loses=none).verdict == "warning"
    assert judge(wins=some, loses=some).verdict == "ok"
    assert judge(wins=none, loses=none).verdict == "ok"
