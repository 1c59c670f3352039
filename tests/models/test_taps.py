"""Taps: identity for whoever does not ask, named points in every transformer family, gradients that are dropped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from robust_vit import models
from robust_vit.models.parts import forms, taps

ATTENTION = {"qkv", "attention_probabilities", "attention_output", "mlp_output", "residual"}
HAVE = {
    "vit": ATTENTION | {"positions"},
    "deit_tiny_distilled_patch16_224": ATTENTION | {"positions"},
    "vit_small_cvst": ATTENTION | {"positions"},
    "cait": ATTENTION | {"positions"},
    "swin": ATTENTION | {"groups"},
    "sparse_swin": ATTENTION | {"groups"},
    "xcit": ATTENTION | {"local_output", "positions"},
    "efficientvit_b0": {"attention_probabilities"},
    "mobilevit_xxs": {"attention_probabilities", "groups"},
    "resnet50_32": set(),
    "convnext_tiny": set(),
}


@functools.cache
def built(name, **overrides):
    module = models.build(name, **tiny.TINY[name], **overrides)
    images = jax.random.uniform(jax.random.key(1), (3, *models.image_shape(module)))
    return module, jax.jit(module.init)(jax.random.key(0), images), images


def shape_of(module):
    return jax.ShapeDtypeStruct((1, *models.image_shape(module)), jnp.float32)


@pytest.mark.parametrize("name", sorted(HAVE))
def test_families_name_their_points(name):
    module = models.build(name, **tiny.TINY[name])
    assert taps.found(module, shape_of(module)) == HAVE[name]


def test_points_are_found_by_a_trace_of_their_own():
    module = models.build("vit", **tiny.TINY["vit"])
    for _ in range(2):  # the second time JAX remembers the program, but not this function
        assert taps.found(module, shape_of(module)) == HAVE["vit"]


@pytest.mark.parametrize("attention", ["einsum", "xla"])
def test_every_block_hands_over_what_is_said(attention):
    module, variables, images = built("vit", attention=attention)
    seen = []

    def note(owner, point, value):
        seen.append((point, value.shape))
        return value

    with taps.handled(note):
        shape = jax.eval_shape(lambda x: module.apply(variables, x), images).shape
    block = [
        ("qkv", (3, 16, 96)),
        ("attention_probabilities", (3, 4, 16, 16)),
        ("attention_output", (3, 16, 32)),
        ("mlp_output", (3, 16, 32)),
        ("residual", (3, 16, 32)),
    ]
    assert seen == [("positions", (1, 16, 32)), *2 * block] and shape == (3, 10)


def test_nothing_is_left_in_the_program_of_whoever_does_not_ask():
    module, variables, images = built("vit")
    plain = str(jax.make_jaxpr(lambda x: module.apply(variables, x))(images))
    with taps.handled(lambda owner, point, value: value + 1, ()):
        assert str(jax.make_jaxpr(lambda x: module.apply(variables, x))(images)) == plain
    assert not any(taps.tapped(point) for point in taps.POINTS)


def test_an_unknown_point_is_named():
    with pytest.raises(ValueError, match=r"point = 'mlp_outputs': must be one of .*did you mean 'mlp_output'"):
        with taps.handled(lambda owner, point, value: value, ("mlp_outputs",)):
            pass


def weighed(logits):
    return (logits @ jnp.arange(10.0)).sum()


def slopes(module, variables, images, keys, keep, points=taps.BRANCHES):
    """Logits and the input gradient of each example with gradients dropped."""

    def total(x):
        with taps.handled(taps.dropping(keys, keep), points):
            logits = module.apply(variables, x, rngs={taps.RNG: jax.random.key(0)})
        return weighed(logits), logits

    gradient, logits = jax.grad(total, has_aux=True)(images)
    return logits, gradient


def without_branches(module, variables, images):
    def total(x):
        with taps.handled(lambda owner, point, value: jax.lax.stop_gradient(value), taps.BRANCHES):
            return weighed(module.apply(variables, x))

    return jax.jit(jax.grad(total))(images)


@pytest.fixture(scope="module", params=["unrolled", "scanned"])
def dropped(request):
    """(module, variables, images, compiled slopes of (images, keys, keep))."""
    module, variables, images = built("vit")
    if request.param == "scanned":
        module, variables = forms.scanned(module, variables)
    return module, variables, images, jax.jit(functools.partial(slopes, module, variables))


def keys_of(count=3, seed=5):
    return jax.random.split(jax.random.key(seed), count)


def test_values_stay_bit_for_bit_and_keep_1_keeps_the_gradient(dropped):
    module, variables, images, run = dropped
    plain = jax.jit(jax.grad(lambda x: (weighed(logits := module.apply(variables, x)), logits), has_aux=True))
    expected, values = plain(images)
    for keep in (0.0, 0.4, 1.0):
        logits, gradient = run(images, keys_of(), keep)
        np.testing.assert_allclose(logits, values, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_keep_0_leaves_the_gradient_of_the_stream_alone(dropped):
    module, variables, images, run = dropped
    _, gradient = run(images, keys_of(), 0.0)
    np.testing.assert_allclose(gradient, without_branches(module, variables, images), atol=1e-5)


def test_coins_belong_to_the_example_and_to_the_branch(dropped):
    """With one half, 4 branches give 16 gradients, each as likely; and an example's is the same in another batch."""
    _, _, images, run = dropped
    one = jnp.broadcast_to(images[:1], images.shape)
    found = [np.asarray(run(one, keys_of(3, seed), 0.5)[1]) for seed in range(32)]
    distinct = np.unique(np.round(np.concatenate(found).reshape(96, -1), 4), axis=0)
    assert 12 <= len(distinct) <= 16  # 16 with 97 %: each is missed with (15/16)^96
    _, turned = run(one, keys_of(3, 0)[::-1], 0.5)
    np.testing.assert_allclose(turned[::-1], found[0], atol=1e-6)
