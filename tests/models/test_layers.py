"""Layers against float64 NumPy oracles and the PyTorch semantics they promise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from robust_vit.models.parts import activations, convolution, initializers, layers

RANK_PROMOTION = "allow"  # of the models that are made here

RNG = np.random.default_rng(0)


def phi(x):
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def naive_convolution(x, kernel, stride, padding, groups):
    """The definition, in float64: [B,H,W,C] * [k,k,C/groups,D]."""
    k, _, inner, features = kernel.shape
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - k) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], height, width, features))
    for d in range(features):
        first = d // (features // groups) * inner
        for i in range(height):
            for j in range(width):
                window = x[:, i * stride : i * stride + k, j * stride : j * stride + k, first : first + inner]
                out[:, i, j, d] = (window * kernel[None, ..., d]).sum((1, 2, 3))
    return out


def test_gelu_and_its_derivatives():
    x = np.linspace(-6, 6, 41)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    points = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(activations.gelu(points), x * phi(x), atol=1e-6)
    slope = jax.vmap(jax.grad(activations.gelu))
    np.testing.assert_allclose(slope(points), phi(x) + x * density, atol=1e-6)
    curvature = jax.vmap(jax.grad(jax.grad(activations.gelu)))
    np.testing.assert_allclose(curvature(points), (2 - x * x) * density, atol=1e-6)
    assert activations.gelu(points.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_hardswish():
    np.testing.assert_allclose(activations.hardswish(jnp.array([-4.0, -1.0, 0.0, 1.0, 4.0])), [0, -1 / 3, 0, 2 / 3, 4])


def test_trunc_normal_cuts_at_two_absolute():
    draw = initializers.trunc_normal(0.02)(jax.random.key(0), (200, 200))
    assert draw.std() == pytest.approx(0.02, rel=0.02)
    assert jnp.abs(draw).max() > 0.06  # three sigma: jax's own initialiser stops at two
    wide = initializers.trunc_normal(1.5)(jax.random.key(1), (200, 200))
    assert 1.9 < jnp.abs(wide).max() <= 2


def test_torch_default_is_uniform_in_one_over_root_fan_in():
    kernel = initializers.torch_default(jax.random.key(0), (3, 3, 16, 64))
    assert 0.98 / 12 < jnp.abs(kernel).max() <= 1 / 12
    bias = layers.Conv(256, 3).init(jax.random.key(1), jnp.zeros((1, 4, 4, 4)))["params"]["bias"]
    assert 0.9 / 6 < jnp.abs(bias).max() <= 1 / 6


def test_normalize_rounds_last():
    images = jnp.linspace(0, 1, 12).reshape(1, 2, 2, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (np.asarray(images, np.float64) - mean) / std
    np.testing.assert_allclose(layers.normalize(images, mean, std, jnp.float32), expected, rtol=1e-6)
    narrow = layers.normalize(images, mean, std, jnp.bfloat16)
    np.testing.assert_array_equal(narrow, layers.normalize(images, mean, std, jnp.float32).astype(jnp.bfloat16))
    np.testing.assert_array_equal(layers.normalize(images, (), (), jnp.float32), images)


def test_patchify_is_the_strided_convolution():
    layer = layers.Patchify(5, 4)
    images = jax.random.uniform(jax.random.key(0), (2, 12, 8, 3))
    variables = layer.init(jax.random.key(1), images)

    def convolved(images):
        params = variables["params"]
        return convolution.conv(images, params["kernel"], 4) + params["bias"]

    np.testing.assert_allclose(layer.apply(variables, images), convolved(images), atol=1e-6)
    slope = jax.grad(lambda x: jnp.sin(layer.apply(variables, x)).sum())(images)
    expected = jax.grad(lambda x: jnp.sin(convolved(x)).sum())(images)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "groups"),
    [(3, 1, 1), (3, 2, 1), (1, 1, 1), (1, 2, 1), (3, 2, 6), (5, 1, 6), (1, 1, 3), (3, 1, 2)],
)
def test_conv_pads_symmetrically_at_even_sizes(kernel_size, stride, groups):
    layer = layers.Conv(12 if groups != 6 else 6, kernel_size, stride, groups)
    images = RNG.normal(size=(2, 8, 6, 6)).astype(np.float32)
    variables = layer.init(jax.random.key(0), images)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    expected = naive_convolution(images, kernel, stride, kernel_size // 2, groups) + bias
    np.testing.assert_allclose(layer.apply(variables, images), expected, atol=2e-6)


def test_layer_norm_keeps_its_precision_far_from_zero():
    x = 1000 + RNG.normal(size=(4, 64))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    layer = layers.LayerNorm()
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 64)))
    # the inputs themselves carry 6e-5; the one-pass variance would be off by several percent
    np.testing.assert_allclose(layer.apply(variables, x.astype(np.float32)), expected, atol=5e-4)
    assert layers.LayerNorm(dtype=jnp.bfloat16).apply(variables, jnp.ones((1, 64))).dtype == jnp.bfloat16


def test_batch_norm_stores_the_unbiased_variance_and_normalises_with_the_biased():
    layer = layers.BatchNorm()
    x = jnp.array([[0.0], [2.0]])
    variables = layer.init(jax.random.key(0), x)
    y, state = layer.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[-1], [1]], atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], [0.1], atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], [0.9 + 0.1 * 2], atol=1e-6)  # torch: 1.1; biased: 1.0
    np.testing.assert_allclose(layer.apply({**variables, **state}, x), (x - 0.1) / np.sqrt(1.1 + 1e-5), atol=1e-6)
    np.testing.assert_array_equal(layer.apply(variables, x, True), y)  # an attack inside training stores nothing


def test_batch_norm_uses_the_whole_batch_when_it_is_sharded():
    layer = layers.BatchNorm()
    x = jax.random.normal(jax.random.key(0), (16, 3, 3, 4)) * 3 + 1
    variables = layer.init(jax.random.key(1), x)
    run = jax.jit(lambda v, x: layer.apply(v, x, True, mutable=["batch_stats"]))
    mesh = jax.make_mesh((8,), ("data",))
    sharded = run(variables, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sharded, run(variables, x))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    dropped = layers.DropPath().apply({}, x, 0.25, True, rngs={"dropout": jax.random.key(0)})
    per_sample = dropped.reshape(4000, -1)
    assert set(np.unique(per_sample)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_array_equal(per_sample.min(1), per_sample.max(1))
    assert per_sample.mean() == pytest.approx(1, abs=0.03)
    for rate, train in ((0.25, False), (0.0, True), (None, True)):
        np.testing.assert_array_equal(layers.DropPath().apply({}, x, rate, train), x)


def test_drop_path_rates_grow_linearly():
    assert layers.drop_path_rates(0.0, 4) is None
    assert layers.drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert layers.drop_path_rates(0.3, 1) == [0]


def test_head_computes_in_float32_under_bfloat16():
    head = layers.Head(7, dtype=jnp.bfloat16)
    features = jax.random.normal(jax.random.key(0), (3, 16)).astype(jnp.bfloat16)
    variables = head.init(jax.random.key(1), features)
    logits = head.apply(variables, features)
    assert logits.dtype == jnp.float32
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    np.testing.assert_allclose(logits, np.asarray(features, np.float64) @ kernel, atol=1e-6)
    assert not layers.Head(0).init(jax.random.key(2), features)  # no head: no parameters


def test_dense_and_mlp_by_hand():
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    layer = layers.Mlp(8, activation=jnp.tanh)
    variables = layer.init(jax.random.key(0), x)
    first, second = (jax.tree.map(np.float64, variables["params"][name]) for name in ("fc1", "fc2"))
    expected = np.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-6)


def test_layer_scale():
    layer = layers.LayerScale(0.5)
    np.testing.assert_allclose(layer.apply(layer.init(jax.random.key(0), jnp.ones((1, 3))), jnp.ones((1, 3))), 0.5)
