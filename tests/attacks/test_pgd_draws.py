"""What PGD draws beside a uniform start: TRADES' normal start, masks over patches, a stochastic model's noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import losses, norms, patch_masks


def first_points(seed, epsilon=0.4, **keywords):
    """Where PGD starts: a step of a model whose gradient is 0 stays there."""
    flat = jax.tree_util.Partial(lambda x: jnp.zeros((len(x), 3)))
    attack = attacks.pgd(epsilon=epsilon, steps=1, keep="last", **keywords)
    images = jnp.full((4, 16, 16, 3), 0.5)
    return attack(jax.random.split(jax.random.key(seed), 4), flat, images, jnp.zeros(4, jnp.int32)) - images


def test_a_normal_start_has_its_scale():
    for keywords, scale in (({}, 0.001), ({"start_scale": 0.05}, 0.05)):
        delta = first_points(0, start="normal", **keywords)
        assert abs(float(delta.mean())) < 4 * scale / np.sqrt(delta.size)
        assert float(delta.std()) == pytest.approx(scale, rel=0.05)
        assert abs(float((jnp.abs(delta) < scale).mean()) - 0.6827) < 0.03  # within one standard deviation


def test_a_normal_start_is_put_into_the_ball():
    delta = first_points(1, epsilon=0.01, start="normal", start_scale=0.05)
    assert jnp.abs(delta).max() <= 0.01 + 1e-6 and (jnp.abs(delta) > 0.0099).mean() > 0.5


def test_the_uniform_start_is_what_it_was():
    keys, images = jax.random.split(jax.random.key(3), 4), jnp.full((4, 16, 16, 3), 0.5)
    folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
    expected = norms.get("linf").start(folded, images, 0.4) - images
    np.testing.assert_allclose(first_points(3), expected, atol=1e-6)


@jax.jit
def kept(keys, fraction):
    return patch_masks.kept(keys, jnp.zeros((64, 10, 8, 3)), fraction, 2)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
def test_masks_drop_exactly_as_many_patches_as_they_say(fraction):
    keys = jax.random.split(jax.random.key(0), 64)
    mask = kept(keys, fraction)
    assert mask.shape == (64, 10, 8, 1)
    cells = np.asarray(mask).reshape(64, 5, 2, 4, 2)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))  # whole patches
    patches = cells[:, :, 0, :, 0].reshape(64, 20)
    np.testing.assert_array_equal(patches.sum(1), 20 - int(20 * (1 - fraction) + 1e-9))
    if 0 < fraction < 1:
        assert len(np.unique(patches, axis=0)) > 48  # every example draws its own
        assert np.all(np.abs(patches.mean(0) - fraction) < 5 * np.sqrt(0.25 / 64))  # and any patch is as likely


def test_a_mask_is_cut_where_the_patch_does_not_divide_the_image():
    mask = patch_masks.kept(jax.random.split(jax.random.key(0), 3), jnp.zeros((3, 5, 7, 1)), 0.5, 4)
    assert mask.shape == (3, 5, 7, 1) and jnp.all(mask[:, :4, :4] == mask[:, :1, :1]) and mask.any() and not mask.all()


def test_masked_patches_lose_what_they_had_and_step_on(problem):
    """One step from a random start with all patches masked is one step from the image; with none it is PGD's."""
    keys, logits_fn, images, labels = problem()
    wanted = {"epsilon": 0.1, "step_size": 0.03, "steps": 1, "keep": "last"}
    plain = attacks.pgd(**wanted)
    still = attacks.pgd(**wanted, random_start=False)
    masked = jax.jit(lambda keep, *given: attacks.pgd(**wanted, patch_keep=keep, patch_size=2)(*given))
    found = [masked(keep, jax.random.clone(keys), logits_fn, images, labels) for keep in (0.0, 1.0)]
    np.testing.assert_allclose(found[0], still(jax.random.clone(keys), logits_fn, images, labels), atol=1e-6)
    np.testing.assert_allclose(found[1], plain(jax.random.clone(keys), logits_fn, images, labels), atol=1e-6)


def test_masks_belong_to_the_example_and_stay_in_the_ball(problem):
    keys, logits_fn, images, labels = problem()
    attack = jax.jit(attacks.pgd(epsilon=0.1, steps=4, patch_keep=0.5, patch_size=2, restarts=2))
    found = attack(keys, logits_fn, images, labels)
    assert norms.get("linf").distance(found, images).max() <= 0.1 + 1e-6
    assert found.min() >= 0.0 and found.max() <= 1.0
    assert jnp.all(losses.cross_entropy(logits_fn(found), labels) > losses.cross_entropy(logits_fn(images), labels))
    keys, *_ = problem()
    order = jnp.array([1, 3, 2, 0])
    np.testing.assert_array_equal(attack(keys[order], logits_fn, images[order], labels[order]), found[order])


@pytest.mark.parametrize("keep", [pytest.param("last", marks=pytest.mark.slow), "loss"])
def test_a_stochastic_model_gets_fresh_keys_at_every_evaluation(keep, problem):
    keys, logits_fn, images, labels = problem()
    seen = []

    def noisy(points, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return logits_fn(points)

    attack = attacks.pgd(epsilon=0.1, steps=3, keep=keep, stochastic=True)
    found = jax.jit(lambda k: attack(k, jax.tree_util.Partial(noisy), images, labels))(keys)
    jax.effects_barrier()
    evaluations = 3 + (keep == "loss")
    assert len(seen) == evaluations
    assert len(np.unique(np.concatenate(seen), axis=0)) == 4 * evaluations  # for each example and each evaluation
    keys, *_ = problem()
    expected = jax.jit(attacks.pgd(epsilon=0.1, steps=3, keep=keep))(keys, logits_fn, images, labels)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"start": "gaussian"}, r"start = 'gaussian': must be one of normal, uniform"),
        ({"start": "normal", "random_start": False}, r"start = 'normal': must be left out without random_start"),
        ({"start": "normal", "start_scale": 0.0}, r"start_scale = 0.0: must be above 0"),
        ({"start_scale": 0.1}, r"start_scale = 0.1: must be left out with start = 'uniform'"),
        ({"patch_keep": 0.5}, r"patch_size = None: must be given with patch_keep, and only then"),
        ({"patch_size": 4}, r"patch_size = 4: must be given with patch_keep, and only then"),
        ({"patch_keep": 1.5, "patch_size": 4}, r"patch_keep = 1.5: must be in \[0, 1\]"),
        ({"patch_keep": 0.5, "patch_size": 0}, r"patch_size = 0: must be a whole number, at least 1"),
    ],
)
def test_bad_draws_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(epsilon=0.1, **keywords)
