"""Whole-split accuracy: every real example once, whatever the batches, the order and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import parallel, randomness
from robust_vit.evaluation import Measurer, correct, wilson
from robust_vit.evaluation.measure import padded

CLASSES, EXAMPLES, PIXELS = 5, 43, 4


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def noise(keys, logits_fn, images, targets, strength=1.0):
    """An adversary that depends on nothing but the example's own key: enough to see which key it was given."""
    jitter = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-0.5, maxval=0.5))(keys)
    return jnp.clip(images + strength * jitter, 0.0, 1.0)


@pytest.fixture(scope="module")
def logits_fn():
    weights = np.random.default_rng(0).normal(size=(PIXELS * PIXELS, CLASSES)).astype(np.float32)
    return jax.tree_util.Partial(linear, jnp.asarray(weights))


@pytest.fixture(scope="module")
def split(logits_fn):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (EXAMPLES, PIXELS, PIXELS, 1), np.uint8)
    labels = np.array(jnp.argmax(logits_fn(images.astype(np.float32) / 255), -1), np.int32)
    labels[::4] = (labels[::4] + 1) % CLASSES  # a quarter is wrong by construction
    return {"image": images, "label": labels, "index": np.arange(EXAMPLES, dtype=np.int32)}


def batches(split, size, order=None):
    order = np.arange(EXAMPLES) if order is None else order
    return [{k: v[order[i : i + size]] for k, v in split.items()} for i in range(0, len(order), size)]


def test_clean_counts_match_numpy(logits_fn, split):
    result = Measurer().measure(logits_fn, batches(split, 16))
    logits = split["image"].reshape(EXAMPLES, -1).astype(np.float64) / 255 @ np.asarray(logits_fn.args[0], np.float64)
    right = logits.argmax(-1) == split["label"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert result.examples == EXAMPLES and result.correct == right.sum() == EXAMPLES - 11
    assert result.accuracy == right.mean() and result.interval == wilson(right.sum(), EXAMPLES)
    np.testing.assert_array_equal(result.class_examples, np.bincount(split["label"], minlength=CLASSES))
    np.testing.assert_array_equal(result.class_correct, np.bincount(split["label"][right], minlength=CLASSES))
    assert result.loss == pytest.approx(-log_p[np.arange(EXAMPLES), split["label"]].mean(), rel=1e-5)


def test_batches_order_and_devices_do_not_matter(logits_fn, split):
    reference = Measurer(noise, seed=3).measure(logits_fn, batches(split, EXAMPLES), 0.6)
    assert 0 < reference.correct < EXAMPLES - 11  # the noise does something
    shuffled = np.random.default_rng(2).permutation(EXAMPLES)
    for size, order, devices in ((8, None, 8), (7, shuffled, 1), (20, shuffled, 2), (3, None, 8)):
        other = Measurer(noise, parallel.mesh(devices), seed=3).measure(logits_fn, batches(split, size, order), 0.6)
        np.testing.assert_array_equal(other.class_correct, reference.class_correct)
        assert other.examples == EXAMPLES
    assert Measurer(noise, seed=4).measure(logits_fn, batches(split, 8), 0.6).loss != reference.loss


def test_masked_examples_do_not_count(logits_fn, split):
    mask = np.arange(EXAMPLES) % 3 > 0
    result = Measurer().measure(logits_fn, batches(split | {"mask": mask}, 16))
    kept = Measurer().measure(logits_fn, batches(split, 16, np.flatnonzero(mask)))
    assert result.examples == mask.sum() and result.correct == kept.correct
    np.testing.assert_array_equal(result.class_correct, kept.class_correct)
    assert result.loss == pytest.approx(kept.loss)


def test_sweep_is_measure_at_each_strength_with_one_compilation(logits_fn, split):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return noise(*arguments)

    measurer = Measurer(counted)
    strengths = (0.0, 0.3, 1.0)
    swept = measurer.sweep(logits_fn, iter(batches(split, 16)), strengths)  # one pass: a generator is enough
    other_weights = jax.tree.map(lambda w: w + 1, logits_fn)
    measurer.measure(other_weights, batches(split, 16))
    assert len(traces) == 1
    assert swept[0].correct == EXAMPLES - 11  # strength 0 is the clean accuracy
    assert [m.loss for m in swept] == [measurer.measure(logits_fn, batches(split, 16), s).loss for s in strengths]
    assert len({m.loss for m in swept}) == 3


def test_non_finite_logits_are_reported_and_wrong(split):
    def broken(images):
        logits = jax.nn.one_hot(jnp.zeros(images.shape[0], int), CLASSES)
        return jnp.where(images[:, 0, 0] > 0.5, jnp.nan, logits)

    zeros = split | {"label": np.zeros(EXAMPLES, np.int32)}  # argmax of NaN is 0 too: it must not be taken for right
    bad = int((split["image"][:, 0, 0, 0] > 127).sum())
    result = Measurer().measure(broken, batches(zeros, 16))
    assert 0 < bad < EXAMPLES
    assert result.nonfinite == bad and result.correct == EXAMPLES - bad
    assert result.to_dict()["loss"] is None and result.to_dict()["nonfinite"] == bad


def test_correct_is_per_example_and_uses_the_given_keys(logits_fn, split):
    images, labels = jnp.asarray(split["image"]) / 255.0, jnp.asarray(split["label"])

    def keys(start):  # derived anew for each use: a test may not consume a key twice
        return randomness.example_keys(0, jnp.arange(start, EXAMPLES), randomness.EVALUATION_ATTACK)

    whole = jax.jit(correct, static_argnums=4)(keys(0), logits_fn, images, labels, noise)
    half = correct(keys(20), logits_fn, images[20:], labels[20:], noise)
    np.testing.assert_array_equal(whole["prediction"][20:], half["prediction"])
    assert whole["correct"].shape == (EXAMPLES,) and whole["correct"].dtype == bool
    clean = correct(keys(0), logits_fn, split["image"], labels)
    np.testing.assert_allclose(clean["confidence"], jax.nn.softmax(clean["logits"]).max(-1), rtol=1e-5)
    assert int(clean["correct"].sum()) == EXAMPLES - 11


def test_json_form(logits_fn, split):
    form = Measurer().measure(logits_fn, batches(split, 16)).to_dict()
    assert form["accuracy"] == 32 / 43 and form["examples"] == 43 and form["interval"] == list(wilson(32, 43))
    assert sum(row["correct"] for row in form["per_class"]) == 32


def test_padding_numbers_unnamed_examples_and_keeps_one_shape(split):
    images, labels = split["image"], split["label"]
    made = list(
        padded([{"image": images[:10], "label": labels[:10]}, {"image": images[10:13], "label": labels[10:13]}], 8)
    )
    assert [len(b["label"]) for b in made] == [16, 16] and [b["mask"].sum() for b in made] == [10, 3]
    np.testing.assert_array_equal(np.concatenate([b["index"][b["mask"]] for b in made]), np.arange(13))


def test_errors_are_one_line(logits_fn, split):
    with pytest.raises(ValueError, match=r"strength = 1.5: must lie in \[0, 1\]"):
        Measurer().measure(logits_fn, batches(split, 16), 1.5)
    with pytest.raises(ValueError, match="strength = nan"):
        Measurer().measure(logits_fn, batches(split, 16), np.nan)
    for labels in (split["label"] + 0.5, np.eye(CLASSES)[split["label"]]):
        with pytest.raises(ValueError, match=r"label = 'float64\[16.*\]': must be integers \[B\]"):
            Measurer().measure(logits_fn, batches(split | {"label": labels}, 16))
    with pytest.raises(ValueError, match="gave no batch"):
        Measurer().measure(logits_fn, [])
    with pytest.raises(ValueError, match="outside the 5 classes"):
        Measurer().measure(logits_fn, batches(split | {"label": split["label"] + 3}, 16))
