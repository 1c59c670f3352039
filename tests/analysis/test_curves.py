"""The numbers of curves by oracles, and the pictures by what is drawn in them."""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.analysis import curves, curves_plots
from robust_vit.evaluation import intervals

sys.path.insert(0, str(pathlib.Path(__file__).parent / "report"))

from made import CLASSES, EXAMPLES, NAMES, walk  # noqa: E402


@pytest.fixture(scope="module")
def walked():
    return walk(steps=4)


def test_accuracy_by_step_counts_what_still_stands(walked):
    """Example 0 is misclassified to begin with; the six odd ones fall at step 2."""
    found = curves.by_step(walked)
    assert found["step"] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found["accuracy"], np.array([11, 11, 5, 5, 5]) / EXAMPLES)
    assert (found["low"][2], found["high"][2]) == intervals.wilson(5, EXAMPLES)


def test_loss_by_step_is_of_the_examples(walked):
    found = curves.loss_by_step(walked)
    for step in range(5):
        ordered = np.sort(walked.loss[step].astype(np.float64))
        assert found["median"][step] == pytest.approx((ordered[5] + ordered[6]) / 2)
        assert found["low"][step] == pytest.approx(ordered[1] + 0.1 * (ordered[2] - ordered[1]), rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_calibration_is_what_the_definition_says(seed, bins):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    found = curves.calibration(logits, labels, bins)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, hits = p.max(axis=1), p.argmax(axis=1) == labels
    error, total = 0.0, 0
    for b in range(bins):
        here = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        error += abs(hits[here].sum() - confidence[here].sum()) / 40
        total += here.sum()
    assert total == 40 == sum(row["examples"] for row in found["bins"])
    assert found["error"] == pytest.approx(error) and found["accuracy"] == hits.mean()
    assert found["confidence"] == pytest.approx(confidence.mean())


def test_confusion_and_classes(walked):
    counts = curves.confusion(walked.adversarial_logits, walked.labels)
    assert counts.sum() == EXAMPLES
    for n in range(EXAMPLES):
        assert counts[walked.labels[n], walked.adversarial_logits[n].argmax()] > 0
    rows = curves.by_class(walked)
    assert [row["class"] for row in rows] == list(range(CLASSES))
    assert [row["robust"] for row in rows] == [2 / 3, 0, 1, 0] and [row["clean"] for row in rows] == [2 / 3, 1, 1, 1]
    assert (rows[0]["low"], rows[0]["high"]) == intervals.wilson(2, 3)


def test_the_surface_is_the_loss_on_the_plane():
    """A linear classifier, whose loss is known: L(x + a g + b r) with the sign of the gradient and a random sign."""
    rng = np.random.default_rng(0)
    w, image = rng.normal(size=(16, 3)).astype(np.float32), rng.uniform(0.4, 0.6, (4, 4, 1)).astype(np.float32)

    def logits_fn(x):
        return jnp.reshape(x, (len(x), -1)) @ w

    found = curves.surface(logits_fn, image, 1, norm="linf", epsilon=0.1, points=5, seed=3)
    np.testing.assert_allclose(found["along"], [-0.2, -0.1, 0, 0.1, 0.2], atol=1e-7)
    z = image.ravel() @ w
    p = np.exp(z) / np.exp(z).sum()
    g = np.sign(w @ (p - np.eye(3)[1]))

    def loss(x):
        z = np.clip(x, 0, 1) @ w.astype(np.float64)
        return np.log(np.exp(z).sum()) - z[1], z.argmax() != 1

    along_g = [loss(image.ravel() + a * g) for a in found["along"]]
    np.testing.assert_allclose(found["loss"][2], [value for value, _ in along_g], rtol=1e-4)
    np.testing.assert_array_equal(found["wrong"][2], [wrong for _, wrong in along_g])
    assert found["loss"][2, 3] > found["loss"][2, 2], "uphill along the gradient"
    other = curves.surface(logits_fn, image, 1, norm="linf", epsilon=0.1, points=5, seed=4)
    np.testing.assert_allclose(other["loss"][2], found["loss"][2], rtol=1e-6)
    assert np.abs(other["loss"] - found["loss"]).max() > 1e-3, "another seed is another random direction"
    with pytest.raises(ValueError, match="points = 4: must be odd"):
        curves.surface(logits_fn, image, 1, norm="linf", epsilon=0.1, points=4)


def test_pictures_show_the_numbers(walked):
    figure = curves_plots.plot_steps({"first": walked, "second": walked})
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for name in ("first", "second"):
        np.testing.assert_allclose(lines[name].get_ydata(), curves.by_step(walked)["accuracy"])
    assert lines["first"].get_linestyle() != lines["second"].get_linestyle(), "not told by colour alone"
    assert lines["first"].get_color() != lines["second"].get_color()
    assert "PGD, Linf 0.1" in figure.axes[0].get_title("left")
    figure = curves_plots.plot_confusion(walked, NAMES)
    drawn = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in figure.axes[0].texts}
    counts = curves.confusion(walked.adversarial_logits, walked.labels)
    assert drawn == {(i, j): counts[i, j] for i, j in zip(*np.nonzero(counts))}
    figure = curves_plots.plot_classes(walked, NAMES)
    order = [text.get_text().split(" (")[0] for text in figure.axes[0].get_yticklabels()]
    assert order[:2] == [curves_plots._short(NAMES[k]) for k in (1, 3)], "the weakest first"


def test_sweeps_of_several_runs_have_their_bands_and_one_norm():
    rows = [{"epsilon": e, "accuracy": a, "interval": [a - 0.1, a + 0.05]} for e, a in ((0.2, 0.3), (0.0, 0.9))]
    figure = curves_plots.plot_epsilon({"a": {"curve": rows, "norm": "linf"}})
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0.0, 0.9], [0.2, 0.3]]
    with pytest.raises(ValueError, match=r"norm = \['l2', 'linf'\]: must be the same in all runs"):
        curves_plots.plot_epsilon({"a": {"curve": rows, "norm": "linf"}, "b": {"curve": rows, "norm": "l2"}})


def test_words_keep_off_the_lines(walked, tmp_path):
    """The legend stands below the panel."""
    from matplotlib.legend import Legend

    for figure in (curves_plots.plot_steps({"run": walked}), curves_plots.plot_calibration(walked)):
        figure.savefig(tmp_path / "x.png")
        (legend,) = figure.findobj(Legend)
        assert not figure.axes[0].get_window_extent().overlaps(legend.get_window_extent())
