"""The canary sings for every model that is compiled as it is written, and stops for one that is not."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.interpreters import ad, mlir

from robust_vit import models, parallel
from robust_vit.evaluation import canary, suites

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
from tiny import TINY  # noqa: E402

RANK_PROMOTION = "allow"  # of the models that are made here


@functools.cache
def model(name, dtype="float32"):
    """A model with no weight at zero, so that every part of it matters, and images for it."""
    module = models.build(name, **TINY[name], dtype=jnp.dtype(dtype))
    draws = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init(module, jax.random.key(0)))

    def leaf(path, shape):
        spread = draws.standard_normal(shape.shape) * 0.1
        return jnp.asarray(np.abs(spread) + 1 if "var" in str(path) or "scale" in str(path) else spread, shape.dtype)

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    images = draws.uniform(size=(3, *models.image_shape(module))).astype(np.float32)
    return models.logits_fn(module, variables), images


FAST = ("vit", "sparse_swin")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_no_family_raises_a_false_alarm(name):
    found = canary.check(*model(name), slots=4)
    assert found.points == 2 and found.shape == (4, *model(name)[1].shape[1:])
    assert 0 <= found.forward_difference < 1e-5 and 0 <= found.gradient_difference < 1e-4


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_low_precision_raises_no_false_alarm(dtype):
    found = canary.check(*model("vit", dtype), slots=4)
    assert found.rounding == float(jnp.finfo(dtype).eps) / 2


# ---------------------------------------------------------------------------------------- a program compiled wrongly

planted = core.Primitive("planted")  # run alone it is the identity; compiled for 8 rows or more it is not
planted.def_impl(lambda x: x)
planted.def_abstract_eval(lambda x: x)
mlir.register_lowering(
    planted, mlir.lower_fun(lambda x: x.at[6:].multiply(1.01) if len(x) >= 8 else x, multiple_results=False)
)
ad.deflinear(planted, lambda g: [planted.bind(g)])


def linear(weights, images):
    return jnp.tanh(images.reshape(len(images), -1)) @ weights


WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(27, 4)), jnp.float32)
IMAGES = np.random.default_rng(1).uniform(size=(5, 3, 3, 3)).astype(np.float32)
HONEST = jax.tree_util.Partial(linear, WEIGHTS)


def test_a_wrong_program_is_stopped_and_its_shape_named():
    wrong = jax.tree_util.Partial(lambda w, x: planted.bind(linear(w, x)), WEIGHTS)
    with pytest.raises(canary.Miscompiled, match=r"compiled for images \[8, 3, 3, 3\]") as error:
        canary.check(wrong, IMAGES, slots=8)
    assert "\n" not in str(error.value) and "doctor" in str(error.value)
    canary.check(wrong, IMAGES, slots=4)  # right at this size


def test_a_wrong_gradient_alone_is_stopped():
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (planted.bind(g),))
    wrong = jax.tree_util.Partial(lambda w, x: linear(w, same(x)), WEIGHTS)
    with pytest.raises(canary.Miscompiled, match="gradient by (1.0e-02|9.9e-03)"):
        canary.check(wrong, IMAGES, slots=8)


def test_the_program_over_several_devices_is_checked():
    assert canary.check(HONEST, IMAGES, slots=16, mesh=parallel.mesh(2)).shape[0] == 16
    wrong = jax.tree_util.Partial(lambda w, x: planted.bind(linear(w, x)), WEIGHTS)
    with pytest.raises(canary.Miscompiled):
        canary.check(wrong, IMAGES, slots=16, mesh=parallel.mesh(2))
    canary.check(wrong, IMAGES, slots=16, mesh=parallel.mesh(4))  # 4 rows a device


# ------------------------------------------------------------------------------------ models that are hard to compare


def quantised(weights, images):
    return linear(weights, jnp.round(images * 8) / 8)


def gated(weights, images):
    """Another class where a chaotic function of the whole image says so: rounding alone may turn it."""
    gate = jnp.sin(1e7 * images.sum((1, 2, 3))) > 0
    return jnp.where(gate[:, None], 1.0, -1.0) * linear(weights, images)


def saturated(weights, images):
    return jax.nn.softmax(1e4 * linear(weights, images))


def overflowing(weights, images):
    return jnp.where(images[:, 0, 0, :1] > 0, jnp.nan, 1.0) * linear(weights, images)


def bright(weights, images):
    """Decided by a sum of 200,000 terms, which rounds with the order of its terms."""
    many = jnp.tile(images.reshape(len(images), -1), 8000).mean(-1, keepdims=True)
    return jnp.concatenate([many, 1.0 - many, weights[:2, 0] * many], 1)


def constant(weights, images):
    return 0.0 * linear(weights, images)


def looping(weights, images):
    step = lambda x, _: (jnp.tanh(1.3 * x + 0.1), None)  # noqa: E731
    return linear(weights, jax.lax.scan(step, images, length=5)[0])


def on_the_host(weights, images):
    shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
    return jax.pure_callback(
        lambda w, x: np.tanh(np.asarray(x).reshape(len(x), -1)) @ np.asarray(w), shape, weights, images
    )


HARD = [quantised, gated, saturated, overflowing, bright, constant, looping, on_the_host]


@pytest.mark.parametrize("function", HARD, ids=lambda f: f.__name__)
def test_masked_and_odd_models_raise_no_false_alarm(function):
    found = canary.check(jax.tree_util.Partial(function, WEIGHTS), IMAGES, slots=8)
    assert (found.gradient_difference is None) == (function is on_the_host)


def test_a_model_that_draws_is_compared_with_its_own_keys_or_not_at_all():
    def noisy(weights, images, keys):
        return linear(weights, images + jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys))

    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    found = canary.check(jax.tree_util.Partial(noisy, WEIGHTS), IMAGES, slots=8, keys=keys)
    assert found.forward_difference < 1e-5
    draws = np.random.default_rng(0)

    def restless(weights, images):
        noise = jax.pure_callback(lambda: np.float32(draws.normal()), jax.ShapeDtypeStruct((), jnp.float32))
        return linear(weights, images) + noise * jnp.arange(4)

    assert canary.check(jax.tree_util.Partial(restless, WEIGHTS), IMAGES, slots=8).forward_difference > 1e-3


def test_bytes_lambdas_and_the_record():
    found = canary.check(lambda x: linear(WEIGHTS, x), (IMAGES * 255).astype(np.uint8), slots=8).to_dict()
    assert {"points": 2, "shape": [8, 3, 3, 3]}.items() <= found.items()
    assert {"forward_difference", "gradient_difference", "forward_allowed", "gradient_allowed"} <= found.keys()


def test_every_suite_says_what_the_canary_found(monkeypatch):
    """Once for all suites of an evaluation, at the size of their batches; a wrong program is measured by none."""
    batches = [{"image": IMAGES, "label": np.zeros(5, np.int32), "index": np.arange(5)}]
    context = suites.Context(HONEST, lambda: batches, norm="linf", epsilon=0.1, steps=1, restarts=1)
    calls, check = [], canary.check
    monkeypatch.setattr(canary, "check", lambda *given, **named: calls.append(1) or check(*given, **named))
    entries = suites.run_suites("clean,fgsm", context)
    assert len(calls) == 1
    assert all(entry["measured"]["canary"]["shape"] == [5, 3, 3, 3] for entry in entries.values())
    rows = np.arange(8) % 5
    batches = [{"image": IMAGES[rows], "label": np.zeros(8, np.int32), "index": np.arange(8)}]
    wrong = jax.tree_util.Partial(lambda w, x: planted.bind(linear(w, x)), WEIGHTS)
    context = suites.Context(wrong, lambda: batches, norm="linf", epsilon=0.1, mesh=parallel.mesh(1))
    with pytest.raises(canary.Miscompiled):
        suites.run_suites("clean", context)
