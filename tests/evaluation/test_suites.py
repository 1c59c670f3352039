"""Suites give the figures and settings they say, and result.json loses none of them."""

import dataclasses
import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from robust_vit import attacks
from robust_vit.evaluation import Measurer, masking, record, suites, tables

RANK_PROMOTION = "allow"  # of the models that are made here

EXAMPLES, CLASSES, EPSILON = 30, 2, 0.1


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def context():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(9, CLASSES)), jnp.float32)
    images = rng.uniform(0.2, 0.8, (EXAMPLES, 3, 3, 1)).astype(np.float32)
    labels = np.array(jnp.argmax(linear(weights, images), -1), np.int32)
    labels[:3] = (labels[:3] + 1) % CLASSES
    split = {"image": images, "label": labels, "index": np.arange(EXAMPLES)}

    def batches():
        return [{k: v[i : i + 16] for k, v in split.items()} for i in range(0, EXAMPLES, 16)]

    return suites.Context(
        logits_fn=jax.tree_util.Partial(linear, weights),
        batches=batches,
        norm="linf",
        epsilon=EPSILON,
        steps=4,
        restarts=2,
    )


@pytest.fixture(scope="module")
def results(context):
    return suites.run_suites("clean,fgsm,pgd,sweep", context)


def test_results_have_the_documented_form(results):
    assert list(results) == ["clean", "fgsm", "pgd", "sweep"]
    assert results["clean"]["accuracy"] == 27 / 30 and results["clean"]["examples"] == EXAMPLES
    assert "norm" not in results["clean"]
    settings = {k: results["pgd"][k] for k in ("norm", "epsilon", "steps", "restarts", "step_size")}
    assert settings == {"norm": "linf", "epsilon": EPSILON, "steps": 4, "restarts": 2, "step_size": 2.5 * EPSILON / 4}
    low, high = results["pgd"]["interval"]
    assert low <= results["pgd"]["accuracy"] <= high
    for entry in results.values():
        assert entry["measured"]["versions"]["jax"] == jax.__version__ and entry["measured"]["seconds"] >= 0
    json.dumps(results, allow_nan=False)


def test_a_linear_model_falls_to_the_sign_step_exactly(context, results):
    """For two classes of a linear model the worst Linf point is known in closed form."""
    weights, batch = np.asarray(context.logits_fn.args[0]), {k: [] for k in ("image", "label")}
    for part in context.batches():
        for name in batch:
            batch[name].append(part[name])
    images, labels = np.concatenate(batch["image"]), np.concatenate(batch["label"])
    standing = 0
    for image, label in zip(images.reshape(EXAMPLES, -1), labels):
        margins = [  # worst margin over the ball, inside which the box [0,1] does not bind
            image @ (weights[:, label] - weights[:, other])
            - EPSILON * np.abs(weights[:, label] - weights[:, other]).sum()
            for other in range(CLASSES)
            if other != label
        ]
        standing += min(margins) > 0
    assert results["pgd"]["accuracy"] == standing / EXAMPLES < results["clean"]["accuracy"]
    assert results["pgd"]["accuracy"] <= results["fgsm"]["accuracy"]


def test_sweep_runs_from_clean_to_zero_and_matches_single_measurements(context, results):
    curve = results["sweep"]["curve"]
    assert curve[0]["epsilon"] == 0 and curve[0]["accuracy"] == results["clean"]["accuracy"]
    assert results["sweep"]["epsilon"] == 4 * EPSILON
    assert results["sweep"]["reaches_zero"] == (curve[-1]["accuracy"] == 0)
    assert all(a["accuracy"] >= b["accuracy"] for a, b in zip(curve, curve[1:]))
    single = attacks.pgd(norm="linf", epsilon=EPSILON, steps=20, restarts=1, keep="success")
    at_epsilon = next(p for p in curve if p["epsilon"] == EPSILON)
    assert at_epsilon["correct"] == Measurer(single).measure(context.logits_fn, context.batches()).correct


def test_a_threat_model_of_epsilon_zero_is_the_clean_accuracy(context, results):
    harmless = suites.run_suites("fgsm,pgd,sweep", dataclasses.replace(context, epsilon=0.0))
    assert harmless["fgsm"]["correct"] == harmless["pgd"]["correct"] == results["clean"]["correct"]
    assert [point["correct"] for point in harmless["sweep"]["curve"]] == [results["clean"]["correct"]]


def test_arrays_hold_every_example_once(context):
    images, labels, indices = context.arrays()
    np.testing.assert_array_equal(indices, np.arange(EXAMPLES))
    assert images.shape == (EXAMPLES, 3, 3, 1) and labels.shape == (EXAMPLES,)
    np.testing.assert_array_equal(images[16:], context.batches()[1]["image"])


def test_every_result_is_handed_over_as_soon_as_it_is_known(context, monkeypatch):
    def fails(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(suites.SUITES, "fails", fails)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        suites.run_suites(["clean", "fails"], context, lambda name, entry: seen.append(name))
    assert seen == ["clean"]


def test_unknown_suite_is_named_with_the_nearest(context):
    with pytest.raises(ValueError, match=r"suite = 'pdg': must be one of .*; did you mean 'pgd'\?"):
        suites.run_suites("clean,pdg", context)


def test_evaluate_writes_after_every_suite_and_merges(context, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    suites.evaluate("clean", context, path, step=7)
    written = []
    write = record.write
    monkeypatch.setattr(record, "write", lambda path, result: (written.append(set(result)), write(path, result)))
    result = suites.evaluate("fgsm,sweep", context, path, step=7)
    assert {"clean", "fgsm"} <= written[0] and "sweep" not in written[0] and "sweep" in written[1]
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result["weights"] == {"step": 7, "hash": suites.identify(context.logits_fn, (3, 3, 1))}
    assert result["split"] == "test" and result["versions"]["jax"] == jax.__version__ and result["command"]
    other = jax.tree.map(lambda w: w + 1, context.logits_fn)
    result = suites.evaluate("clean", dataclasses.replace(context, logits_fn=other), path, step=8)
    assert "fgsm" not in result and "fgsm" in result["previous"][0]


def test_constants_of_a_closure_are_hashed(context):
    weights = context.logits_fn.args[0]
    hashes = [suites.identify(lambda x, w=w: linear(w, x), (3, 3, 1)) for w in (weights, weights + 1, weights)]
    assert hashes[0] == hashes[2] != hashes[1]
    copied = jax.tree.map(jnp.array, context.logits_fn)
    assert suites.identify(context.logits_fn, (3, 3, 1)) == suites.identify(copied, (3, 3, 1))


# ------------------------------------------------------------------------------------------------ result.json


def entry_of(hash, split="test", **entries):
    return {"weights": {"hash": hash, "step": 1}, "split": split, **entries}


def test_merge_keeps_every_measurement():
    first = record.merge({}, entry_of("a", clean={"accuracy": 0.9}, pgd={"accuracy": 0.5, "steps": 10}))
    second = record.merge(first, entry_of("a", fgsm={"accuracy": 0.7}))
    assert record.suites_of(second).keys() == {"clean", "pgd", "fgsm"} and "previous" not in second
    stronger = record.merge(second, entry_of("a", pgd={"accuracy": 0.4, "steps": 50}))
    assert stronger["pgd"]["steps"] == 50 and stronger["previous"][0]["pgd"]["steps"] == 10
    again = record.merge(stronger, entry_of("a", pgd={"accuracy": 0.41, "steps": 50}))
    assert again["pgd"]["accuracy"] == 0.41 and len(again["previous"]) == 1  # same settings: replaced, others kept


def test_other_weights_and_splits_step_back_and_return():
    a = record.merge({}, entry_of("a", clean={"accuracy": 0.9}))
    b = record.merge(a, entry_of("b", clean={"accuracy": 0.8}))
    assert b["clean"]["accuracy"] == 0.8 and b["previous"] == [entry_of("a", clean={"accuracy": 0.9})]
    c = record.merge(b, entry_of("b", "validation", clean={"accuracy": 0.85}))
    assert [p["weights"]["hash"] for p in c["previous"]] == ["b", "a"]
    back = record.merge(c, entry_of("a", fgsm={"accuracy": 0.1}))
    assert back["clean"]["accuracy"] == 0.9 and back["fgsm"]["accuracy"] == 0.1 and len(back["previous"]) == 2


def test_files_are_written_whole_and_damaged_ones_left_alone(tmp_path):
    path = tmp_path / "result.json"
    assert record.read(path) == {}
    record.write(path, entry_of("a"))
    assert record.read(path) == entry_of("a") and [p.name for p in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(ValueError):
        record.write(path, {"clean": float("nan")})  # not JSON: the old file must survive
    assert record.read(path) == entry_of("a")
    path.write_text('{"clean": ')
    with pytest.raises(ValueError, match="result.json: is not JSON"):
        record.read(path)
    assert path.read_text() == '{"clean": '


def printed(result, **keywords):
    to = rich.console.Console(width=120, record=True, file=io.StringIO())
    tables.show(result, to, **keywords)
    return to.export_text()


def test_tables_say_what_was_measured(results):
    text = printed(entry_of("0123456789abcdef", **results), class_names=["ant", "bee"])
    assert "weights 0123456789ab, test split" in text
    assert "90.00 %" in text and "Linf 0.1, 4 steps of 0.0625, 2 restarts" in text
    assert "bee" in text and "accuracy against epsilon" in text
    assert text.isascii() or "–" in text


def test_long_class_tables_show_the_weakest():
    rows = [{"examples": 10, "correct": k % 11, "accuracy": (k % 11) / 10} for k in range(50)]
    text = printed(entry_of("a", clean={"accuracy": 0.5, "interval": [0.4, 0.6], "examples": 500, "per_class": rows}))
    assert "20 weakest of 50 under clean" in text
    shown = [line for line in text.splitlines() if line.endswith(".0 |")]
    assert len(shown) == 20 and shown[0].split()[1] == "0" and "100.0" not in text


def test_pixels_are_written_as_people_write_them():
    values = (8 / 255, 0.1, 0.2, 1.5 / 255, 3.0, 0)
    assert [record.pixels(value) for value in values] == ["8/255", "0.1", "0.2", "0.005882", "3", "0"]


def test_command_line_is_recorded_as_typed():
    program = "from robust_vit.evaluation import record; print(record.environment()['command'])"
    ran = subprocess.run([sys.executable, "-c", program, "--suite=clean"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("--suite=clean")


def test_a_threat_stands_for_norm_and_epsilon(context):
    given = {"logits_fn": context.logits_fn, "batches": context.batches}
    made = suites.Context(**given, threat="l2-0.5")
    assert (made.norm, made.epsilon) == ("l2", 0.5)
    assert dataclasses.replace(made, steps=3).epsilon == 0.5  # a copy says it once
    with pytest.raises(ValueError, match="threat = 'l2-0.5': must be left out where norm and epsilon are given"):
        suites.Context(**given, norm="l2", epsilon=0.5, threat="l2-0.5")
    with pytest.raises(ValueError, match="norm = None: must be given, or threat"):
        suites.Context(**given)


def test_the_masking_report_takes_a_threat(context):
    batch = context.batches()[0]
    with pytest.raises(ValueError, match="threat = 'linf-0.1': must be left out"):
        masking.report(context.logits_fn, batch["image"], batch["label"], epsilon=0.1, threat="linf-0.1")
    with pytest.raises(ValueError, match="norm = 'l3'"):
        masking.report(context.logits_fn, batch["image"], batch["label"], norm="l3", epsilon=0.1)
    with pytest.raises(ValueError, match=r"epsilon = 0.0: must be above 0"):
        masking.report(context.logits_fn, batch["image"], batch["label"], threat="linf-0")
