"""Attention: the formulations agree with each other and with the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit.models.parts import attention


def oracle(q, k, v, bias):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
@pytest.mark.parametrize("biased", [False, True])
def test_implementations_follow_the_formula(implementation, biased):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 3, 5, 8)) * 3  # fewer queries than keys, as in class attention
    k, v = (jax.random.normal(key, (2, 3, 7, 8)) for key in keys[1:3])
    bias = jax.random.normal(keys[3], (3, 5, 7)) if biased else None
    out, _ = attention.IMPLEMENTATIONS[implementation](q, k, v, bias)
    np.testing.assert_allclose(out, oracle(q, k, v, 0 if bias is None else np.asarray(bias)), atol=2e-6)


def test_softmax_is_float32_under_bfloat16():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 2, 6, 8)).astype(jnp.bfloat16) for i in range(3))
    out, weights = attention.einsum_attention(q, k, v, None)
    assert (out.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_cudnn_refuses_what_it_cannot_do():
    x = jnp.zeros((1, 2, 6, 8))
    with pytest.raises(ValueError, match="dtype"):
        attention.IMPLEMENTATIONS["cudnn"](x, x, x, None)
    odd = jnp.zeros((1, 2, 5, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match="even"):
        attention.IMPLEMENTATIONS["cudnn"](odd, odd, odd, None)


def test_heads_are_packed_as_part_head_channel():
    packed = jnp.arange(2 * 3 * 4.0).reshape(1, 1, 24)  # 2 parts, 3 heads, 4 channels
    first, second = attention.split_heads(packed, 2, 3)
    np.testing.assert_array_equal(second[0, 1, 0], [16, 17, 18, 19])
    np.testing.assert_array_equal(attention.merge_heads(first), packed[..., :12])
