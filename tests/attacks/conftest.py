"""One small smooth model for every attack's tests: its weights are arguments, its compilation costs next to nothing."""

import jax
import jax.numpy as jnp
import pytest


def tiny_apply(weights, images):
    """logits = 4 tanh((x - 1/2) w_1) w_2, in float32 whatever the images' dtype."""
    x = images.astype(jnp.float32).reshape(images.shape[0], -1) - 0.5
    return 4.0 * jnp.tanh(x @ weights["in"]) @ weights["out"]


def tiny_weights(seed, pixels, classes, hidden=16):
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "in": jax.random.normal(first, (pixels, hidden)) / pixels**0.5,
        "out": jax.random.normal(second, (hidden, classes)) / hidden**0.5,
    }


@pytest.fixture(scope="session")
def problem():
    """problem(shape, classes, seed) -> keys [B], logits_fn, images [B,H,W,C], labels [B] as the model predicts them."""

    def make(shape=(4, 6, 5, 3), classes=5, seed=0):
        weights = tiny_weights(seed, shape[1] * shape[2] * shape[3], classes)
        logits_fn = jax.tree_util.Partial(tiny_apply, weights)
        images = jax.random.uniform(jax.random.key(seed + 1), shape)
        # Some values on the border of the pixel range, as real images have.
        images = jnp.round(images * 1.2 - 0.1, 3).clip(0.0, 1.0)
        labels = jnp.argmax(logits_fn(images), axis=-1)
        return jax.random.split(jax.random.key(seed + 2), shape[0]), logits_fn, images, labels

    return make
