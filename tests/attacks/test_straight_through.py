"""The straight-through version of a classifier: equal bit for bit, and a gradient flows, whatever hid it, anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from robust_vit import attacks
from robust_vit.attacks.straight_through import passes, straight_through

RANK_PROMOTION = "allow"  # of the models that are made here

SHAPE = (3, 4, 4, 2)
MATRIX = jax.random.normal(jax.random.key(0), (32, 5))


def images():
    return jax.random.uniform(jax.random.key(1), SHAPE)


def head(x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ MATRIX)


@jax.custom_vjp
def lying(x):
    return jnp.sin(x)


lying.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (jnp.zeros_like(g),))


@jax.custom_jvp
def silent(x):
    return jnp.floor(4 * jnp.cos(x))


silent.defjvp(lambda primals, tangents: (silent(*primals), jnp.zeros_like(tangents[0])))


def mean_sparse(x):
    return jnp.where(jnp.abs(x - 0.5) < 0.4, 0.5, x)


def winners(x, k=6):
    flat = x.reshape(len(x), -1)
    return jnp.where(flat >= jax.lax.top_k(flat, k)[0][:, -1:], flat, 0.0).reshape(x.shape)


def hash_gate(x):
    even = jnp.floor(1000 * jnp.sum(x, axis=(1, 2, 3), keepdims=True)) % 2 == 0
    return jnp.where(even, x, 0.25)


def settle(x):
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.round(4 * s[1]) / 4), (0, x))[1]


def accumulate(x):
    go = lambda s: jnp.max(s) < 2  # noqa: E731
    return jax.lax.while_loop(go, lambda s: s + 0.5 * x + 0.1, jnp.zeros_like(x))


HIDDEN = {
    "round": lambda x: jnp.round(7 * x) / 7,
    "floor": lambda x: jnp.floor(7 * x) / 7,
    "ceil": lambda x: jnp.ceil(7 * x) / 7,
    "sign": lambda x: jnp.sign(x - 0.5),
    "stop_gradient": jax.lax.stop_gradient,
    "custom_vjp": lying,
    "custom_jvp": silent,
    "uint8": lambda x: (x * 255).astype(jnp.uint8).astype(jnp.float32) / 255,
    "bits": lambda x: ((x * 255).astype(jnp.uint8) >> 4).astype(jnp.float32) / 15,
    "integer arithmetic": lambda x: (3 * (x * 9).astype(jnp.int32) // 2 + 1).astype(jnp.float32) / 14,
    "thermometer": lambda x: jnp.sum(x[..., None] > jnp.linspace(0.1, 0.9, 8), axis=-1) / 8,
    "where of constants": lambda x: jnp.where(x > 0.5, 1.0, -1.0),
    "mask as number": lambda x: ((x > 0.3) & ~(x > 0.7)).astype(jnp.float32),
    "dead zone": mean_sparse,
    "dead zone by a mask": lambda x: x * (jnp.abs(x - 0.5) > 0.4),
    "winners take all": winners,
    "hash gate": hash_gate,
    "one-hot": lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), 2),
    "top-k one-hot": lambda x: jnp.sum(jax.nn.one_hot(jax.lax.top_k(x, 1)[1], 2), axis=-2),
    "argmax as number": lambda x: x * 0.0 + jnp.argmin(x, axis=2, keepdims=True) / 4,
    "while": settle,
    "while from a constant": accumulate,
    "callback": lambda x: jax.pure_callback(lambda v: np.round(4 * v) / 4, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
}


def in_scan(f):
    return lambda x: jax.lax.scan(lambda c, t: (0.5 * f(c) + t * c, None), x, jnp.arange(2.0))[0]


def over_xs(f):
    return lambda x: jnp.moveaxis(jax.lax.scan(lambda c, row: (c, f(row[:, None])[:, 0]), 0, x.swapaxes(0, 1))[1], 0, 1)


def in_shard_map(f):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return lambda x: jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))(x)


AROUND = {
    "scan": in_scan,
    "scan over rows": over_xs,
    "cond": lambda f: lambda x: jax.lax.cond(x[0, 0, 0, 0] < 2, f, jnp.cos, x),
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(lambda row: f(row[None])[0])(x),
    "jit in remat in scan": lambda f: in_scan(jax.checkpoint(jax.jit(f))),
    "platform": lambda f: lambda x: jax.lax.platform_dependent(x, cpu=f, default=jnp.cos),
    "custom_vjp": lambda f: _ruled(f),
    "shard_map": in_shard_map,
}


def _ruled(f):
    ruled = jax.custom_vjp(f)
    ruled.defvjp(lambda x: (f(x), None), lambda _, g: (jnp.zeros_like(g),))
    return ruled


def check(f):
    """The logits are equal bit for bit, eagerly and compiled; a gradient reaches every image."""
    x = images()
    hidden = lambda v: head(f(v))  # noqa: E731
    through = straight_through(hidden)
    np.testing.assert_array_equal(through(x), hidden(x))
    compiled, slope = jax.jit(lambda t, v: (t(v), jax.grad(lambda u: jnp.sum(t(u) * jnp.arange(5.0)))(v)))(through, x)
    np.testing.assert_array_equal(compiled, jax.jit(hidden)(x))
    assert jnp.all(jnp.isfinite(slope)) and jnp.all(jnp.any(slope != 0, axis=(1, 2, 3)))


@pytest.mark.parametrize("name", HIDDEN)
def test_forward_is_equal_and_the_gradient_flows(name):
    check(HIDDEN[name])


def in_a_row(x):
    """Passes only if everything passes."""
    for name in ("round", "stop_gradient", "custom_vjp", "dead zone", "thermometer"):
        x = HIDDEN[name](x)
    return x


@pytest.mark.parametrize("around", AROUND)
def test_in_every_control_flow(around):
    check(AROUND[around](HIDDEN["round"] if around == "shard_map" else in_a_row))


@pytest.mark.parametrize("around", ["scan", "jit in remat in scan"])
def test_while_in_a_loop(around):
    check(AROUND[around](settle))


def test_integers_carried_by_a_loop():
    def counted(x):
        code = (x * 9).astype(jnp.int32)
        return jax.lax.fori_loop(0, 3, lambda i, c: c + i, code) / 12.0

    check(counted)


def test_weights_are_arguments_and_other_weights_do_not_compile_again():
    traces = []

    @jax.jit
    def run(logits_fn, x):
        traces.append(1)
        return logits_fn(x)

    apply = lambda matrix, x: jnp.round(4 * x).reshape(len(x), -1) @ matrix  # noqa: E731
    for matrix in (MATRIX, 2 * MATRIX):
        logits_fn = Partial(apply, matrix)
        np.testing.assert_array_equal(run(straight_through(logits_fn), images()), jax.jit(logits_fn)(images()))
    assert len(traces) == 1 and len(jax.tree.leaves(straight_through(logits_fn))) == 1
    assert straight_through(logits_fn)(images()[:1]).shape == (1, 5)  # another shape


def test_attacks_and_transformations_take_it(problem):
    keys, logits_fn, x, labels = problem()
    hidden = Partial(lambda inner, v: inner(jnp.round(v * 8) / 8), logits_fn)
    through = straight_through(hidden)
    for attack in (
        attacks.pgd(norm="linf", epsilon=0.3, steps=5, random_start=False, keep="success"),
        attacks.apgd(norm="linf", epsilon=0.3, steps=5),
    ):
        broken = [jnp.mean(hidden(jax.jit(attack)(keys, f, x, labels)).argmax(-1) != labels) for f in (hidden, through)]
        assert broken[1] > broken[0]
    mapped = jax.vmap(through)(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(mapped.reshape(4, -1), hidden(x), rtol=1e-6)


def test_stochastic_models_take_keys():
    def noisy(x, keys):
        return head(jnp.round(x + 0.1 * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)))

    keys, through = jax.random.split(jax.random.key(3), SHAPE[0]), straight_through(noisy)
    g = jax.grad(lambda x: jnp.sum(through(x, keys)))(images())
    assert jnp.any(g != 0)


def test_an_honest_program_keeps_its_derivative_bit_for_bit():
    def honest(x):
        x = jnp.where(x > 0.5, x, 0.0) * (x > 0.2)
        return jax.nn.log_softmax(head(jnp.sort(jax.nn.relu(x), axis=1)))

    assert passes(honest, images()) == ()
    slopes = [jax.jit(jax.grad(lambda x: jnp.sum(f(x)[:, 0])))(images()) for f in (honest, straight_through(honest))]  # noqa: B023
    np.testing.assert_array_equal(*slopes)


def test_passes_names_the_kinds():
    assert passes(lambda x: head(mean_sparse(jnp.round(x))), images()) == ("dead_zone", "rounding")
