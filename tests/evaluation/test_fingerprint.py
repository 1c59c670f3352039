"""A fingerprint follows what is computed, and nothing else: not the process, not the trace, not a name."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.evaluation import fingerprint
from robust_vit.models.parts import forms

RANK_PROMOTION = "allow"  # of the models that are made here

VIT = dict(
    depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)
SPARSE = dict(
    depths=(1, 1), ratios=((0.3,), (0.2,)), width=8, heads=(2, 2), patch_size=2, window_size=2, image_size=8,
    num_classes=3,
)  # fmt: skip
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
ROOT = pathlib.Path(__file__).parents[2]


def zeros(module):
    """Variables of zeros: of the same weights, only the module's fields tell two models apart."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(IMAGES.shape))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@functools.cache
def identity(name="vit", **fields):
    module = models.build(name, **(dict(SPARSE if name == "sparse_swin" else VIT) | fields))
    return fingerprint.identify(models.logits_fn(module, zeros(module)), IMAGES)


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.25, 0.5)},
        {"heads": 4},
        {"dtype": jnp.bfloat16},
        {"dtype": jnp.float16},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_models_of_the_same_weights_that_differ_in_a_field_differ(fields):
    assert identity(**fields) != identity()


def test_models_of_the_same_weights_that_differ_in_their_sparse_ratios_differ():
    assert identity("sparse_swin", ratios=((0.6,), (0.2,))) != identity("sparse_swin")


def test_fields_that_matter_in_training_alone_change_nothing():
    assert identity(drop_path=0.3) == identity()


def test_scanned_and_unrolled_forms_are_two_programs():
    module = models.build("vit", **VIT | {"depth": 2})
    logits_fn = models.logits_fn(module, zeros(module))
    scanned = models.logits_fn(*forms.scanned(module, zeros(module)))
    assert fingerprint.identify(logits_fn, IMAGES) != fingerprint.identify(scanned, IMAGES)


SCRIPT = """
import test_fingerprint as t
print(*(made() for made in t.OTHERS.values()), t.identity(), t.identity("sparse_swin"))
"""


def test_other_processes_say_the_same():
    """Whatever the order of sets, the addresses of objects, and what was traced before."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "evaluation")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    identity.cache_clear()
    with jax.default_matmul_precision(None):  # as in a process without the tests' configuration
        here = [*(made() for made in OTHERS.values()), identity(), identity("sparse_swin")]
    identity.cache_clear()
    assert told.stdout.split() == here


# ------------------------------------------------------------------------------------------------- any callable

WEIGHTS = np.arange(6.0, dtype=np.float32).reshape(3, 2)
ROWS = jax.ShapeDtypeStruct((1, 3), jnp.float32)


def linear(weights, x, scale=1.0):
    return scale * (x @ weights)


class Linear:
    """An object that is called and knows nothing of JAX, as a bridge to another library would be."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x):
        shape = jax.ShapeDtypeStruct((len(x), 2), jnp.float32)
        return jax.pure_callback(self.numpy, shape, x, vmap_method="sequential")

    def numpy(self, x):
        return np.asarray(x) @ self.weights


@jax.custom_vjp
def blocked(x):
    return x + 0.0


blocked.defvjp(lambda x: (x + 0.0, None), lambda _, g: (0.0 * g,))


@jax.custom_vjp
def passing(x):
    return x + 0.0


passing.defvjp(lambda x: (x + 0.0, None), lambda _, g: (1.0 * g,))


def of(function):
    return fingerprint.identify(function, ROWS)


# Callables that are not one another: name -> identity
OTHERS = {
    "leaves": lambda: of(jax.tree_util.Partial(linear, jnp.asarray(WEIGHTS))),
    "other leaves": lambda: of(jax.tree_util.Partial(linear, jnp.asarray(WEIGHTS).at[0, 0].add(1e-6))),
    "shape": lambda: of(jax.tree_util.Partial(lambda w, x: x @ w.reshape(3, 2), jnp.asarray(WEIGHTS))),
    "keyword": lambda: of(jax.tree_util.Partial(linear, jnp.asarray(WEIGHTS), scale=2.0)),
    "other keyword": lambda: of(jax.tree_util.Partial(linear, jnp.asarray(WEIGHTS), scale=3.0)),
    "functools": lambda: of(functools.partial(linear, WEIGHTS, scale=4.0)),
    "closure": lambda: of(lambda x: x @ WEIGHTS),
    "other closure": lambda: of(lambda x: x @ (WEIGHTS + 1)),
    "operation": lambda: of(lambda x: jnp.tanh(x @ WEIGHTS)),
    "gradient": lambda: of(lambda x: blocked(x) @ WEIGHTS),
    "other gradient": lambda: of(lambda x: passing(x) @ WEIGHTS),
    "host": lambda: of(Linear(WEIGHTS)),
    "other host": lambda: of(Linear(WEIGHTS + 1)),
    "branch": lambda: of(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ WEIGHTS, lambda x: -x @ WEIGHTS, x)),
    "other branch": lambda: of(
        lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ WEIGHTS, lambda x: 2 * x @ WEIGHTS, x)
    ),
    "loop": lambda: of(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + i, x) @ WEIGHTS),
    "other loop": lambda: of(lambda x: jax.lax.fori_loop(0, 4, lambda i, x: x + i, x) @ WEIGHTS),
}


def test_every_difference_in_what_is_computed_is_seen():
    found = {name: made() for name, made in OTHERS.items()}
    assert len(set(found.values())) == len(found)
    assert found == {name: made() for name, made in OTHERS.items()}, "tracing again must change nothing"


def test_names_and_places_change_nothing():
    def f(x):
        return jax.jit(lambda x: x @ WEIGHTS)(x)

    def g(y):

        def product(z):
            return z @ WEIGHTS

        return jax.jit(product)(y)

    assert of(f) == of(g)


def test_what_cannot_be_read_is_like_nothing_else():
    secret = iter([1])

    def hidden(x):
        assert secret is not None
        return np.asarray(x) @ WEIGHTS

    def model(x):
        return jax.pure_callback(hidden, jax.ShapeDtypeStruct((1, 2), jnp.float32), x)

    assert of(model) != of(model)


def test_weights_alone_follow_the_arrays():
    here = fingerprint.weights(jax.tree_util.Partial(linear, jnp.asarray(WEIGHTS)))
    assert here == fingerprint.weights(jax.tree_util.Partial(linear, WEIGHTS))
    assert here != fingerprint.weights(jax.tree_util.Partial(linear, WEIGHTS.T))
    assert fingerprint.weights(lambda x: x @ WEIGHTS) == "closure"
    assert len({fingerprint.weights(jax.random.key(seed)) for seed in (0, 1)}) == 2
