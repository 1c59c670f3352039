"""Masked pre-training on attacked images: error and dependence in float64, masks by the example, two real steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robust_vit import attacks, models, randomness
from robust_vit.models.families.masked_autoencoder import Masked, Reconstruction
from robust_vit.objectives.encoders.mimir import hsic, mimir, reconstruction_error, visible_patches
from robust_vit.training import optimizer, state, step

B, N, SIZE = 8, 16, 2
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(B, 8, 8, 1))


def keys(seed=0):
    return randomness.example_keys(seed, jnp.arange(B), randomness.TRAIN_ATTACK)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_error_is_of_the_hidden_patches_alone(normalise):
    painted, visible = RNG.normal(size=(B, N, 4)), np.stack([RNG.permutation(N)[:4] for _ in range(B)])
    expected = np.zeros(B)
    for b in range(B):
        hidden = sorted(set(range(N)) - set(visible[b]))
        for i in hidden:
            y, x = divmod(i, 4)
            target = IMAGES[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            expected[b] += np.mean((painted[b, i] - target) ** 2) / len(hidden)
    found = reconstruction_error(
        Reconstruction(jnp.float32(painted), None), jnp.float32(IMAGES), jnp.asarray(visible), SIZE, normalise
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_the_dependence_is_that_of_float64():
    x, y = RNG.normal(size=(B, 3, 4)), RNG.uniform(size=(B, 5))
    y[:, 0] = x[:, 0, 0]
    centre = np.eye(B) - 1 / B

    def projection(a, sigma):
        a = a.reshape(B, -1)
        squared = ((a[:, None] - a[None]) ** 2).sum(-1)
        kernel = np.exp(-squared / (2 * sigma**2 * a.shape[1])) @ centre
        return kernel @ np.linalg.inv(kernel + 1e-5 * B * np.eye(B))

    expected = np.sum(projection(x, 0.7) * projection(y, 0.7).T)
    np.testing.assert_allclose(hsic(jnp.float32(x), jnp.float32(y), 0.7), expected, rtol=1e-3)
    alone = np.trace(projection(x, 0.7) @ projection(x, 0.7))
    assert 0 < expected < alone < B  # nothing depends on a sample more than it does itself


def test_the_dependence_is_finite_and_of_finite_gradient_where_all_samples_are_one():
    value, slope = jax.value_and_grad(lambda x: hsic(x, x, 5.0))(jnp.ones((B, 3)))
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_masks_belong_to_the_example_and_are_uniform():
    visible = visible_patches(keys(), N, 4)
    assert visible.shape == (B, 4) and all(len(set(row)) == 4 for row in visible.tolist())
    np.testing.assert_array_equal(visible_patches(keys()[3:5], N, 4), visible[3:5])
    assert len({tuple(sorted(row)) for row in visible.tolist()}) == B
    many = visible_patches(jax.random.split(jax.random.key(0), 4000), N, 4)
    share = np.bincount(np.asarray(many).ravel(), minlength=N) / 4000
    assert abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


@pytest.fixture(scope="module")
def module():
    return models.build(
        "masked_autoencoder",
        **dict(depth=1, width=16, heads=2, patch_size=SIZE, image_size=8, channels=1, num_classes=3, pooling="mean"),
        **dict(decoder_width=16, decoder_depth=1, decoder_heads=2, initializer="lecun"),
    )


@pytest.fixture(scope="module")
def shown(module):
    """What the objective shows its attack and its training pass, and what it returns: compiled once."""
    variables = models.init(module, jax.random.key(0))
    objective = mimir(hsic_weight=0.5)

    @jax.jit
    def run(keys, images):
        seen = {}

        def attack(keys, logits_fn, images, targets, strength=1.0):
            moved = jnp.clip(images + 0.1, 0.0, 1.0)
            seen.update(logits=logits_fn(moved), targets=targets)
            return moved

        def forward(masked, statistics):
            seen["visible"] = masked.visible
            found = module.apply(variables, masked)
            seen.update(patches=found.patches, latent=found.latent, pixels=masked.images)
            return found, statistics

        outcome = objective(forward, {}, Partial(module.apply, variables), attack, keys, images, jnp.zeros((B, 3)))
        return outcome.loss, outcome.attacked, seen

    return run(keys(), jnp.float32(IMAGES)), variables


def test_it_paints_the_clean_image_from_the_attacked_one(shown):
    (loss, attacked, seen), _ = shown
    np.testing.assert_allclose(attacked, np.clip(IMAGES + 0.1, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(seen["pixels"], attacked)
    assert seen["visible"].shape == (B, 4)  # a quarter of 16
    found = Reconstruction(seen["patches"], None)
    error = reconstruction_error(found, jnp.float32(IMAGES), seen["visible"], SIZE, True)
    np.testing.assert_allclose(loss, error + 0.5 * hsic(seen["latent"], attacked, 5.0), rtol=1e-4)


def test_the_attack_climbs_the_error_of_what_it_holds_under_a_mask_of_its_own(shown, module):
    (_, attacked, seen), variables = shown
    assert not seen["logits"][:, 0].any() and (seen["targets"] == jnp.array([[1.0, 0.0]])).all()
    own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys(), 2**32 - 1)
    first, second = jax.vmap(lambda key: tuple(jax.random.split(key)))(own)
    np.testing.assert_array_equal(seen["visible"], visible_patches(second, N, 4))
    visible = visible_patches(first, N, 4)
    assert not np.array_equal(visible, seen["visible"])
    found = jax.jit(module.apply)(variables, Masked(attacked, visible))
    expected = reconstruction_error(found, attacked, visible, SIZE, True)
    np.testing.assert_allclose(seen["logits"][:, 1], expected, rtol=1e-4)


@pytest.mark.slow
def test_steps_lower_the_error_and_leave_the_classifier_alone(module):
    tx = optimizer.build("adamw")
    attack = attacks.pgd(norm="linf", epsilon=0.05, step_size=0.06, steps=1, keep="last")
    made = jax.jit(step.make(module, mimir(), attack, tx, num_classes=3, seed=0))
    now = start = jax.jit(lambda: state.create(module, tx, (8, 8, 1), 0, False))()
    batch = {
        "image": np.uint8(255 * IMAGES),
        "label": np.zeros(B, np.int32),
        "index": np.arange(B, dtype=np.int32),
    }
    losses = []
    for _ in range(12):
        now, metrics = made(now, batch, jnp.float32(3e-3), jnp.float32(1.0))
        losses.append(float(metrics["loss"]))
        assert metrics["finite"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    for name in ("head", "fc_norm"):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), now.params[name], start.params[name]))
    for name in ("patch_embed", "blocks_0", "mask_token", "decoder_pred"):
        assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), now.params[name], start.params[name]))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(mask_ratio=1.0), r"objective.options.mask_ratio = 1.0: must be in \(0, 1\)"),
        (dict(hsic_weight=-1), "objective.options.hsic_weight = -1: must be >= 0"),
        (dict(sigma=0), "objective.options.sigma = 0: must be > 0"),
    ],
)
def test_values_out_of_range_are_one_line(keywords, message):
    with pytest.raises(ValueError, match=message):
        mimir(**keywords)


def test_a_mask_that_leaves_no_patch_is_named(module):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def run(variables):
        adversary = Partial(module.apply, variables)
        return mimir(mask_ratio=0.99)(None, {}, adversary, None, keys(), jnp.float32(IMAGES), None).loss

    with pytest.raises(ValueError, match="mask_ratio = 0.99: must be such that some of 16 patches stay"):
        jax.eval_shape(run, variables)
