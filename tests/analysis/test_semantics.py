"""Semantics: gradients, alignment and synthesis of a linear model by hand; a judge that sees neither contrast nor
brightness; figures that belong to their examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit.analysis import estimates, semantics, semantics_plots

RNG = np.random.default_rng(1)
IMAGES = RNG.uniform(0.3, 0.7, (4, 4, 4, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0], np.int32)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
LINEAR = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(WEIGHTS))


def test_gradients_add_up_along_the_way():
    found = semantics.accumulated_gradients(LINEAR, IMAGES, LABELS, norm="linf", epsilon=0.1, step_size=0.05, steps=2)
    points, expected, weights = IMAGES.astype(np.float64), np.zeros((4, 16)), WEIGHTS.astype(np.float64)
    for _ in range(2):
        logits = points.reshape(4, 16) @ weights
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        gradient = (powers / powers.sum(-1, keepdims=True) - np.eye(3)[LABELS]) @ weights.T
        expected += gradient
        points = points + 0.05 * np.sign(gradient).reshape(points.shape)
    np.testing.assert_allclose(found.reshape(4, 16), expected, atol=1e-5)


def test_sizes_are_shown_up_to_the_99th_percentile():
    gradients = RNG.normal(size=(2, 10, 10, 3))
    shown = semantics.magnitude(gradients)
    mean = np.abs(gradients).mean(-1)
    np.testing.assert_allclose(
        shown, np.minimum(mean / np.percentile(mean.reshape(2, -1), 99, axis=1)[:, None, None], 1)
    )
    assert not semantics.magnitude(np.zeros((1, 4, 4, 1))).any()


def test_alignment_is_the_cosine_with_what_parts_the_two_best_classes():
    logits = IMAGES.reshape(4, 16) @ WEIGHTS
    found = semantics.alignment(LINEAR, IMAGES, LABELS)
    for image, label, one, scores in zip(IMAGES.reshape(4, 16), LABELS, found, logits):
        other = max(set(range(3)) - {int(label)}, key=lambda k: scores[k])
        slope = WEIGHTS[:, label] - WEIGHTS[:, other]
        assert one == pytest.approx(image @ slope / np.linalg.norm(image) / np.linalg.norm(slope), abs=1e-5)
    np.testing.assert_allclose(semantics.cosine(IMAGES, 3 * IMAGES), 1)
    assert semantics.cosine(np.zeros((1, 2)), np.ones((1, 2))) == 0


def test_synthesis_makes_of_noise_what_a_model_takes_for_the_class():
    classes = np.array([0, 1, 2], np.int32)
    start = semantics.noise(0, (3, 4, 4, 1))
    assert start.shape == (3, 4, 4, 1) and 0 <= start.min() < 0.2 and 0.8 < start.max() <= 1
    found = semantics.synthesize(LINEAR, start, classes, steps=40)
    logits = found.reshape(3, 16) @ WEIGHTS
    np.testing.assert_array_equal(logits.argmax(-1), classes)
    before = start.reshape(3, 16) @ WEIGHTS
    gain = jax.nn.log_softmax(logits)[np.arange(3), classes] - jax.nn.log_softmax(before)[np.arange(3), classes]
    assert (np.asarray(gain) > 0.5).all() and found.min() >= 0 and found.max() <= 1


def test_a_perturbation_alone_is_bright_where_the_attack_took_away():
    images = np.array([0.5, 0.5, 0.5, 0.0]).reshape(1, 2, 2, 1)
    adversarial = np.array([0.4, 0.6, 0.5, 0.1]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(semantics.alone(images, adversarial, 0.1).reshape(-1), [1, 0, 0.5, 0], atol=1e-12)


def test_a_judge_sees_neither_contrast_nor_brightness():
    shapes = RNG.uniform(size=(2, 4, 4, 1))
    labels = np.arange(40) % 2
    images = shapes[labels] + 0.1 * RNG.normal(size=(40, 4, 4, 1))
    judge = semantics.fitted_judge(images, labels)
    np.testing.assert_array_equal(judge(images), labels)
    np.testing.assert_array_equal(judge(0.1 * images + 0.7), labels)
    np.testing.assert_allclose(semantics.standardized(images), semantics.standardized(0.1 * images + 0.7), atol=1e-9)
    np.testing.assert_allclose(semantics.standardized(images).std(1), 1)


def test_the_figure_is_what_differs_from_the_ground():
    image = np.array([[0.0, 0.0, 0.05], [0.0, 0.5, 0.9], [0.0, 0.2, 0.0]])[None, :, :, None]
    mask = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]], bool)
    np.testing.assert_array_equal(semantics.figure_mask(image)[0], mask)
    np.testing.assert_array_equal(semantics.figure_mask(1 - image)[0], mask)  # dark on light as well
    gradient = RNG.normal(size=(1, 3, 3, 1))
    expected = (gradient[0, ..., 0] ** 2)[mask].sum() / (gradient**2).sum()
    np.testing.assert_allclose(semantics.on_figure(image, gradient), [expected])
    assert semantics.on_figure(image, 0 * gradient) == 0


def test_a_prototype_parts_a_class_from_the_mean_of_all():
    images, labels = RNG.uniform(size=(6, 2, 2, 1)), np.array([0, 0, 0, 1, 1, 2])
    means = np.stack([images[:3].mean(0), images[3:5].mean(0), images[5]])
    np.testing.assert_allclose(semantics.prototypes(images, labels), means - means.mean(0))


def test_random_signs_belong_to_the_example_and_stay_in_the_range():
    found = semantics.random_signs(IMAGES, 0.1, 0, np.arange(4))
    np.testing.assert_allclose(np.abs(found - IMAGES), 0.1, atol=1e-6)
    np.testing.assert_array_equal(semantics.random_signs(IMAGES[2:], 0.1, 0, [2, 3]), found[2:])
    assert semantics.random_signs(np.zeros((1, 8, 8, 1)), 0.1, 0, [0]).min() == 0


def test_other_classes_belong_to_the_example():
    labels, indices = np.arange(50) % 10, np.arange(50)
    found = semantics_plots.other_classes(labels, 10, 3, indices)
    assert (found != labels).all() and set(found) == set(range(10))
    np.testing.assert_array_equal(semantics_plots.other_classes(labels[7:9], 10, 3, indices[7:9]), found[7:9])


def test_pictures_show_their_arrays():
    gradients = {"one": RNG.normal(size=IMAGES.shape), "two": RNG.normal(size=IMAGES.shape)}
    figure = semantics_plots.plot_gradients(IMAGES, gradients, LABELS, ("a", "b", "c"))
    grid = np.array(figure.axes).reshape(5, 4)
    np.testing.assert_array_equal(grid[3, 1].images[0].get_array(), gradients["two"][1, ..., 0])
    np.testing.assert_allclose(grid[2, 3].images[0].get_array(), semantics.magnitude(gradients["one"])[3])
    figure = semantics_plots.plot_synthesis({"noise": IMAGES, "one": 1 - IMAGES}, ["a", "b", "c", "a"])
    np.testing.assert_array_equal(
        np.array(figure.axes).reshape(2, 4)[1, 2].images[0].get_array(), 1 - IMAGES[2, ..., 0]
    )


def test_figures_are_drawn_at_their_values_with_their_intervals():
    scores = {
        name: {"perturbation": estimates.share(hits), "alignment": estimates.mean(values)}
        for name, hits, values in (("robust", [True] * 9 + [False], [0.5, 0.7]), ("plain", [False] * 10, [0.0, 0.1]))
    }
    figure = semantics_plots.plot_scores(scores, chance=0.1)
    (axes,) = figure.axes
    found = [(c.lines[0].get_xdata()[0], c.lines[2][0].get_segments()[0][:, 0]) for c in axes.containers]
    expected = [one[name] for one in scores.values() for name in ("alignment", "perturbation")]
    for (value, ends), estimate in zip(found, expected, strict=True):
        assert value == pytest.approx(estimate.value)
        np.testing.assert_allclose(ends, estimate.interval)
