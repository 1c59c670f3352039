"""What would be measured wrongly in silence is told in one line before anything compiles; nothing measured is lost."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks, models, randomness
from robust_vit.evaluation import Measurer, record, suites

RANK_PROMOTION = "allow"  # of the models that are made here

EXAMPLES, CLASSES, EPSILON = 12, 4, 0.1


@pytest.fixture(scope="module")
def module():
    return models.build("vit", image_size=8, patch_size=4, depth=1, width=8, heads=1, channels=1, num_classes=CLASSES)


@pytest.fixture(scope="module")
def context(module):
    variables = models.init(module, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 8, 8, 1), np.uint8)
    logits_fn = models.logits_fn(module, variables)
    labels = np.array(jnp.argmax(logits_fn(images / np.float32(255)), -1), np.int32)
    split = {"image": images, "label": labels, "index": np.arange(EXAMPLES)}
    return suites.Context(logits_fn, lambda: [split], "linf", EPSILON, steps=3, restarts=1)


@pytest.fixture(scope="module")
def flat(context):
    """The same images under a linear model, which compiles in no time."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(64, CLASSES)), jnp.float32)
    logits_fn = jax.tree_util.Partial(lambda weights, x: x.reshape(x.shape[0], -1) @ weights, weights)
    labels = np.asarray(logits_fn(context.batches()[0]["image"] / np.float32(255)).argmax(-1))
    return dataclasses.replace(changed(context, label=labels), logits_fn=logits_fn)


def changed(context, **values):
    batch = {**context.batches()[0], **values}
    return dataclasses.replace(context, batches=lambda: [batch])


def refused(context, names="clean"):
    """The one line of a context that is told before anything runs."""
    with pytest.raises(ValueError) as caught:
        suites.run_suites(names, context)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def nothing_runs(monkeypatch):
    for name in suites.SUITES:
        monkeypatch.setitem(suites.SUITES, name, lambda context: pytest.fail("ran"))


def test_a_given_step_size_means_the_same_in_pgd_and_sweep(flat):
    """A sweep to 4 epsilon walks, at epsilon, with the step size that was given for it: not a quarter of it."""
    given = dataclasses.replace(flat, step_size=0.03, options={"sweep_steps": 3})
    results = suites.run_suites("clean,pgd,sweep", given)
    point = next(point for point in results["sweep"]["curve"] if point["epsilon"] == EPSILON)
    short = attacks.pgd(norm="linf", epsilon=EPSILON, step_size=0.03 / 4, steps=3, keep="success")
    shorter = Measurer(short).measure(flat.logits_fn, flat.batches()).correct
    assert point["correct"] == results["pgd"]["correct"] < shorter <= results["clean"]["correct"]
    assert results["sweep"]["step_size"] == pytest.approx(4 * 0.03)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: jnp.round(9 * x[:, 0, :CLASSES, 0]).astype(int), "logits.dtype = 'int32': must be a real float"),
        (lambda x: x[:1, 0, :CLASSES, 0], r"logits.shape = (1, 4): must be (12, K)"),
        (lambda x: (x[:, 0, :CLASSES, 0], x), "a tuple of 2"),
        (lambda x: x[:, 0, :2, 0], "K at least 4, the classes of the data"),
    ],
)
def test_what_returns_no_logits_stops_every_suite(context, function, message, nothing_runs):
    context = dataclasses.replace(context, logits_fn=function, num_classes=CLASSES)
    for name in suites.SUITES:
        assert message in refused(context, name)


def test_labels_and_images_out_of_range_are_told(context, nothing_runs):
    images = context.batches()[0]["image"]
    assert "label = 4: 1 of 12 examples" in refused(changed(context, label=np.array([4] + 11 * [0])))
    assert "label = -1: 2 of 12 examples" in refused(changed(context, label=np.array([-1, -1] + 10 * [0])))
    assert "images = [0.0, 255.0]: must be floats in [0, 1]" in refused(
        changed(context, image=np.clip(images.astype(np.float32) * 2, 0, 255))
    )
    assert "images = [nan, nan]" in refused(changed(context, image=np.full_like(images, np.nan, np.float32)))
    masked = changed(context, label=np.array([9] + 11 * [0]), mask=np.arange(EXAMPLES) > 0)
    suites.checked(["clean"], masked)  # what a mask hides may hold anything


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("epsilon", float("nan"), "epsilon = nan: must be a number, at least 0 and at most 1"),
        ("epsilon", 8.0, "epsilon = 8.0: must be a number, at least 0 and at most 1 (8/255, not 8)"),
        ("epsilon", -0.1, "epsilon = -0.1"),
        ("steps", 0, "steps = 0: must be a whole number, at least 1"),
        ("restarts", 1.5, "restarts = 1.5"),
        ("step_size", float("nan"), "step_size = nan: must be a positive number"),
        ("norm", "linff", "norm = 'linff': must be one of l1, l2, linf; did you mean 'linf'?"),
        ("seed", 2**63, "seed = 9223372036854775808: must be in [-2**63, 2**63)"),
        ("seed", 1.5, "seed = 1.5: must be a whole number"),
        ("adaptive", "straight", "adaptive = 'straight': must be one of straight_through"),
    ],
)
def test_fields_out_of_range_are_told(context, field, value, message):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(context, **{field: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"autoattack_points": -5},
            "option autoattack_points = -5: cannot be read, must be a whole number, at least 1",
        ),
        ({"autoattack_points": "2.5"}, "must be a whole number"),
        ({"autoattack_budget": "nan"}, "option autoattack_budget = 'nan': cannot be read, must be a positive number"),
        ({"autoattack_dtype": "int8"}, "must be one of float32, bfloat16, float16"),
        ({"autoattack_version": "standart"}, "attack = 'standart'"),
        ({"sweep_epsilons": "0,-1"}, "must be numbers, at least 0"),
        ({"masking_points": 0}, "must be a whole number, at least 1"),
        ({"autoattack_point": 3}, "did you mean 'autoattack_points'?"),
        ({"robustbench_name": "Mine"}, "given together with robustbench_id"),
        ({"robustbench_id": "Mine"}, "workdir = None: must be given"),
    ],
)
def test_options_out_of_range_are_told(context, options, message, nothing_runs):
    assert message in refused(dataclasses.replace(context, options=options), "clean,autoattack")


def test_options_read_texts_as_the_command_line_gives_them():
    read = suites.read_options(["sweep_epsilons=0,2/255", "autoattack_budget=1/2", "autoattack_images=true"])
    assert read == {"sweep_epsilons": [0.0, 2 / 255], "autoattack_budget": 0.5, "autoattack_images": True}
    assert suites.read_options(["sweep_epsilons=0/0.05/0.1"]) == {"sweep_epsilons": [0.0, 0.05, 0.1]}


def test_probabilities_in_place_of_logits_are_told(flat):
    soft = dataclasses.replace(flat, logits_fn=lambda x: jax.nn.softmax(flat.logits_fn(x)))
    for entry in suites.run_suites("clean,pgd", soft).values():
        assert "probabilities where logits are expected" in entry["notes"][0]
    assert "notes" not in suites.run_suites("clean", flat)["clean"]


def test_a_numpy_function_is_measured_where_no_gradient_is_asked_for(context):
    """Bit for bit what the model gives, and with the same examples broken by Square."""

    class Remote:  # as a service answers: it takes arrays of numbers and nothing else
        def __call__(self, images):
            assert type(images) is np.ndarray and images.dtype == np.float32
            flat = images.reshape(len(images), -1).astype(np.float64)
            return np.stack([flat[:, k::CLASSES].sum(1) for k in range(CLASSES)], 1)

    def traced(images):
        flat = images.reshape(images.shape[0], -1)
        return jnp.stack([flat[:, k::CLASSES].sum(1) for k in range(CLASSES)], 1)

    labels = np.asarray(traced(context.batches()[0]["image"] / np.float32(255)).argmax(-1))
    options = {"autoattack_version": "square", "autoattack_budget": 0.01}
    said = []
    remote = dataclasses.replace(changed(context, label=labels), logits_fn=Remote(), options=options, say=said.append)
    hosted = suites.run_suites("clean,autoattack", remote)
    plain = suites.run_suites("clean,autoattack", dataclasses.replace(remote, logits_fn=traced))
    assert hosted["clean"]["correct"] == plain["clean"]["correct"] == EXAMPLES
    assert hosted["autoattack"]["counts"] == plain["autoattack"]["counts"]
    assert any("called on the host" in line for line in said)
    for names in ("pgd", "clean,pgd", "quick", "masking"):
        assert "gradient-free suites" in refused(remote, names)
    assert "gradient-free suites" in refused(dataclasses.replace(remote, options={}), "autoattack")


def test_a_numpy_function_that_is_wrong_is_told(context, nothing_runs):
    def integers(images):
        return np.asarray(images.tolist()).astype(int)[:, 0, :CLASSES, 0]

    assert "logits.dtype = 'int64'" in refused(dataclasses.replace(context, logits_fn=integers))
    flat = dataclasses.replace(context, logits_fn=lambda x: np.asarray(x).mean((1, 2, 3)))
    assert "logits.shape = (12,): must be (12, K)" in refused(flat)


# -------------------------------------------------------------------------------------------------- seeds


def test_seeds_of_64_bits_do_not_alias():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, -1, 2**32 - 1, -(2**32), 2**63 - 1]
    made = {tuple(np.asarray(jax.random.key_data(randomness.as_key(seed))).tolist()) for seed in seeds}
    assert len(made) == len(seeds)
    for seed in (0, 7, 2**31, 2**32 - 1):  # what is recorded stays what it was
        same = jax.random.key_data(jax.random.key(np.uint32(seed)))
        np.testing.assert_array_equal(jax.random.key_data(randomness.as_key(seed)), same)
    np.testing.assert_array_equal(jax.random.key_data(randomness.as_key(7)), jax.random.key_data(jax.random.key(7)))


def test_indices_that_would_share_a_key_are_told():
    with pytest.raises(ValueError, match=r"index = 4294967297: must be below 2\*\*31"):
        randomness.indices([1, 2**32 + 1])


# -------------------------------------------------------------------------------------------- nothing is lost


def test_every_differing_setting_keeps_the_older_entry(flat, tmp_path):
    """Of AutoAttack at other budgets, points and precisions, of any suite under any setting, the older stays."""
    path = tmp_path / "result.json"
    kinds = [{}, {"autoattack_points": 6}, {"autoattack_budget": 0.5}, {"autoattack_tile": 8}]
    for options in kinds:
        result = suites.evaluate("quick", dataclasses.replace(flat, options=options), path)
    stored = json.loads(path.read_text())
    kept = [stored["quick"], *(record["quick"] for record in stored["previous"])]
    assert sorted(map(str, kinds)) == sorted(str(entry["options"]) for entry in kept)
    suites.evaluate("quick", dataclasses.replace(flat, options=kinds[0]), path)
    again = json.loads(path.read_text())
    assert again["quick"]["options"] == {} and len(again["previous"]) == len(kinds) - 1
    assert result["schema"] == record.SCHEMA


def test_a_setting_that_nobody_listed_counts_as_one():
    def entry(**values):
        return {"weights": {"hash": "a"}, "split": "test", "new": {"accuracy": 0.5, **values}}

    known = record.merge(entry(temperature=1), entry(temperature=2, accuracy=0.4))
    assert known["new"]["temperature"] == 2 and known["previous"][0]["new"]["temperature"] == 1
