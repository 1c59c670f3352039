"""The evaluation's promises: one answer whatever the batch, the order, the devices, and however often it is killed."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import evaluation, locks, models, parallel
from robust_vit.attacks.autoattack.apgd import apgd_run
from robust_vit.evaluation import autoattack, canary
from robust_vit.evaluation.autoattack import ensembles, runs
from robust_vit.evaluation.autoattack.quick import gap
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.scheduling import tile

RANK_PROMOTION = "allow"  # of the models that are made here

PARTS = ["square", "apgd-ce", "apgd-t"]  # the weakest first, so that each breaks some
SETTINGS = {"apgd-ce": {"steps": 1, "restarts": 2}, "apgd-t": {"steps": 6, "targets": 3}, "square": {"queries": 30}}
BUDGET = {"norm": "linf", "epsilon": 0.03, "version": PARTS, "settings": SETTINGS, "tile": 8, "forward_tile": 16}


def network(parameters, images):
    hidden = jnp.tanh((images.reshape(len(images), -1) - 0.5) @ parameters["in"])
    return hidden @ parameters["out"]


def make(classes=5, shape=(6, 5, 2), count=30, seed=5):
    """A small random network, points of which most are classified correctly, their labels."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    parameters = {"in": rng.normal(size=(size, 16)) / np.sqrt(size) * 3, "out": rng.normal(size=(16, classes))}
    logits_fn = jax.tree_util.Partial(network, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters))
    images = rng.uniform(size=(count, *shape)).astype(np.float32)
    labels = np.asarray(logits_fn(images).argmax(-1)).astype(np.int32)
    labels[:2] = (labels[:2] + 1) % classes
    return logits_fn, images, labels


@pytest.fixture(scope="module")
def problem():
    return make()


@pytest.fixture(scope="module")
def reference(problem):
    result = autoattack(*problem, **BUDGET)
    kinds = {row.attack: row.broken for row in result.rows}
    assert kinds["clean"] == 2
    assert min(kinds.values()) > 0 and result.robust.sum() > 3, kinds  # or the tests below show little
    return result


def assert_same(result, expected, order=slice(None)):
    np.testing.assert_array_equal(result.robust, expected.robust[order])
    np.testing.assert_array_equal(result.status, expected.status[order])
    assert result.broken_by == list(np.array(expected.broken_by)[order])
    np.testing.assert_allclose(result.adversarial, expected.adversarial[order], atol=1e-5)
    assert [(row.attack, row.points, row.broken) for row in result.rows] == [
        (row.attack, row.points, row.broken) for row in expected.rows
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(problem, reference, batch_size):
    assert_same(autoattack(*problem, **BUDGET, batch_size=batch_size), reference)


def test_order_changes_nothing(problem, reference):
    logits_fn, images, labels = problem
    order = np.random.default_rng(1).permutation(len(labels))
    assert_same(autoattack(logits_fn, images[order], labels[order], **BUDGET, indices=order), reference, order)


def test_devices_change_nothing(problem, reference):
    assert_same(autoattack(*problem, **BUDGET, mesh=parallel.mesh(8)), reference)


def test_a_point_alone_meets_the_same_end(problem, reference):
    logits_fn, images, labels = problem
    row = int(np.flatnonzero(reference.status == "broken")[-1])
    alone = autoattack(logits_fn, images[row : row + 1], labels[row : row + 1], **BUDGET, indices=np.array([row]))
    assert alone.broken_by == [reference.broken_by[row]]
    np.testing.assert_allclose(alone.adversarial[0], reference.adversarial[row], atol=1e-5)


def test_the_seed_matters(problem, reference):
    assert not np.array_equal(autoattack(*problem, **BUDGET, seed=1).adversarial, reference.adversarial)


class Stop(Exception):
    pass


def stop_after(count):
    seen = []

    def on_event(event):
        seen.append(event)
        if sum(e["event"] == "outcome" for e in seen) >= count:
            raise Stop

    return on_event


def test_stopped_and_resumed_gives_the_same(problem, reference, tmp_path):
    for count in (3, 17, 9):
        with pytest.raises(Stop):
            autoattack(*problem, **BUDGET, workdir=tmp_path, batch_size=4, on_event=stop_after(count))
    result = autoattack(*problem, **BUDGET, workdir=tmp_path, batch_size=64)
    assert_same(result, reference)
    assert any("resumed" in note for note in result.notes)
    again = autoattack(*problem, **BUDGET, workdir=tmp_path)  # nothing is left to do
    assert_same(again, reference)
    assert sum(row.gradients + row.forwards for row in again.rows if row.attack != "clean") == 0


SCRIPT = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import conftest, test_autoattack as t
def on_event(event, seen=[]):
    seen.append(event["event"])
    if seen.count("outcome") == 20:
        os.kill(os.getpid(), signal.SIGKILL)
t.autoattack(*t.make(), **t.BUDGET, workdir=sys.argv[3], batch_size=6, on_event=on_event)
"""


def test_killed_and_resumed_gives_the_same(problem, reference, tmp_path):
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, str(here), str(here.parents[1]), str(tmp_path)]
    root = str(here.parents[2])
    ended = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"index": 3, "att')  # the line that was being written
    result = autoattack(*problem, **BUDGET, workdir=tmp_path)
    assert_same(result, reference)
    assert any("resumed" in note for note in result.notes)


def test_early_stopping_changes_no_flag(problem):
    """Against the same attack that never stops, and starts every point afresh."""
    logits_fn, images, labels = problem
    names = np.ones(len(labels), np.uint32)
    keys = tile.item_keys(
        jax.random.key(0), ensembles.CODES["apgd-ce"] * names, np.arange(len(labels)), 0 * names, 0 * names
    )
    run = apgd_run("linf", steps=20, stop="never")
    state = run.start(
        keys,
        logits_fn,
        jnp.asarray(images),
        jnp.asarray(labels),
        -jnp.ones(len(labels), int),
        jnp.full(len(labels), 0.035),
    )
    state = jax.jit(lambda state: run.advance(logits_fn, state, run.ticks))(state)
    correct = np.asarray(logits_fn(images).argmax(-1)) == labels
    result = autoattack(
        logits_fn, images, labels, norm="linf", epsilon=0.035, version=["apgd-ce"], settings={"apgd-ce": {"steps": 20}}
    )
    np.testing.assert_array_equal(result.robust, correct & ~np.asarray(state.broken))


SLOWER = [pytest.param(classes, marks=pytest.mark.slow) for classes in (4, 10, 1000)]  # none that the others lack


@pytest.mark.parametrize("classes", [2, 3, 9, *SLOWER])
def test_any_number_of_classes(classes):
    logits_fn, images, labels = make(classes, shape=(4, 4, 1), count=6)
    settings = {"apgd-ce": {"steps": 2}, "apgd-t": {"steps": 2}, "fab-t": {"steps": 2}, "square": {"queries": 4}}
    result = autoattack(logits_fn, images, labels, norm="linf", epsilon=0.01, settings=settings, tile=8, forward_tile=8)
    assert [row.attack for row in result.rows] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert any("targets" in note for note in result.notes) == (classes < 10)
    assert any("loss" in note for note in result.notes) == (classes < 4)
    assert result.robust.sum() > 0


@pytest.mark.parametrize("norm, epsilon", [("l2", 0.3), ("l1", 2.0)])
def test_other_balls_and_dlr(problem, norm, epsilon):
    settings = {"apgd-dlr": {"steps": 8}, "fab-t": {"steps": 5, "targets": 2}, "square": {"queries": 10}}
    result = autoattack(*problem, norm=norm, epsilon=epsilon, version=[*settings], settings=settings, tile=8)
    assert 0 < (result.status == "broken").sum()
    assert result.verification.confirmed.all()


def test_epsilon_of_each_point(problem):
    epsilon = np.where(np.arange(30) % 2, 1e-4, 0.1)
    result = autoattack(
        *problem, **{**BUDGET, "epsilon": epsilon, "version": ["apgd-ce"], "settings": {"apgd-ce": {"steps": 5}}}
    )
    assert (result.status[3::2] == "robust").all()
    assert (result.status[2::2] == "broken").mean() > 0.8


def not_finite_above(parameters, images):
    """A network that overflows where the mean of an image is high, and is honest elsewhere."""
    logits = network(parameters, images)
    bad = images.mean((1, 2, 3)) > 0.52
    return jnp.where(bad[:, None], jnp.nan, logits)


def test_logits_that_are_not_numbers_are_a_status_of_their_own(problem):
    logits_fn, images, labels = problem
    broken_model = jax.tree_util.Partial(not_finite_above, *logits_fn.args)
    clean_bad = images.mean((1, 2, 3)) > 0.52
    assert 0 < clean_bad.sum() < 15
    result = autoattack(broken_model, images, labels, **BUDGET)
    assert (result.status[clean_bad] == "non-finite logits").all()
    assert not (result.robust | (result.status == "broken"))[clean_bad].any()
    assert sum("not finite" in note for note in result.notes) >= 1
    assert result.verification.confirmed.all()
    counts = result.to_dict()["counts"]
    assert sum(counts.values()) == 30 and counts["non-finite logits"] >= clean_bad.sum()


def test_suspicious_models_are_noted(problem):
    logits_fn, images, labels = problem
    soft = jax.tree_util.Partial(lambda p, x: jax.nn.softmax(network(p, x)), *logits_fn.args)
    settings = {"apgd-ce": {"steps": 2}}
    notes = autoattack(soft, images, labels, norm="linf", epsilon=0.01, version=["apgd-ce"], settings=settings).notes
    assert any("probabilities" in note for note in notes)
    stuck = jax.tree_util.Partial(lambda p, x: network(p, jnp.round(x * 8) / 8), *logits_fn.args)
    notes = autoattack(stuck, images, labels, norm="linf", epsilon=0.01, version=["apgd-ce"], settings=settings).notes
    assert any("gradient of exactly zero" in note for note in notes)
    draws = np.random.default_rng(0)

    def restless(parameters, x):
        noise = jax.pure_callback(
            lambda: draws.normal(size=()).astype(np.float32), jax.ShapeDtypeStruct((), jnp.float32)
        )
        return network(parameters, x) + noise * jnp.arange(5)

    restless = jax.tree_util.Partial(restless, *logits_fn.args)
    settings = {"square": {"queries": 2}}
    notes = autoattack(restless, images, labels, norm="linf", epsilon=0.01, version=["square"], settings=settings).notes
    assert any("randomised" in note for note in notes)


def noisy(parameters, images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return network(parameters, images + 0.01 * noise)


def test_a_stochastic_model_is_averaged_over(problem):
    logits_fn, images, labels = problem
    model = jax.tree_util.Partial(noisy, *logits_fn.args)
    settings = {"apgd-ce": {"steps": 3, "eot": 3}, "apgd-dlr": {"steps": 3, "eot": 3}}
    result = autoattack(
        model, images, labels, norm="linf", epsilon=0.05, version="rand", settings=settings, stochastic=True
    )
    assert 0 < result.robust_accuracy < result.clean_accuracy
    assert result.rows[1].gradients % 3 == 0


def coarse(parameters, images):
    """The network as a low precision would see it: another decision here and there."""
    return jnp.round(network(parameters, images) * 4) / 4 + 1e-3 * network(parameters, images)


def test_low_precision_attacks_are_judged_in_float32(problem):
    logits_fn, images, labels = problem
    low = jax.tree_util.Partial(coarse, *logits_fn.args)
    result = autoattack(*problem, **BUDGET, compute_dtype="bfloat16", attack_logits_fn=low)
    broken = result.status == "broken"
    predicted = np.asarray(logits_fn(result.adversarial).argmax(-1))
    assert (predicted[broken] != labels[broken]).all() and (predicted[result.robust] == labels[result.robust]).all()
    assert result.claimed_robust <= result.robust.sum()
    assert "bfloat16" in result.table()


@pytest.mark.slow
def test_a_model_is_attacked_in_bfloat16_by_its_field():
    """Any of our models can be attacked in low precision: the same weights, computing in another dtype."""
    module = models.build("vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=4)
    logits_fn = models.logits_fn(module, models.init(module, jax.random.key(0)))
    images = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)
    low = runs.in_dtype(logits_fn, "bfloat16")
    assert low.func.module.dtype == jnp.bfloat16 and low.args is not None
    apart = np.abs(np.asarray(low(images), np.float32) - np.asarray(logits_fn(images))).max()
    assert 0 < apart < 0.1
    labels = np.asarray(logits_fn(images).argmax(-1))
    settings = {"norm": "linf", "epsilon": 0.1, "version": ["apgd-ce"], "budget": 0.03}
    result = autoattack(logits_fn, images, labels, **settings, compute_dtype="bfloat16")
    predicted = np.asarray(logits_fn(result.adversarial).argmax(-1))
    np.testing.assert_array_equal(predicted == labels, result.robust)


def test_stronger_and_cheaper_parts(problem, reference):
    settings = {"apgd-malt": {"steps": 6, "targets": 2}, "apgd-pma": {"steps": 6}, "pgd": {"steps": 8}}
    result = autoattack(*problem, **{**BUDGET, "version": [*settings], "settings": settings})
    assert [row.attack for row in result.rows] == ["clean", *settings]
    assert (result.status == "broken").sum() >= (reference.status == "broken").sum() - 2


def test_malt_ranks_by_the_distance_of_the_linear_boundary():
    """On a linear model MALT's order is that of the exact distances to the boundaries."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 6)).astype(np.float32) * rng.uniform(0.1, 3, 6).astype(np.float32)
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights))
    images = rng.uniform(size=(5, 2, 3, 2)).astype(np.float32)
    logits = np.asarray(logits_fn(images))
    labels = logits.argmax(1)
    points = Points(images, labels, np.ones(5, np.float32), np.arange(5))
    part = ensembles.part("apgd-malt")
    order = runs.targets(part, logits_fn, points, logits, "linf", 4, np.ones(5, bool))
    for row, label in enumerate(labels):
        others = [c for c in range(6) if c != label]
        distance = [
            (logits[row, label] - logits[row, c]) / np.abs(weights[:, label] - weights[:, c]).sum() for c in others
        ]
        assert list(order[row]) == [others[i] for i in np.argsort(distance)]


def test_quick_is_an_upper_bound_and_its_gap_is_told(problem):
    quick = autoattack(*problem, norm="linf", epsilon=0.035, version="quick", tile=8)
    full = autoattack(*problem, **BUDGET)
    assert "quick" in gap(quick, full) and "points" in gap(quick, full)


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_versions_have_the_reference_settings(version, norm):
    parts = ensembles.parts(version, norm)
    items = {part.name: len(part.items) for part in parts}
    if version == "standard":
        assert list(items) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert items == {
            "apgd-ce": 5 if norm == "l1" else 1,
            "apgd-t": 5 if norm == "l1" else 9,
            "fab-t": 9,
            "square": 1,
        }
        assert [part.large_radii for part in parts] == [norm == "l1"] * 2 + [False] * 2
    elif version == "plus":
        assert items == {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}
        assert list(items) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    else:
        assert [(part.name, part.eot) for part in parts] == [("apgd-ce", 20), ("apgd-dlr", 20)]
    assert all(part.steps == (5000 if part.name == "square" else 100) for part in parts)


def test_the_report_says_it_all(reference):
    table = reference.table()
    for word in ("apgd-ce", "apgd-t", "square", "95 % interval", "clean accuracy", "robust accuracy", "confirmed"):
        assert word in table
    low, high = reference.robust_interval
    assert low < reference.robust_accuracy < high
    told = json.loads(json.dumps(reference.to_dict()))
    assert told["robust_accuracy"] == reference.robust_accuracy
    assert told["header"]["weights"] and told["header"]["packages"]["jax"] == jax.__version__
    assert len(told["points"]) == 30
    assert [row["attack"] for row in told["rows"]] == ["clean", *PARTS]
    assert reference.rows[1].forwards > 0 and reference.rows[2].gradients > 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"norm": "l3"}, "norm"),
        ({"epsilon": 8}, "epsilon"),
        ({"version": "standart"}, "standard"),
        ({"version": ["apgd-cee"]}, "apgd-ce"),
        ({"settings": {"square": {"querys": 3}}}, "quer"),
        ({"settings": {"fab": {"steps": 3}}}, "fab"),
        ({"batch_size": 0}, "batch_size"),
        ({"compute_dtype": "int8"}, "compute_dtype"),
        ({"compute_dtype": "bfloat16"}, "attack_logits_fn"),
        ({"indices": np.zeros(30, int)}, "indices"),
        ({"budget": 0}, "budget"),
        ({"epsilon": np.nan}, "epsilon"),
        ({"epsilon": "8/255"}, "epsilon"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"indices": np.arange(30) + 2**31}, "index"),
        ({"indices": np.arange(30) + 0.5}, "indices"),
        ({"tile": 0}, "tile"),
        ({"forward_tile": 1.5}, "forward_tile"),
    ],
)
def test_errors_name_the_field(problem, wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        autoattack(*problem, **{**BUDGET, **wrong})
    assert "\n" not in str(error.value)


def test_images_outside_the_box_are_refused(problem):
    logits_fn, images, labels = problem
    with pytest.raises(ValueError, match="images"):
        autoattack(logits_fn, images * 255, labels, **BUDGET)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda z: z.astype(jnp.int32), "logits.dtype"),
        (lambda z: z[:1], "logits.shape"),
        (lambda z: jnp.concatenate([z, z[:1]]), "logits.shape"),
        (lambda z: z[:, :1], "logits.shape"),
        (lambda z: (z, z), "logits_fn"),
        (lambda z: None, "logits_fn"),
    ],
)
def test_what_is_no_logits_is_refused_before_anything_compiles(problem, change, message, tmp_path):
    logits_fn, images, labels = problem
    with pytest.raises(ValueError, match=message) as error:
        autoattack(lambda x: change(logits_fn(x)), images, labels, **BUDGET, workdir=tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_classes_are_refused(problem, label):
    logits_fn, images, labels = problem
    with pytest.raises(ValueError, match=rf"labels = {label}: must be in \[0, 5\)"):
        autoattack(logits_fn, images, np.where(np.arange(30) == 3, label, labels), **BUDGET)


SHORT = {"norm": "linf", "epsilon": 0.03, "version": ["apgd-ce"], "settings": {"apgd-ce": {"steps": 3}}, "tile": 8}


def test_any_callable_can_be_attacked(problem):
    """A lambda, a method, a functools.partial and a Partial are one model, and its result."""
    logits_fn, images, labels = problem

    class Model:
        def logits(self, images):
            return network(logits_fn.args[0], images)

    expected = autoattack(logits_fn, images, labels, **SHORT)
    for model in (lambda x: logits_fn(x), Model().logits, functools.partial(network, logits_fn.args[0])):
        np.testing.assert_array_equal(autoattack(model, images, labels, **SHORT).status, expected.status)


def test_seeds_beyond_32_bits_are_seeds_of_their_own(problem):
    images = [autoattack(*problem, **SHORT, seed=seed).adversarial for seed in (1, 1 + 2**32)]
    assert not np.array_equal(*images)


def test_the_canary_is_told_and_stops_a_wrong_program(problem, monkeypatch):
    logits_fn, images, labels = problem
    result = autoattack(logits_fn, images, labels, **SHORT)
    told = result.to_dict()["canary"]
    assert told["shape"] == [8, 6, 5, 2] and told["forward_difference"] < 1e-5
    assert "one by one" in result.table()
    honest = canary._compiled
    monkeypatch.setattr(canary, "_compiled", lambda *given: [1.01 * value for value in honest(*given)])
    with pytest.raises(canary.Miscompiled, match=r"\[8, 6, 5, 2\]"):
        autoattack(logits_fn, images, labels, **SHORT)


def test_one_evaluation_a_ledger(problem, tmp_path):
    with locks.hold(tmp_path, "workdir"):
        with pytest.raises(ValueError, match="in use by pid") as error:
            autoattack(*problem, **SHORT, workdir=tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "ledger.jsonl").exists()
    autoattack(*problem, **SHORT, workdir=tmp_path)
    assert not (tmp_path / locks.NAME).exists()


def test_models_of_the_same_weights_never_share_a_ledger(tmp_path):
    """The mean is no weight: the verdicts of one model were taken for the other's."""
    fields = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=4, std=(0.2, 0.2, 0.2))
    modules = [models.build("vit", **fields, mean=mean) for mean in ((0.2, 0.2, 0.2), (0.8, 0.8, 0.8))]
    variables = models.init(modules[0], jax.random.key(0))
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    short = {**SHORT, "version": ["square"], "settings": {"square": {"queries": 1}}}
    autoattack(models.logits_fn(modules[0], variables), images, np.zeros(4, int), **short, workdir=tmp_path)
    with pytest.raises(ValueError, match="of another evaluation, differing in program"):
        autoattack(models.logits_fn(modules[1], variables), images, np.zeros(4, int), **short, workdir=tmp_path)


def test_it_is_exported():
    assert evaluation.autoattack is autoattack
