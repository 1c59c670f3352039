"""The static check: every planted operation is named, with its line; ordinary networks leave it silent."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from robust_vit import models
from robust_vit.evaluation.masking.program import lint, true_gradient

RANK_PROMOTION = "allow"  # of the models that are made here

IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
MATRIX = jnp.linspace(-1.0, 1.0, 8 * 8 * 3 * 10).reshape(-1, 10)


def head(x):
    return x.reshape(x.shape[0], -1) @ MATRIX


def dropout(x):
    return head(nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)}))


@jax.custom_vjp
def wrong_derivative(x):
    return jnp.sin(x)


wrong_derivative.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (-g,))


lying_sine = jax.custom_vjp(jnp.sin)
lying_sine.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (-g,))


def normalised(x):
    return nn.LayerNorm().init_with_output(jax.random.key(0), x)[0]


def attention(x):
    return nn.dot_product_attention(x, x, x)


def safe_unit(x):
    length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1.0), 0.0)


def purify(x):
    energy = lambda z: jnp.sum(head(z) ** 2)  # noqa: E731
    return head(jax.lax.fori_loop(0, 3, lambda i, z: z - 0.1 * jax.grad(energy)(z), x))


def purify_by_hand(x):
    return head(jax.lax.fori_loop(0, 3, lambda i, z: z - 0.1 * jnp.tanh(z), x))


def iterate_until(x):
    return head(jax.lax.while_loop(lambda z: jnp.sum(z) < 5, lambda z: z + 1, x))


def straight_through(x):
    return head(x + jax.lax.stop_gradient(jnp.round(x) - x))


def lookup(x):
    return head(jnp.linspace(0.0, 1.0, 256)[(x * 255).astype(int)])


def sharded(x):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    return head(jax.shard_map(jnp.round, mesh=mesh, in_specs=spec, out_specs=spec)(x))


PLANTED = {
    "round": (lambda x: head(jnp.round(x * 255) / 255), {"rounding"}),
    "floor in jit in remat": (jax.jit(lambda x: head(jax.checkpoint(lambda y: jnp.floor(8 * y))(x))), {"rounding"}),
    "ceil in vmap": (jax.vmap(lambda x: head(jnp.ceil(x)[None])[0]), {"rounding"}),
    "round in scan": (
        lambda x: head(jax.lax.scan(lambda c, _: (jnp.round(c), None), x, length=2)[0]),
        {"rounding", "loop_over_image"},
    ),
    "round in one branch": (lambda x: head(jax.lax.cond(x.sum() > 0, jnp.round, jnp.sin, x)), {"rounding"}),
    "round in shard_map": (sharded, {"rounding"}),
    "sign": (lambda x: head(jnp.sign(x - 0.5)), {"sign"}),
    "argmax": (lambda x: jax.nn.one_hot(jnp.argmax(head(x), -1), 10), {"argmax"}),
    "ranks": (lambda x: head(jnp.argsort(x, axis=1) * 1.0), {"selection"}),
    "threshold": (lambda x: head((x > 0.5).astype(jnp.float32)), {"threshold"}),
    "where of constants": (lambda x: head(jnp.where(x > 0.5, 1.0, 0.0)), {"threshold"}),
    "uint8": (lambda x: head((x * 255).astype(jnp.uint8) / 255), {"integer_cast"}),
    "lookup": (lookup, {"integer_cast"}),
    "stop_gradient": (lambda x: head(jax.lax.stop_gradient(x)), {"stop_gradient"}),
    "stop_gradient of a part": (lambda x: head(x) + head(jax.lax.stop_gradient(x)), {"stop_gradient"}),
    "shift by another value": (lambda x: head(x - jax.lax.stop_gradient(jnp.max(x**2))), {"stop_gradient"}),
    "straight through": (straight_through, {"stop_gradient", "rounding"}),
    "custom derivative": (lambda x: head(wrong_derivative(x)), {"custom_gradient"}),
    "stop_gradient before a softmax": (lambda x: jax.nn.softmax(head(jax.lax.stop_gradient(x))), {"stop_gradient"}),
    "stop_gradient before attention": (lambda x: head(attention(jax.lax.stop_gradient(x))), {"stop_gradient"}),
    "lying derivative of a library's function": (lambda x: head(lying_sine(x)), {"custom_gradient"}),
    "dead zone": (lambda x: head(jnp.where(jnp.abs(x - 0.5) < 0.1, 0.5, x)), {"dead_zone"}),
    "dead zone by a mask": (lambda x: head(x * (jnp.abs(x - 0.5) > 0.1)), {"dead_zone"}),
    "dead zone after rounding": (
        lambda x: head(jnp.where(jnp.abs(jnp.round(x) - 0.5) < 0.1, 0.5, jnp.round(x))),
        {"rounding", "dead_zone"},
    ),
    "abstaining": (
        lambda x: jnp.where(jnp.max(jax.nn.softmax(head(x)), -1, keepdims=True) > 0.5, head(x), 1.0),
        {"dead_zone"},
    ),
    "winners take all": (
        lambda x: head(jnp.where(x >= jnp.sort(x, axis=1)[:, 4:5], x, 0.0)),
        {"winners_take_all"},
    ),
    "gate by a hash": (
        lambda x: jnp.where(jnp.floor(1e4 * jnp.sum(x, axis=(1, 2, 3)))[:, None] % 2 == 0, head(x), 0.0),
        {"hash_gate"},
    ),
    "table looked up by rank": (lambda x: head(jnp.linspace(0.0, 1.0, 8)[jnp.argsort(x, axis=1)]), {"selection"}),
    "sign before a layer norm": (lambda x: head(normalised(jnp.sign(x))), {"sign"}),
    "threshold before a layer norm": (lambda x: head(normalised((x > 0.5) * 1.0)), {"threshold"}),
    "sign before attention": (lambda x: head(attention(jnp.sign(x))), {"sign"}),
    "dropout": (dropout, {"randomness"}),
    "noise": (lambda x: head(x + jax.random.normal(jax.random.key(0), x.shape)), {"randomness"}),
    "while": (iterate_until, {"while_loop", "loop_over_image"}),
    "gradient in the forward pass": (purify, {"test_time_gradient", "loop_over_image"}),
    "loop over the image": (purify_by_hand, {"loop_over_image"}),
    "callback": (lambda x: head(jax.pure_callback(lambda y: y, IMAGES, x)), {"callback"}),
}

ACTIVATIONS = ["relu", "relu6", "hard_swish", "gelu", "silu", "leaky_relu", "elu", "softplus", "hard_tanh"]
SILENT = {
    **{name: (lambda x, name=name: head(getattr(jax.nn, name)(x))) for name in ACTIVATIONS},
    "temperature": lambda x: 1e4 * head(x),
    "softmax": lambda x: jax.nn.softmax(head(x)),
    "log_softmax": lambda x: jax.nn.log_softmax(head(x)),
    "logsumexp": lambda x: head(x) - jax.nn.logsumexp(head(x), axis=-1, keepdims=True),
    "masked softmax": lambda x: jax.nn.softmax(head(x), where=jnp.arange(10) < 7),
    "softmax in jit in remat": jax.jit(lambda x: jax.checkpoint(jax.nn.softmax)(head(x))),
    "softmax in scan": lambda x: jax.lax.scan(lambda c, _: (jax.nn.softmax(c), None), head(x), length=2)[0],
    "flax attention": lambda x: head(nn.dot_product_attention(x, x, x, mask=jnp.tri(8, dtype=bool))),
    "jax attention": lambda x: head(jax.nn.dot_product_attention(x, x, x)),
    "layer norm": lambda x: head(normalised(x)),
    "standardize": lambda x: head(jax.nn.standardize(x)),
    "max pool": lambda x: head(jnp.tile(nn.max_pool(x, (2, 2), (2, 2)), (1, 2, 2, 1))),
    "clip": lambda x: head(jnp.clip(x, 0.1, 0.9)),
    "where of the image": lambda x: head(jnp.where(x > 0.5, x, 0.0)),
    "mask that multiplies": lambda x: head(x * (x > 0.5)),
    "abs by sign": lambda x: head(x * jnp.sign(x)),
    "sort": lambda x: head(jnp.sort(x, axis=1)),
    "resize": lambda x: head(jax.image.resize(x, x.shape, "bicubic")),
    "guarded unit length": lambda x: head(safe_unit(x)),
    "guarded NaN": lambda x: head(jnp.nan_to_num(x)),
    "relu by where": lambda x: head(jnp.where(2 * x > 0.1, jnp.exp(2 * x), 0.0)),
    "unit length": lambda x: head(x / jnp.linalg.norm(x, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_operation_is_named(name):
    logits_fn, kinds = PLANTED[name]
    items = lint.check(logits_fn, IMAGES)
    assert {item.kind for item in items if item.severity == "warning"} == kinds
    assert all(item.advice for item in items)


@pytest.mark.parametrize("name", SILENT)
def test_ordinary_program_is_silent(name):
    assert lint.check(SILENT[name], IMAGES) == ()


def test_selection_among_values_is_a_note():
    chosen = lambda x: jnp.take_along_axis(head(x), jax.lax.top_k(head(x), 10)[1], axis=1)  # noqa: E731
    (item,) = lint.check(chosen, IMAGES)
    assert (item.kind, item.primitive, item.severity) == ("selection", "top_k", "note")


def test_item_says_where():
    (item,) = lint.check(PLANTED["round"][0], IMAGES)
    assert item.primitive == "round" and "test_lint.py:" in item.where
    assert str(item).startswith("warning: rounding: round at test_lint.py:")
    (item,) = lint.check(PLANTED["custom derivative"][0], IMAGES)
    assert item.primitive == "wrong_derivative"


def test_where_names_the_caller_and_not_the_first_user_of_a_cached_function():
    def first(x):
        return head(jnp.round(x))

    def second(x):
        return head(jnp.round(x))

    places = [lint.check(f, IMAGES)[0].where for f in (first, second)]
    assert places[0].endswith("first") and places[1].endswith("second")


def test_operations_off_the_path_are_ignored():
    def logits_fn(x):
        jnp.round(x)  # never used
        scale = jnp.round(jnp.asarray(2.4))  # does not depend on the image
        return scale * head(x)

    assert lint.check(logits_fn, IMAGES) == ()


def test_repeated_operation_is_counted_once_a_line():
    def logits_fn(x):
        for _ in range(3):
            x = jnp.round(x) + x
        return head(x)

    (item,) = lint.check(logits_fn, IMAGES)
    assert item.count == 3


def test_model_without_input_is_refused():
    with pytest.raises(ValueError, match="do not depend on the images"):
        lint.check(lambda x: jnp.zeros((4, 10)), IMAGES)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_vit_is_silent(scan, remat):
    module = models.build(
        "vit", image_size=8, patch_size=4, width=16, depth=2, heads=2, num_classes=10, scan=scan, remat=remat
    )
    shapes = jax.eval_shape(lambda k: module.init(k, jnp.zeros((1, 8, 8, 3))), jax.random.key(0))
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    logits_fn = models.logits_fn(module, variables)
    assert lint.check(logits_fn, IMAGES) == ()
    assert lint.check(jax.jit(logits_fn), IMAGES) == ()


@pytest.mark.slow
def test_derivatives_that_the_models_write_themselves_are_true():
    module = models.build("vit", image_size=8, patch_size=4, width=16, depth=2, heads=2, num_classes=10)
    logits_fn = models.logits_fn(module, models.init(module, jax.random.key(0)))
    images = jax.random.uniform(jax.random.key(1), IMAGES.shape)
    assert jnp.max(true_gradient.compare(logits_fn, images, jnp.arange(4))) < 1e-4
