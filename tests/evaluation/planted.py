"""Small classifiers of the 8x8 digits: one trained honestly, and that one behind each defence that hides gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from sklearn.datasets import load_digits

from robust_vit import attacks

EPSILON = 0.15
WIDTH = 128


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [N,8,8,1] in [0,1] and labels [N]."""
    data = load_digits()
    return (data.images[..., None] / 16.0).astype(np.float32), data.target.astype(np.int32)


def initial(key):
    """Two hidden layers and a head."""
    a, b, c = jax.random.split(key, 3)
    return {
        "first": jax.random.normal(a, (64, WIDTH)) / 4.0,
        "second": jax.random.normal(b, (WIDTH, WIDTH)) / 8.0,
        "bias": jnp.zeros((2, WIDTH)),
        "head": jax.random.normal(c, (WIDTH, 10)) / 8.0,
    }


def features(params, x, activation=jax.nn.relu):
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["first"] + params["bias"][0])
    return activation(x @ params["second"] + params["bias"][1])


def honest(params, x):
    return features(params, x) @ params["head"]


def train(images, labels, epsilon, steps=300, batch=128):
    """Madry training with three PGD steps; epsilon 0 trains an ordinary, weak model."""
    optimizer = optax.adam(3e-3)
    attack = attacks.pgd(norm="linf", epsilon=max(epsilon, 1e-6), steps=3, keep="last")

    def loss(params, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(honest(params, x), y))

    def step(carry, key):
        params, state = carry
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (batch,), 0, len(images))
        x, y = images[rows], labels[rows]
        if epsilon:
            x = attack(jax.random.split(noise, batch), Partial(honest, params), x, y)
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        return (optax.apply_updates(params, updates), state), None

    start, keys = jax.random.key(0), jax.random.split(jax.random.key(1), steps)
    params = initial(start)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[0][0])(params)


# --- defences that hide gradients; each is (params, images) -> logits --------------------------------------------


def bits(params, x, levels=255):
    return honest(params, jnp.round(x * levels) / levels)


def cosines():
    """The orthonormal DCT-II matrix of 8 points."""
    k, n = jnp.arange(8.0)[:, None], jnp.arange(8.0)[None]
    return jnp.cos(jnp.pi * (2 * n + 1) * k / 16) * jnp.where(k == 0, jnp.sqrt(1 / 8), jnp.sqrt(2 / 8))


def jpeg(params, x, step=0.25):
    c = cosines()
    blocks = jnp.einsum("ij,bjkc,lk->bilc", c, x - 0.5, c)
    blocks = jnp.round(blocks / step) * step
    return honest(params, jnp.einsum("ij,bikc,kl->bjlc", c, blocks, c) + 0.5)


def temperature(params, x):
    return 1e4 * honest(params, x)


def dropout(params, x):
    h = features(params, x)
    keep = jax.random.bernoulli(jax.random.key(7), 0.5, h.shape)
    return jnp.where(keep, 2.0 * h, 0.0) @ params["head"]


def stopped(params, x):
    return honest(params, jax.lax.stop_gradient(x)) + 1e-3 * honest(params, 1.0 - x)


def saturated(params, x):
    """Every hidden unit is a step of almost infinite slope, centred where the honest one is half on."""
    h = features(params, x, activation=lambda v: v)
    return jnp.tanh(1e4 * h) @ params["head"]


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-jnp.roll(g, 3, axis=1),))


def wrong_gradient(params, x):
    return honest(params, reversed_gradient(x))


def optimised(params, x):
    """Purification: descends the entropy of the prediction in a loop before it predicts."""

    def entropy(z):
        log_p = jax.nn.log_softmax(honest(params, z))
        return -jnp.sum(jnp.exp(log_p) * log_p)

    z = jax.lax.fori_loop(0, 5, lambda i, z: jnp.clip(z - 0.02 * jnp.sign(jax.grad(entropy)(z)), 0, 1), x)
    return honest(params, z)


def optimised_until(params, x):
    """The same, until the prediction is certain: a loop of unknown length."""

    def entropy(z):
        log_p = jax.nn.log_softmax(honest(params, z))
        return -jnp.sum(jnp.exp(log_p) * log_p)

    def go_on(state):
        i, z = state
        return (i < 5) & (entropy(z) > 0.01)

    step = lambda state: (state[0] + 1, state[1] - 0.02 * jax.grad(entropy)(state[1]))  # noqa: E731
    return honest(params, jax.lax.while_loop(go_on, step, (0, x))[1])
