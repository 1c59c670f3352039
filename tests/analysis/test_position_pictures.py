"""Positions: embeddings, their similarity, patches that are shuffled, and a model that sees a set of them."""

import functools

import jax
import numpy as np
import pytest

from robust_vit import models
from robust_vit.analysis import positions
from robust_vit.models.parts import positions as parts

FIELDS = dict(depth=1, width=16, heads=2, image_size=8, channels=1, patch_size=2, num_classes=3)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(5), (6, 8, 8, 1)))


@functools.cache
def model(name="vit", **overrides):
    module = models.build(name, **FIELDS | overrides)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    return models.logits_fn(module, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables))


def test_embeddings_are_those_of_the_patches():
    learned = model(pooling="token")
    expected = np.asarray(learned.args[0]["params"]["pos_embed"])[0, 1:].reshape(4, 4, 16)
    np.testing.assert_array_equal(positions.position_embeddings(learned), expected)
    fixed = positions.position_embeddings(model(pooling="mean", positions="sinusoidal"))
    np.testing.assert_allclose(fixed.reshape(16, 16), parts.sinusoidal(16, 16), atol=1e-6)
    with pytest.raises(ValueError, match="positions = 'ViT': must be asked of a model that adds position embeddings"):
        positions.position_embeddings(model(pooling="mean", positions="none"))


def test_similarity_is_the_cosine_of_two_places():
    embeddings = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = positions.similarity(embeddings)
    for i, j, k, m in np.ndindex(2, 3, 2, 3):
        a, b = embeddings[i, j], embeddings[k, m]
        assert found[i, j, k, m] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    figure = positions.plot_similarity(embeddings)
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), found[1, 1])


def test_shuffled_patches_are_the_same_patches_in_an_order_of_the_example():
    found = positions.shuffle_patches(IMAGES, 2, seed=4)

    def patches(image):
        return sorted(image[i : i + 2, j : j + 2].tobytes() for i in range(0, 8, 2) for j in range(0, 8, 2))

    for image, mixed in zip(IMAGES, found):
        assert patches(image) == patches(mixed) and not np.array_equal(image, mixed)
    np.testing.assert_array_equal(positions.shuffle_patches(IMAGES[3:], 2, 4, indices=[3, 4, 5]), found[3:])
    with pytest.raises(ValueError, match="patch_size = 3: must be a divisor of 8 and 8"):
        positions.shuffle_patches(IMAGES, 3)


def test_without_positions_a_transformer_sees_a_set():
    trained = model(pooling="mean", positions="sinusoidal")
    blind = positions.without_positions(trained)
    module, variables = trained.func.module, trained.args[0]
    expected = jax.jit(module.clone(positions="none").apply)(variables, IMAGES)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(blind, IMAGES), expected, atol=1e-5)
    labels = np.argmax(expected, -1)
    found = positions.shuffled_accuracy(trained, IMAGES, labels, 2)
    assert set(found) == {"as trained", "without positions"}
    alike = found["without positions"]
    assert alike["intact"].value == alike["shuffled"].value == alike["same"].value == 1
    assert alike["largest_change"] < 1e-4 < found["as trained"]["largest_change"]


def test_the_experiment_is_drawn_with_its_decisions():
    mixed = positions.shuffle_patches(IMAGES[:2], 2)
    seen = {"as trained": (np.eye(3)[:2], np.eye(3)[[2, 1]])}
    figure = positions.plot_shuffled(IMAGES[:2], mixed, [0, 1], seen, ("ant", "bee", "cat"))
    assert [axes.get_xlabel() for axes in figure.axes] == ["ant  100%", "bee  100%", "cat  100%", "bee  100%"]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), mixed[0, ..., 0])
