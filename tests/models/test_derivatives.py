"""Every family can be differentiated forward and backward, to second order, and has the form of its platform."""

import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.parts import attention, convolution

TINY = runpy.run_path(str(pathlib.Path(__file__).parent / "tiny.py"))["TINY"]
QUICK = ("vit", "convnext_tiny")  # attention, and a depthwise convolution; their parts are those of the others
DEPTHWISE = ("efficientvit_b0", "mobilevit_xxs", "xcit", "convnext_tiny")


def families():
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(TINY)]


def fields(name):
    """Those of tiny.py, with one block where the depth is one number."""
    return {**TINY[name], **({"depth": 1} if "depth" in TINY[name] else {})}


def tiny(name, batch=1):
    module = models.build(name, **fields(name))
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((batch, *models.image_shape(module))))
    keys = iter(jax.random.split(jax.random.key(0), 200))  # drawing by shape compiles once; `init` once a family
    draw = {}
    for leaf in jax.tree.leaves(variables):
        draw.setdefault(leaf.shape, 0.3 * jax.random.normal(next(keys), leaf.shape))
    variables = jax.tree.map(lambda leaf: draw[leaf.shape], variables)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: 1 + leaf**2, variables["batch_stats"])
    images = jax.random.uniform(jax.random.key(1), (batch, *models.image_shape(module)))
    return module, variables, images


def close(a, b, rtol=2e-4):
    np.testing.assert_allclose(a, b, atol=rtol * float(np.abs(b).max()) + 1e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_forward_and_reverse_mode_agree_to_second_order(name):
    module, variables, images = tiny(name)
    v, w = (jax.random.normal(jax.random.key(2 + i), images.shape) for i in range(2))

    @jax.jit
    def run(variables, images, v, w):
        def loss(images):
            return jnp.sin(module.apply(variables, images)).sum()

        gradient = jax.grad(loss)
        along = jax.jacfwd(lambda t: loss(images + t[0] * v + t[1] * w))(jnp.zeros(2))
        forward_over_reverse = jax.jvp(gradient, (images,), (v,))[1]
        reverse_over_reverse = jax.grad(lambda x: (gradient(x) * v).sum())(images)
        reverse_over_forward = jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1])(images)
        return gradient(images), along, forward_over_reverse, reverse_over_reverse, reverse_over_forward

    g, along, first, second, third = run(variables, images, v, w)
    assert float(jnp.abs(g).max()) > 0
    close(along, jnp.stack([(g * v).sum(), (g * w).sum()]))
    close(second, first)
    close(third, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_parameters_have_forward_mode_too(name):
    """Scanned and recomputed where the family can: the derivatives pass through both."""
    module, _, images = tiny(name)
    try:
        module = models.build(name, **fields(name), scan=True, remat=True)
    except ValueError:  # a family without equal blocks
        module = module.clone(remat=True)
    variables = models.init(module, jax.random.key(0))

    @jax.jit
    def run(variables, images):
        def loss(params):
            return jnp.sin(module.apply({**variables, "params": params}, images)).sum()

        params = variables["params"]
        gradient, change = jax.grad(loss)(params), jax.jvp(loss, (params,), (params,))[1]
        return change, sum(jax.tree.leaves(jax.tree.map(lambda g, p: (g * p).sum(), gradient, params)))

    close(*run(variables, images), rtol=1e-3)


@pytest.mark.parametrize("name", families())
def test_a_program_for_a_tpu_holds_the_tpu_form(name):
    module, variables, images = tiny(name)

    def loss(params, images):
        return module.apply({**variables, "params": params}, images).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(variables["params"], images)
    tpu, cpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu"))
    grouped = re.compile(r"feature_group_count = (?!1 )\d+")
    assert bool(grouped.search(tpu)) == (name in DEPTHWISE) and not grouped.search(cpu)
    assert "optimization_barrier" not in tpu
    assert ("optimization_barrier" in cpu) == (not name.startswith(("resnet", "convnext", "efficientvit")))


def test_the_parts_to_second_order():
    """The attention's products and the depthwise convolution by themselves, in every order of the modes."""
    x, v = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 8))
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 1, 8))

    @jax.jit
    def run(x, v, kernel):
        def loss(x):
            tokens = convolution.conv(jnp.sin(x), kernel * x.mean(), 1, 0, groups=8).reshape(1, 2, 9, 4)
            return (attention.einsum_attention(tokens, jnp.cos(tokens), tokens**2, None)[0] ** 2).sum()

        gradient = jax.grad(loss)
        return (
            jax.jvp(gradient, (x,), (v,))[1],
            jax.grad(lambda x: (gradient(x) * v).sum())(x),
            jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1])(x),
            jax.jacfwd(lambda t: gradient(x + t * v))(0.0),
        )

    first, *others = run(x, v, kernel)
    for other in others:
        close(other, first)


@pytest.mark.parametrize("stride, kernel_size, padding", [(1, 3, 1), (1, 5, 0), (2, 3, 1), (1, 3, 4)])
def test_a_depthwise_convolution_by_finite_differences(stride, kernel_size, padding):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dx = (jax.random.normal(key, (2, 7, 6, 3)) for key in keys[:2])
    kernel, dkernel = (jax.random.normal(key, (kernel_size, kernel_size, 1, 3)) for key in keys[2:])

    def f(x, kernel):  # linear in each: a difference of any size is exact
        return convolution.conv(x, kernel, stride, padding, groups=3)

    out, change = jax.jit(lambda *values: jax.jvp(f, values[:2], values[2:]))(x, kernel, dx, dkernel)
    close(change, f(x + dx, kernel) - out + f(x, kernel + dkernel) - out, rtol=1e-5)


def test_the_backward_pass_keeps_the_image_and_not_its_slices():
    x, kernel = jnp.ones((2, 9, 9, 4)), jnp.ones((7, 7, 1, 4))
    kept = jax.vjp(lambda x, kernel: convolution.conv(x, kernel, 1, 3, groups=4), x, kernel)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) <= 2 * (x.size + kernel.size)
