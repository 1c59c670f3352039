"""Scanned blocks: the same function, convertible both ways, and compile time that does not grow with depth."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.parts import forms, scanning

FIELDS = dict(depth=3, width=16, heads=2, patch_size=4, image_size=16, num_classes=5, pooling="mean")
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))


@pytest.mark.parametrize("fields", [dict(), dict(remat=True), dict(positions="relative")])
def test_scanned_equals_unrolled_with_gradients(fields):
    unrolled, scanned = (models.build("vit", **FIELDS, **fields, scan=scan) for scan in (False, True))
    variables = models.init(unrolled, jax.random.key(0))
    stacked = scanning.stack(variables)
    expected = jax.eval_shape(scanned.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)

    def gradients(module, variables):
        return jax.jit(jax.grad(lambda v, x: jnp.sin(module.apply(v, x)).sum(), argnums=(0, 1)))(variables, IMAGES)

    ours, theirs = gradients(unrolled, variables), gradients(scanned, stacked)
    ours = (scanning.stack(ours[0]), ours[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_stack_and_unstack_are_inverse_bit_for_bit():
    variables = models.init(models.build("vit", **FIELDS), jax.random.key(0))
    back = scanning.unstack(scanning.stack(variables))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "xcit_nano_12_p4_32", "mobilevit_xxs", "resnet50"])
def test_scanned_form_where_a_family_has_one(name):
    module = models.build(name, num_classes=5, image_size=32)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.02, leaf.dtype), summary.shapes(module))
    other, stacked = forms.scanned(module, variables)
    assert other.scan == (name != "resnet50") and (other is module) == (name == "resnet50")
    expected = summary.shapes(other)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, expected)
    assert forms.scanned(other, stacked) == (other, stacked)
    np.testing.assert_array_equal(jax.tree.leaves(forms.to_unrolled(other, stacked))[0], jax.tree.leaves(variables)[0])


def test_stacks_at_any_depth_and_leaves_other_numbers_alone():
    block = {"kernel": jnp.ones((2, 3))}
    tree = {"params": {"layers_0": {"blocks_0": block, "blocks_1": block}, "proj_0": block}, "batch_stats": {}}
    stacked = scanning.stack(tree)
    assert stacked["params"]["layers_0"]["blocks"]["kernel"].shape == (2, 2, 3)
    assert set(stacked["params"]) == {"layers_0", "proj_0"}
    assert jax.tree.structure(scanning.unstack(stacked)) == jax.tree.structure(tree)


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ValueError, match="differ"):
        scanning.stack({"blocks_0": {"a": jnp.ones(2)}, "blocks_1": {"a": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        scanning.stack({"blocks_0": {"a": jnp.ones(2)}, "blocks_2": {"a": jnp.ones(2)}})


def test_scanned_layers_start_different_and_drop_independently():
    module = models.build("vit", **{**FIELDS, "depth": 8}, scan=True, drop_path=0.5)
    variables = models.init(module, jax.random.key(0))
    kernel = variables["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01

    @jax.jit
    def run(key):
        keywords = dict(train=True, rngs={"dropout": key})
        return jnp.stack(models.capture(module, variables, IMAGES, ["tokens"], **keywords)[1]["tokens"])

    def tokens(seed):
        return run(jax.random.key(seed))

    changed = jnp.abs(jnp.diff(tokens(0), axis=0)).max((2, 3)) > 0  # [block, sample]: whether any branch was kept
    assert not changed.all() and changed.any()
    assert float(jnp.abs(tokens(0) - tokens(1)).max()) > 0
    np.testing.assert_array_equal(tokens(0), tokens(0))


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth():
    def seconds(depth):
        module = models.build("vit", **{**FIELDS, "depth": depth, "width": 64, "heads": 4}, scan=True, drop_path=0.1)
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)

        def loss(variables, images, key):
            return jnp.sin(module.apply(variables, images, train=True, rngs={"dropout": key})).sum()

        lowered = jax.jit(jax.value_and_grad(loss)).lower(variables, IMAGES, jax.random.key(0))
        start = time.process_time()
        lowered.compile()
        return time.process_time() - start

    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        seconds(2)  # the compiler's own start
        shallow, deep = (min(seconds(depth) for _ in range(2)) for depth in (6, 24))
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    assert deep <= 1.5 * shallow
