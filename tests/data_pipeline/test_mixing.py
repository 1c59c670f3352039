"""MixUp, CutMix and random erasing against their formulas in float64 NumPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robust_vit import config as config_lib
from robust_vit import randomness
from robust_vit.data import mixing

MIXUP, CUTMIX, MIX = (jax.jit(f, static_argnames="blocks") for f in (mixing.mixup, mixing.cutmix, mixing.mix))
ERASE, DRAW = jax.jit(mixing.erase), jax.jit(mixing.draw_lambda)
B, H, W, C, K = 8, 10, 12, 3, 5


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(B, H, W, C)).astype(np.float32)
    return jnp.asarray(images), jax.nn.one_hot(jnp.arange(B) % K, K)


def keys(count=B):
    """The same fresh keys at every call."""
    return randomness.example_keys(0, jnp.arange(count), randomness.MIXING)


def rolled(x, blocks):
    x = np.asarray(x, np.float64)
    return np.concatenate([np.roll(part, 1, axis=0) for part in np.split(x, blocks)])


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_mixup_is_the_blend_its_targets_say(batch, blocks):
    images, targets = batch
    mixed, soft = MIXUP(keys(), images, targets, 0.8, blocks=blocks)
    lam = np.asarray(DRAW(keys(), 0.8), np.float64)
    expected = lam[:, None, None, None] * np.asarray(images, np.float64)
    expected += (1 - lam)[:, None, None, None] * rolled(images, blocks)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    np.testing.assert_allclose(
        soft, lam[:, None] * np.asarray(targets) + (1 - lam)[:, None] * rolled(targets, blocks), atol=1e-6
    )
    assert len(np.unique(lam)) == B


@pytest.mark.parametrize("blocks", [1, 4])
def test_cutmix_pastes_one_box_and_counts_its_pixels(batch, blocks):
    images, targets = batch
    mixed, soft = CUTMIX(keys(), images, targets, 1.0, blocks=blocks)
    pasted = np.any(np.asarray(mixed) != np.asarray(images), axis=-1)
    np.testing.assert_array_equal(np.asarray(mixed)[pasted], rolled(images, blocks).astype(np.float32)[pasted])
    for i in range(B):
        rows, columns = np.flatnonzero(pasted[i].any(1)), np.flatnonzero(pasted[i].any(0))
        box = np.ix_(rows, columns)
        assert pasted[i][box].all() and pasted[i].sum() == len(rows) * len(columns)
        lam = 1 - pasted[i].mean()
        expected = lam * np.asarray(targets)[i] + (1 - lam) * rolled(targets, blocks)[i]
        np.testing.assert_allclose(soft[i], expected, atol=1e-6)
    assert pasted.any()


def test_cutmix_area_follows_lambda():
    """The border cuts boxes off: on average 0.279 of 8x8 is pasted (200,000 draws of the same rule in plain Python)."""
    images = jnp.broadcast_to(jnp.arange(2000.0)[:, None, None, None] / 2000, (2000, 8, 8, 1))
    _, soft = CUTMIX(keys(2000), images, jax.nn.one_hot(jnp.arange(2000) % 2, 2), 1.0)
    pasted = 1 - np.asarray(soft)[np.arange(2000), np.arange(2000) % 2]
    assert abs(pasted.mean() - 0.279) < 0.025


def test_mix_chooses_for_each_example_and_keeps_distributions(batch):
    images, targets = batch
    x, y = jnp.tile(images, (8, 1, 1, 1)), jnp.tile(targets, (8, 1))
    mixed, soft = MIX(keys(64), x, y, probability=0.5)
    untouched = np.all(np.asarray(mixed) == np.asarray(x), axis=(1, 2, 3))
    np.testing.assert_array_equal(np.asarray(soft)[untouched], np.asarray(y)[untouched])
    assert 16 <= untouched.sum() <= 48
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)
    assert mixed.min() >= 0 and mixed.max() <= 1
    same, kept = MIX(keys(64), x, y, probability=0.0)
    assert jnp.array_equal(same, x) and jnp.array_equal(kept, y)


def test_alpha_zero_changes_nothing_and_alpha_is_traced(batch):
    images, targets = batch
    traces = []

    @jax.jit
    def compiled(keys, images, targets, alpha):
        traces.append(alpha)
        return mixing.mixup(keys, images, targets, alpha)

    for alpha in (0.0, 0.2, 1.0):
        mixed, soft = compiled(keys(), images, targets, jnp.float32(alpha))
        assert bool(jnp.array_equal(mixed, images) and jnp.array_equal(soft, targets)) == (alpha == 0)
    assert len(traces) == 1


def test_erase_overwrites_a_box_of_allowed_area():
    images = jnp.full((256, 20, 20, 3), 2.0)  # a value that noise in [0,1] never takes
    erased = np.asarray(ERASE(keys(256), images, 0.25))
    changed = (erased != 2).all(-1)
    assert np.array_equal(changed, (erased != 2).any(-1))
    areas = changed.mean((1, 2))
    assert 0.15 < np.mean(areas > 0) < 0.35
    assert areas.max() < 0.45 and areas[areas > 0].min() > 0.005
    noise = erased[changed]
    assert noise.min() >= 0 and noise.max() <= 1 and abs(noise.mean() - 0.5) < 0.02 and 0.18 < noise.std() < 0.25
    assert jnp.array_equal(ERASE(keys(256), images, 0.0), images)


def test_erased_boxes_have_uniform_areas_and_log_uniform_aspects():
    images = jnp.full((600, 40, 40, 1), 2.0)
    black = jax.jit(mixing.build(erase=1.0, erase_fill="black"))(keys(600), images, jnp.zeros((600, K)))[0]
    gone = np.asarray(black[..., 0] == 0)
    height, width = gone.any(2).sum(1), gone.any(1).sum(1)
    area, aspect = height * width / 1600, np.log(height / width)
    assert np.array_equal(gone.sum((1, 2)), height * width)  # whole: nothing sticks out
    assert stats.kstest(area, stats.uniform(0.02, 1 / 3 - 0.02).cdf).statistic < 0.08
    assert stats.kstest(aspect, stats.uniform(np.log(0.3), np.log(3.3 / 0.3)).cdf).statistic < 0.08
    first = gone.any(2).argmax(1) / np.maximum(40 - height, 1)  # of the places that hold the box whole
    assert abs(first.mean() - 0.5) < 0.04 and first.min() == 0 and first.max() == 1


def test_one_example_depends_on_its_key_and_partner_only(batch):
    """The same two neighbours in another batch mix alike: no draw is shared by the batch."""
    images, targets = batch
    whole = MIX(keys(), images, targets, blocks=4)
    half = MIX(keys()[4:], images[4:], targets[4:], blocks=2)
    for a, b in zip(whole, half):
        assert jnp.array_equal(a[4:], b)


def test_dtypes_are_kept(batch):
    images, targets = (x.astype(jnp.bfloat16) for x in batch)
    mixed, soft = jax.eval_shape(mixing.mix, keys(), images, targets)
    erased = jax.eval_shape(mixing.erase, keys(), images)
    assert mixed.dtype == soft.dtype == erased.dtype == jnp.bfloat16


def test_blocks_must_divide_the_batch(batch):
    with pytest.raises(ValueError, match="mixing blocks = 3: must be a divisor of the batch, 8"):
        mixing.partner(batch[0], 3)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0, 1e5])
def test_lambda_has_the_beta_distribution(alpha):
    lam = np.asarray(DRAW(keys(4000), jnp.float32(alpha)), np.float64)
    assert lam.min() >= 0 and lam.max() <= 1
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.001  # the keys are fixed, and with them this


def test_lambda_stays_a_number_where_almost_all_mass_is_at_the_ends():
    lam = np.asarray(DRAW(keys(4000), jnp.float32(1e-3)))
    assert np.isfinite(lam).all() and np.mean((lam < 1e-3) | (lam > 1 - 1e-3)) > 0.95
    assert abs(lam.mean() - 0.5) < 0.03


def test_nothing_asked_for_builds_nothing_and_the_defaults_are_the_configurations():
    assert mixing.build() is None and mixing.build(switch_probability=0.3) is None
    defaults = {name: p.default for name, p in inspect.signature(mixing.build).parameters.items()}
    assert defaults == config_lib.plain(config_lib.base().augmentation)


@pytest.fixture(scope="module")
def heavy():
    """Mixed and erased, 512 examples of 2 x 2 values: what came out, and what went in."""
    count = 512
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(count, 12, 12, 2)), jnp.float32)
    targets = jax.nn.one_hot(jnp.arange(count) % K, K)
    augment = jax.jit(mixing.build(mixup=0.8, cutmix=1.0, switch_probability=0.25, mix_probability=0.8, erase=0.0))
    return (images, targets), augment(keys(count), images, targets)


def test_pairs_are_each_others_partners_and_nobody_elses(heavy):
    (images, targets), (mixed, soft) = (tuple(map(np.asarray, pair)) for pair in heavy)
    swap = np.arange(len(images)) ^ 1
    low, high = np.minimum(images, images[swap]), np.maximum(images, images[swap])
    assert (mixed >= low - 1e-6).all() and (mixed <= high + 1e-6).all()
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)
    own, other = soft[targets == 1], soft[targets[swap] == 1]
    np.testing.assert_allclose(own + other, 1, atol=1e-6)


def test_the_switch_and_the_probability_of_mixing_are_kept(heavy):
    (images, _), (mixed, _) = (tuple(map(np.asarray, pair)) for pair in heavy)
    kept = (mixed == images).mean((1, 2, 3))
    mixup, same = np.mean(kept < 0.01), np.mean(kept == 1)
    assert abs(mixup - 0.8 * 0.75) < 0.05
    # CutMix at a lambda that leaves no pixel, or all of them, looks like no mixing or is the partner whole
    assert 0.2 - 0.04 < same < 0.2 + 0.8 * 0.25 * 0.2 and mixup + same < 0.95


def test_cutout_is_one_square_a_box_and_colour_one_value_a_channel():
    images = jnp.full((64, 16, 16, 3), 2.0)
    augment = mixing.build(erase=1.0, erase_area=(0.25, 0.25), erase_aspect=(1.0, 1.0), erase_fill="colour")
    erased = np.asarray(jax.jit(augment)(keys(64), images, jnp.zeros((64, K)))[0])
    changed = (erased != 2).all(-1)
    assert (changed.sum((1, 2)) == 64).all()  # 8 x 8 of 16 x 16, whole and inside
    for image, inside in zip(erased, changed):
        assert len(np.unique(image[inside], axis=0)) == 1 and len(np.unique(image[inside])) == 3
    assert erased[changed].min() >= 0 and erased[changed].max() <= 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(mixup=-0.1), "mixup = -0.1: must be >= 0"),
        (dict(erase=1.5), "erase = 1.5: must be a probability"),
        (dict(cutmix=1.0, mix_probability=-1), "mix_probability = -1: must be a probability"),
        (dict(erase=0.1, erase_area=(0.5, 0.2)), r"erase_area = \(0.5, 0.2\): must be 0 < low <= high <= 1"),
        (dict(erase=0.1, erase_aspect=(0.0, 1.0)), r"erase_aspect = .*must be 0 < low"),
        (dict(erase=0.1, erase_fill="pixels"), "erase_fill = 'pixels': must be one of .*did you mean 'pixel'"),
    ],
)
def test_build_names_what_is_wrong(keywords, message):
    with pytest.raises(ValueError, match=message):
        mixing.build(**keywords)


def test_an_example_without_a_partner_is_refused(batch):
    images, targets = batch
    with pytest.raises(ValueError, match="examples to mix = 7: must be an even number"):
        mixing.build(mixup=1.0)(keys(7), images[:7], targets[:7])
