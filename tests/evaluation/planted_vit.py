"""A robust vision transformer of the 8x8 digits, and that model behind each defence that hides gradients.

`python tests/evaluation/planted_vit.py` trains the weights anew (a few minutes) and writes them to tests/data.
"""

import functools
import pathlib
import sys

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from robust_vit import attacks, models
from robust_vit.models.parts import layers, scanning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from planted import EPSILON, digits  # noqa: E402

WEIGHTS = pathlib.Path(__file__).parent.parent / "data" / "digits_vit.npz"
FIELDS = dict(image_size=8, channels=1, patch_size=2, width=32, depth=2, heads=4, num_classes=10)
FIELDS |= dict(pooling="mean", positions="sinusoidal", initializer="lecun", mean=(0.3,), std=(0.38,))


def module(**fields):
    return models.build("vit", **FIELDS, **fields)


@functools.cache
def weights(scan=False):
    """The trained weights; for the scanned form the same numbers, stacked."""
    stored = {tuple(k.split("/")): jnp.asarray(v, jnp.float32) for k, v in np.load(WEIGHTS).items()}
    variables = flax.traverse_util.unflatten_dict(stored)
    return scanning.stack(variables) if scan else variables


def honest(scan=False, **fields):
    return models.logits_fn(module(scan=scan, **fields), weights(scan))


def intercepted(wanted, change):
    """(logits_fn, images) -> logits, where each module that is wanted puts out change(module, what it would)."""

    def intercept(call, arguments, keywords, context):
        out = call(*arguments, **keywords)
        return change(context.module, out) if context.method_name == "__call__" and wanted(context.module) else out

    def defended(logits_fn, x):
        with nn.intercept_methods(intercept):
            return logits_fn(x)

    return defended


def inside(kind, change):
    """A defence that changes what every module of a kind puts out, wherever it stands in the model."""
    return intercepted(lambda module: isinstance(module, kind), lambda module, out: change(out))


# --- defences; each is (logits_fn, images) -> logits --------------------------------------------------------------


def half_stopped(h):
    """The derivative of half of the channels is gone."""
    return jnp.concatenate([jax.lax.stop_gradient(h[..., ::2]), h[..., 1::2]], axis=-1)


def between_activations(module):
    return isinstance(module, layers.LayerNorm) or module.name in ("fc1", "qkv")


@functools.cache
def statistics():
    """Mean and standard deviation of every channel there, over training images: {path: (mu [D], s [D])}."""
    found = {}

    def record(module, out):
        found[module.path] = jnp.mean(out, (0, 1)), jnp.std(out, (0, 1))
        return out

    intercepted(between_activations, record)(honest(), jnp.asarray(digits()[0][:512]))
    return found


def mean_sparse(module, h, t=0.1):
    """MeanSparse: what is near its channel's mean becomes the mean, y = mu where |x - mu| < t s."""
    mu, s = statistics().get(module.path, (0.0, 1.0))  # paths differ in the scanned form
    return jnp.where(jnp.abs(h - mu) < t * s, mu, h)


def winners(h, share=0.3):
    k = int(share * h.shape[-1])
    return jnp.where(h >= jax.lax.top_k(h, k)[0][..., -1:], h, 0.0)


def eight_levels(logits_fn, x):
    return logits_fn(jnp.round(x * 7) / 7)


def bits(logits_fn, x):
    return logits_fn((x * 255).astype(jnp.uint8).astype(jnp.float32) / 255)


def hash_gate(logits_fn, x):
    even = jnp.floor(1e4 * jnp.sum(x, axis=(1, 2, 3))) % 2 == 0
    return jnp.where(even[:, None], logits_fn(x), 0.1)


def abstaining(logits_fn, x):
    """Low confidence gets a constant class."""
    z = logits_fn(x)
    sure = jnp.max(jax.nn.softmax(z), axis=-1, keepdims=True) > 0.6
    return jnp.where(sure, z, 10.0 * jax.nn.one_hot(3, 10))


def probabilities(logits_fn, x):
    return jax.nn.softmax(logits_fn(x))


def temperature(logits_fn, x):
    return 1e4 * logits_fn(x)


def never_returns(logits_fn, x):
    """A detector that loops for ever on what it suspects."""
    z = logits_fn(x)
    suspicious = jnp.mean(jnp.max(jax.nn.softmax(z), axis=-1)) < 0.9
    return z + jax.lax.while_loop(lambda s: suspicious, lambda s: s * 1.0, 0.0 * z)


@jax.custom_vjp
def shuffled(x):
    return x


shuffled.defvjp(lambda x: (x, None), lambda _, g: (-jnp.roll(g, 3, axis=1),))


def wrong_gradient(logits_fn, x):
    return logits_fn(shuffled(x))


def purified(logits_fn, x):
    def entropy(z):
        log_p = jax.nn.log_softmax(logits_fn(z))
        return -jnp.sum(jnp.exp(log_p) * log_p)

    return logits_fn(jax.lax.fori_loop(0, 3, lambda i, z: z - 0.02 * jnp.sign(jax.grad(entropy)(z)), x))


def noisy(logits_fn, x):
    return logits_fn(x + 0.1 * jax.random.normal(jax.random.key(7), x.shape))


DEFENCES = {
    "half_stopped": inside(layers.Mlp, half_stopped),
    "mean_sparse": intercepted(between_activations, mean_sparse),
    "winners": inside(layers.Mlp, winners),
    "eight_levels": eight_levels,
    "bits": bits,
    "hash_gate": hash_gate,
    "abstaining": abstaining,
    "probabilities": probabilities,
    "temperature": temperature,
    "never_returns": never_returns,
    "wrong_gradient": wrong_gradient,
    "rounded activations": inside(layers.LayerNorm, lambda h: jnp.round(4 * h) / 4),
    "stopped attention": inside(layers.LayerNorm, jax.lax.stop_gradient),
    "purified": purified,
    "noisy": noisy,
}


def defended(name, scan=False):
    statistics()  # before any tracing
    return Partial(DEFENCES[name], honest(scan))


def train(steps=1200, batch=64):
    images, labels = (jnp.asarray(part[:1400]) for part in digits())
    vit = module()
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.05)

    def loss(variables, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(vit.apply(variables, x), y))

    def step(carry, inputs):
        (variables, state), (key, i) = carry, inputs
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (batch,), 0, len(images))
        radius = EPSILON * jnp.minimum(1.0, 3 * i / steps) + 1e-6
        attack = attacks.pgd(norm="linf", epsilon=radius, steps=3, keep="last")
        x = attack(jax.random.split(noise, batch), models.logits_fn(vit, variables), images[rows], labels[rows])
        updates, state = optimizer.update(jax.grad(loss)(variables, x, labels[rows]), state, variables)
        return (optax.apply_updates(variables, updates), state), None

    variables = models.init(vit, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda v: jax.lax.scan(step, (v, optimizer.init(v)), (keys, jnp.arange(steps)))[0][0])
    return run(variables)


if __name__ == "__main__":
    trained = flax.traverse_util.flatten_dict(train(), sep="/")
    np.savez_compressed(WEIGHTS, **{name: np.asarray(value, np.float16) for name, value in trained.items()})
    images, labels = digits()
    attack = attacks.pgd(norm="linf", epsilon=EPSILON, steps=20, keep="success")
    keys = jax.random.split(jax.random.key(2), len(labels[1400:]))
    broken = jax.jit(attack)(keys, honest(), jnp.asarray(images[1400:]), jnp.asarray(labels[1400:]))
    for x in (images[1400:], broken):
        print(float(jnp.mean(honest()(x).argmax(-1) == labels[1400:])))
