"""The curve of robust accuracy against the radius, from one run of a minimal-norm attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.attacks import minimal
from robust_vit.evaluation import intervals, security_curve, suites
from robust_vit.evaluation.security_curve import SecurityCurve


def test_the_curve_counts_what_lies_beyond():
    distances = np.array([0.0, 0.1, 0.2, 0.2, np.inf])
    curve = SecurityCurve("linf", np.arange(5), distances)
    assert [curve.robust_accuracy(e) for e in (0.0, 0.1, 0.15, 0.2, 9.0)] == [0.8, 0.6, 0.6, 0.2, 0.2]
    assert curve.interval(0.1) == intervals.wilson(3, 5)
    assert curve.median == 0.2
    steps = np.linspace(0, 0.4, 400_001)
    riemann = np.mean([np.mean(distances[:, None] > s, axis=0) for s in np.split(steps[:-1], 100)])
    assert curve.area(0.4) == pytest.approx(0.4 * riemann, abs=1e-5)


@pytest.fixture(scope="module")
def classifier():
    module = models.build("vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    logits_fn = models.logits_fn(module, variables)
    labels = np.array(jnp.argmax(logits_fn(images / np.float32(255)), -1), np.int32)
    labels[3] = (labels[3] + 1) % 3
    return logits_fn, {"image": images, "label": labels, "index": np.arange(10) + 100}


def batches(data, size):
    return [{k: v[i : i + size] for k, v in data.items()} for i in range(0, 10, size)]


@pytest.fixture(scope="module")
def curve(classifier):
    logits_fn, data = classifier
    return security_curve.measure(minimal.search("fmn", steps=15), "linf", logits_fn, batches(data, 4))


def test_every_distance_belongs_to_an_image_that_fools(classifier, curve):
    logits_fn, data = classifier
    np.testing.assert_array_equal(curve.indices, data["index"])  # each once, padding left out
    assert curve.distances[3] == 0.0 and np.all(np.delete(curve.distances, 3) > 0)
    assert np.isfinite(curve.distances).any()


def test_the_batch_size_changes_no_distance(classifier, curve):
    logits_fn, data = classifier
    other = security_curve.measure(minimal.search("fmn", steps=15), "linf", logits_fn, batches(data, 10))
    np.testing.assert_allclose(other.distances, curve.distances, rtol=1e-4, atol=1e-6)


def test_a_claim_that_another_classifier_refutes_does_not_count(classifier):
    """The search may differentiate another form; what is claimed is judged by the classifier itself."""
    logits_fn, data = classifier
    swapped = jax.tree_util.Partial(lambda f, x: -f(x), logits_fn)
    found = security_curve.measure(
        minimal.search("fmn", steps=3), "linf", logits_fn, batches(data, 10), attacked=swapped
    )
    assert np.isinf(found.distances).sum() >= 5


def test_the_suite_tells_the_curve(classifier):
    logits_fn, data = classifier
    context = suites.Context(logits_fn, lambda: batches(data, 5), threat="l2-0.5", options={"minimal_steps": 10})
    entry = suites.run_suites("minimal", context)["minimal"]
    assert (entry["attack"], entry["norm"], entry["epsilon"], entry["steps"]) == ("ddn", "l2", 0.5, 10)
    distances = np.array([np.inf if d is None else d for d in entry["distances"]])
    assert entry["correct"] == (distances > 0.5).sum() and entry["accuracy"] == entry["correct"] / 10
    assert entry["curve"][0]["accuracy"] == 0.9 and entry["curve"][-1]["epsilon"] == 1.0
    falling = [point["accuracy"] for point in entry["curve"]]
    assert falling == sorted(falling, reverse=True)
    wrong = suites.Context(logits_fn, lambda: batches(data, 5), threat="l1-5", options={"minimal_attack": "ddn"})
    with pytest.raises(ValueError, match="norm = 'l1': must be 'l2' for ddn"):
        suites.run_suites("minimal", wrong)
