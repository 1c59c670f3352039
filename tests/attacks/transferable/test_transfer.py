"""Attacks that transfer: every ingredient against its formula, all of them together, and further than noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from robust_vit import attacks, models
from robust_vit.analysis import transfer as analysis
from robust_vit.attacks import losses
from robust_vit.attacks.transferable import filters, views
from robust_vit.models.parts import taps


@pytest.fixture(scope="module")
def vit():
    """A tiny transformer as a classifier, 4 images, and the labels it gives them."""
    module = models.build("vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=4)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda w: jnp.asarray(0.4 * rng.normal(size=w.shape), w.dtype), variables)
    logits_fn = models.logits_fn(module, variables)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    return logits_fn, images, jnp.argmax(jax.jit(lambda f, x: f(x))(logits_fn, images), -1)


@jax.jit
def slope(logits_fn, images, labels):
    return jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())(images)


def test_the_smoothed_gradient_is_scipys_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 9, 7, 3))
    kernel = np.exp(-0.5 * np.linspace(-3, 3, 5) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    expected = [
        [scipy.ndimage.convolve(np.asarray(image[..., c], np.float64), kernel, mode="constant") for c in range(3)]
        for image in images
    ]
    np.testing.assert_allclose(filters.blurred(images, 5), np.moveaxis(expected, 1, -1), atol=1e-6)
    np.testing.assert_array_equal(filters.blurred(images, 1), images)
    weights = jax.random.normal(jax.random.key(1), images.shape)
    smooth = filters.smoothed(jax.tree_util.Partial(lambda w, x: w * x, weights), 5)
    np.testing.assert_array_equal(smooth(images), weights * images)
    np.testing.assert_allclose(jax.grad(lambda x: smooth(x).sum())(images), filters.blurred(weights, 5), atol=1e-6)


def test_regular_gradients_are_those_of_the_papers_loop():
    """TGR loops over heads and channels of one image; here a batch at once."""
    maps = np.array(jax.random.normal(jax.random.key(0), (2, 3, 5, 6)))
    found, expected = filters.regular_map(jnp.asarray(maps)), maps.copy()
    for image, out in zip(maps, expected):
        for head in range(3):
            for place in (image[head].argmax(), image[head].argmin()):
                row, column = divmod(place, 6)
                out[head, row, :], out[head, :, column] = 0, 0
    np.testing.assert_array_equal(found, expected)
    tokens = np.array(jax.random.normal(jax.random.key(1), (2, 2, 3, 4)))
    found, expected = filters.regular_tokens(jnp.asarray(tokens)), tokens.copy().reshape(2, 6, 4)
    for image, out in zip(tokens.reshape(2, 6, 4), expected):
        for channel in range(4):
            out[image[:, channel].argmax(), channel] = out[image[:, channel].argmin(), channel] = 0
    np.testing.assert_array_equal(found.reshape(2, 6, 4), expected)


@pytest.fixture(scope="module")
def slopes(vit):
    return {name: slope(filters.through_tokens(vit[0], name), *vit[1:]) for name in filters.TOKENS}


def test_filters_change_the_gradient_and_not_the_logits(vit, slopes):
    logits_fn, images, _ = vit
    logits = {name: jax.jit(filters.through_tokens(logits_fn, name))(images) for name in filters.TOKENS}
    for name in ("pna", "tgr"):
        np.testing.assert_array_equal(logits[name], logits["none"])
        assert np.abs(slopes[name] - slopes["none"]).max() > 1e-3 * np.abs(slopes["none"]).max()


def test_pna_is_the_gradient_of_a_model_whose_maps_are_constants(vit, slopes):
    logits_fn, images, labels = vit

    def frozen(x):
        with taps.handled(lambda module, point, value: jax.lax.stop_gradient(value), ("attention_probabilities",)):
            return logits_fn(x)

    np.testing.assert_allclose(
        slopes["pna"], slope(jax.tree_util.Partial(frozen), images, labels), rtol=1e-5, atol=1e-7
    )


def test_tgr_of_a_batch_is_that_of_each_image(vit, slopes):
    logits_fn, images, labels = vit
    alone = slope(filters.through_tokens(logits_fn, "tgr"), images[2:3], labels[2:3])
    np.testing.assert_allclose(slopes["tgr"][2:3], alone, rtol=1e-4, atol=1e-6)


def test_a_surrogate_without_tokens_is_one_line(problem):
    keys, logits_fn, images, labels = problem()
    for given in ({"tokens": "tgr"}, {"keep_tokens": 0.5}):
        with pytest.raises(ValueError, match="surrogate = 'a model': must be a transformer") as caught:
            attacks.transfer(epsilon=0.1, steps=1, **given)(keys, logits_fn, images, labels)
        assert "\n" not in str(caught.value)


def test_everything_together_is_split_as_one_likes_and_stays_in_the_ball(vit):
    logits_fn, images, labels = vit
    keywords = dict(nesterov=True, diversity=0.7, translation=3, scales=2, tokens="tgr", keep_tokens=0.8)
    keywords |= dict(keep_heads=0.8, patch_keep=0.75, patch_size=4, eot=2)
    attack = jax.jit(attacks.transfer(epsilon=0.1, steps=2, **keywords))
    keys = jax.random.split(jax.random.key(3), 4)
    whole = attack(keys, logits_fn, images, labels)
    assert 0 < np.abs(whole - images).max() <= 0.1 + 1e-6 and whole.min() >= 0 and whole.max() <= 1
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(attack(keys[order], logits_fn, images[order], labels[order]), whole[order])
    other = attack(jax.random.split(jax.random.key(4), 4), logits_fn, images, labels)
    assert jnp.any(other != whole)


@pytest.mark.slow
def test_scales_average_the_gradients_of_fainter_copies(problem):
    keys, logits_fn, images, labels = problem()
    attack = attacks.transfer(norm="l2", epsilon=0.05, steps=1, scales=3, momentum=0.0)
    moved = jax.jit(attack)(keys, logits_fn, images.clip(0.2, 0.8), labels) - images.clip(0.2, 0.8)
    x = images.clip(0.2, 0.8)
    mean = sum(slope(logits_fn, x / 2**i, labels) / 2**i for i in range(3))
    cosine = (moved * mean).sum((1, 2, 3)) / np.linalg.norm(moved.reshape(4, -1), axis=1)
    np.testing.assert_allclose(cosine, np.linalg.norm(mean.reshape(4, -1), axis=1), rtol=1e-4)


@pytest.mark.slow
def test_diverse_images_are_the_image_smaller_on_black():
    images = jnp.ones((64, 11, 11, 1))
    keys = jax.random.split(jax.random.key(0), 64)
    seen = np.asarray(jax.jit(views.diverse(1.0))(keys, images))
    area = seen.sum((1, 2, 3)) / 121
    assert area.min() > 1 / 1.1**2 - 1e-3 and area.max() <= 1 + 1e-6 and area.std() > 0.02
    np.testing.assert_array_equal(views.diverse(0.0)(jax.random.clone(keys), images), images)


@pytest.fixture(scope="module")
def relatives():
    """Three linear classifiers that share most of their weights."""
    shared = jax.random.normal(jax.random.key(0), (36, 3))
    apart = [0.5 * jax.random.normal(jax.random.key(number), (36, 3)) for number in (1, 2, 3)]
    images = jnp.clip(0.5 + 0.1 * jax.random.normal(jax.random.key(4), (40, 6, 6, 1)), 0, 1)
    models = {
        name: jax.tree_util.Partial(lambda w, x: (x.reshape(len(x), -1) - 0.5) @ w, shared + own)
        for name, own in zip("abc", apart)
    }
    return models, images, jnp.argmax(models["a"](images), -1)


def test_what_is_made_on_a_relative_goes_further_than_noise(relatives, tmp_path):
    found = analysis.matrix(*relatives, threat="linf-0.05", batch_size=16, steps=3)
    assert found.sources == ("noise", "a", "b", "c") and found.victims == ("a", "b", "c")
    assert found.right[0] == 40
    assert np.all(found.rate[1:] > found.rate[0] + 0.2)
    assert np.all(np.diag(found.rate[1:]) >= found.rate[1:].max(0) - 1e-9)  # nothing fools a model as its own images do
    told = found.to_dict()
    low, high = told["fooled"]["a"]["b"]["interval"]
    assert low <= told["fooled"]["a"]["b"]["rate"] <= high and told["threat"] == "linf-0.05"
    analysis.plot(found).savefig(tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").stat().st_size > 5_000
    again = analysis.matrix(*relatives, threat="linf-0.05", batch_size=40, steps=3)
    np.testing.assert_array_equal(again.fooled, found.fooled)


def test_a_victim_of_other_images_or_classes_is_one_line(relatives, problem):
    models, images, labels = relatives
    wide = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((36, 5)))
    large = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((64, 3)))
    for other, message in [(wide, "classes of other = 5: must be 3"), (large, "logits_fn.*fails with")]:
        with pytest.raises(ValueError, match=message) as caught:
            analysis.matrix(models | {"other": other}, images, labels, threat="linf-0.05")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"tokens": "trg"}, "tokens = 'trg': must be one of none, pna, tgr; did you mean 'tgr'"),
        ({"translation": 4}, "translation = 4: must be odd"),
        ({"scales": 0}, "scales = 0"),
        ({"diversity": 1.5}, r"diversity = 1.5: must be in \[0, 1\]"),
        ({"eot": 4}, "eot = 4: must be 1: nothing is drawn"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov = True: must be False with momentum = 0.0"),
        ({"patch_keep": 0.5}, "patch_size = None: must be given with patch_keep"),
    ],
)
def test_bad_keywords_are_one_line(keywords, message):
    with pytest.raises(ValueError, match=message) as caught:
        attacks.transfer(epsilon=0.1, **keywords)
    assert "\n" not in str(caught.value)
