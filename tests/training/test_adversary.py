"""What the training attack sees: modes of BatchNorm, noise of the training pass, dropped gradients of branches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks, models
from robust_vit.models.parts import layers
from robust_vit.training import adversary

SHAPE = (8, 8, 1)


class Normalised(nn.Module):
    """BatchNorm and drop path: what the modes differ on."""

    drop_path: float = 0.5

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.Dense(8)(images.reshape(len(images), -1))
        x = x + layers.DropPath()(layers.Dense(8)(layers.BatchNorm()(x, train)), self.drop_path, train)
        return layers.Dense(10)(jnp.tanh(x))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(7), (6, *SHAPE))


@pytest.fixture(scope="module")
def normalised(images):
    module = Normalised()
    return module, jax.jit(module.init)(jax.random.key(0), images)


def keys_of(seed, count=6):
    return jax.random.split(jax.random.key(seed), count)


def view_of(made, mode, **keywords):
    module, variables = made
    return adversary.adversary_view(module, variables["params"], variables.get("batch_stats", {}), mode, **keywords)


def test_the_training_pass_draws_at_every_call_and_the_calm_one_never(normalised, images):
    view = view_of(normalised, "train")
    first, again, other = (view(images, keys_of(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_allclose(view(images), view_of(normalised, "batch")(images), atol=1e-6)


def test_the_training_pass_is_the_modules_own(normalised, images):
    module, variables = normalised
    key = jax.random.fold_in(keys_of(1)[0], 0)
    expected, _ = module.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    np.testing.assert_allclose(view_of(normalised, "train")(images, keys_of(1)), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "train"])
def test_equal_views_share_a_program_and_weights_are_arguments(mode, normalised, images):
    traces = []

    @jax.jit
    def run(view, keys):
        traces.append(1)
        return view(images, keys) if mode == "train" else view(images)

    module, variables = normalised
    other = jax.tree.map(lambda w: w + 0.1, variables)
    results = [run(view_of(made, mode), keys_of(0)) for made in (normalised, (module, other))]
    assert len(traces) == 1
    assert not np.allclose(*results)


@pytest.fixture(scope="module")
def vit(images):
    """A ViT without drop path, sharp enough for an attack to find something."""
    module = models.build(
        "vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2, num_classes=10, pooling="mean"
    )
    return module, jax.tree.map(lambda w: 12 * w, jax.jit(module.init)(jax.random.key(0), images))


def test_a_model_without_drop_path_or_batch_norm_is_the_same_in_every_mode(vit, images):
    @jax.jit
    def all_of_them(keys):
        calm = [view_of(vit, mode)(images) for mode in ("running", "batch", "train")]
        dropping = view_of(vit, "running", branch_keep=0.5)
        return [*calm, view_of(vit, "train")(images, keys), dropping(images), dropping(images, keys)]

    first, *others = all_of_them(keys_of(0))
    for one in others:
        np.testing.assert_allclose(one, first, atol=1e-5)


def test_dropped_gradients_weaken_the_attack(vit, images):
    """At keep 0 the attack sees the stream of tokens alone, and finds less than with all gradients."""
    module, variables = vit
    labels = jnp.argmax(module.apply(variables, images), axis=-1)
    attack = attacks.pgd(epsilon=0.05, steps=3, stochastic=True, keep="last")

    @jax.jit
    def loss(keep, keys):
        found = attack(keys, view_of(vit, "running", branch_keep=keep), images, labels)
        return attacks.losses.cross_entropy(module.apply(variables, found), labels).mean()

    none, full = (loss(keep, keys_of(0)) for keep in (0.0, 1.0))
    assert none < 0.9 * full


def test_the_ramp():
    assert adversary.ramp(3.0, 0.0) is None
    np.testing.assert_allclose([adversary.ramp(e, 10.0) for e in (0, 2.5, 10, 40)], [0, 0.25, 1, 1])
