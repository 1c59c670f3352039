"""Every operation that NumPy stands in for means what XLA means by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit.evaluation import plain

X = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
ODD = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 3e38]], np.float32)

CASES = {
    "unary": (lambda x: [f(jnp.abs(x) + 0.1) for f in (jnp.exp, jnp.log, jnp.sqrt, jnp.log1p, jnp.expm1, jnp.tanh)], X),
    "more": (lambda x: [-x, jnp.sin(x), jnp.cos(x), jnp.floor(x), jnp.ceil(x), jnp.sign(x), jnp.square(x)], X),
    "functions": (lambda x: [jax.nn.sigmoid(x), jax.lax.rsqrt(jnp.abs(x)), x**3, x**-2, jax.nn.gelu(x)], X),
    "odd numbers": (lambda x: [jnp.maximum(x, 0.0), jnp.minimum(x, 1.0), jnp.isfinite(x), x > 0, x == x, x / x], ODD),
    "reductions": (lambda x: [x.sum((0, 2)), x.max(1), x.min(), x.mean(-1, keepdims=True), jax.nn.softmax(x)], X),
    "maximum of odd numbers": (lambda x: [x.max(-1), x.min(-1), x.sum(-1)], ODD),
    "shapes": (lambda x: [x.reshape(6, 10), x.transpose(2, 0, 1), x[None, :, 1:3, ::2], x[::-1], x[:, -1]], X),
    "joined": (
        lambda x: [jnp.concatenate([x, 2 * x], 1), jnp.stack([x, x], -1), jnp.broadcast_to(x[:, :, :1], X.shape)],
        X,
    ),
    "product": (lambda x: [x @ Y, jnp.einsum("bij,bkj->ikb", x, x), jnp.tensordot(x, Y[0], 1), jnp.vdot(x, x)], X),
    "choice": (
        lambda x: [jnp.where(x > 0, x, -1.0), jnp.clip(x, -1, 1), jax.nn.relu(x), jnp.where(x[0, 0, 0] > 0, x, 2)],
        X,
    ),
    "types": (
        lambda x: [x.astype(jnp.int32), (x > 0).astype(jnp.int32), x.astype(jnp.bfloat16), x.astype(jnp.int8) + 100],
        X,
    ),
    "whole numbers": (lambda x: [(10 * x).astype(jnp.int32) // 3, jnp.arange(5) * 2**30, jnp.argmax(x, -1)], X),
    "low precision": (lambda x: [x.astype(jnp.bfloat16).sum(), x.astype(jnp.float16) @ Y.astype(jnp.float16)], X),
    "loops": (lambda x: [jax.lax.fori_loop(0, 4, lambda i, x: x + i, x), jnp.cumsum(x, 1)], X),
    "scans": (lambda x: jax.lax.scan(lambda c, x: (c + x, c * x), X[0], x, reverse=True), X),
    "no steps": (lambda x: jax.lax.scan(lambda c, x: (c + x, c * x), X[0], x[:0]), X),
    "while": (lambda x: jax.lax.while_loop(lambda x: x.sum() < 50, lambda x: jnp.abs(x) * 1.5, x), X),
    "branches": (lambda x: [jax.lax.switch(jnp.int32(x[0, 0, 0] * 9), [jnp.sin, jnp.cos, jnp.tanh], x)], X),
    "gradient": (jax.grad(lambda x: jnp.sum(jax.nn.log_softmax(jnp.tanh(x @ Y)) ** 2)), X),
    "remat": (jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x) ** 2))), X),
    "keys": (lambda x: jax.vmap(lambda key: jax.random.normal(key, (3,)))(jax.random.split(jax.random.key(3), 4)), X),
}


@pytest.mark.parametrize("name", CASES)
def test_numpy_and_xla_agree(name):
    function, x = CASES[name]
    found, expected = jax.tree.leaves(plain.run(function, x)), jax.tree.leaves(jax.jit(function)(x))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype and one.shape == other.shape
        low = jnp.issubdtype(one.dtype, jnp.floating) and jnp.finfo(one.dtype).bits < 32
        wide = [np.asarray(value, np.float64) for value in (one, other)]
        np.testing.assert_allclose(*wide, rtol=1e-2 if low else 2e-6, atol=1e-2 if low else 2e-6)
