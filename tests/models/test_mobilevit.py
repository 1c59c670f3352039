"""MobileViT: sequences, resizing, shortcuts, scanned transformers, small images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import models
from robust_vit.models.families import mobilevit
from robust_vit.models.parts import scanning

FIELDS = dict(
    stem_width=8,
    widths=(8, 16),
    blocks=(1, 1),
    strides=(2, 2, 2),
    transformer_widths=(16,),
    transformer_depths=(2,),
    head_width=16,
    image_size=24,  # a last map of 3x3, stretched to 4x4
    num_classes=5,
)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 24, 24, 3))


@pytest.mark.parametrize("value, expected", [(32, 32), (36, 40), (33, 32), (3, 8), (11.9, 16), (11, 16), (20, 24)])
def test_divisible_rounds_as_timm(value, expected):
    assert mobilevit.divisible(value) == expected


@examples(8)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_unfold_gathers_one_place_of_every_patch(rows, columns, patch):
    x = np.arange(2 * rows * columns * patch**2 * 3).reshape(2, rows * patch, columns * patch, 3)
    sequences = mobilevit.unfold(jnp.asarray(x), patch)
    assert sequences.shape == (2, patch**2, rows * columns, 3)
    np.testing.assert_array_equal(sequences[:, -1], x[:, patch - 1 :: patch, patch - 1 :: patch].reshape(2, -1, 3))
    np.testing.assert_array_equal(mobilevit.fold(sequences, patch, x.shape[1:3]), x)


@pytest.mark.parametrize("old, new", [(1, 2), (3, 4), (4, 3), (7, 8), (8, 7)])
def test_resize_interpolates_without_antialiasing(old, new):
    x = np.random.default_rng(0).normal(size=(1, old, old, 2))
    source = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(source).astype(int)
    high, fraction = np.minimum(low + 1, old - 1), source - low
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), low), 1 - fraction)
    np.add.at(matrix, (np.arange(new), high), fraction)
    expected = np.einsum("ih,jw,bhwc->bijc", matrix, matrix, x)
    np.testing.assert_allclose(mobilevit.resize(jnp.asarray(x, jnp.float32), (new, new)), expected, atol=1e-5)


@pytest.fixture(scope="module")
def unrolled():
    module = models.build("mobilevit_xxs", **FIELDS)
    return module, models.init(module, jax.random.key(0))


def step(module, variables):
    def loss(params):
        logits, state = module.apply({**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sin(logits).sum(), state

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def test_scanned_and_recomputed_blocks_are_the_same_training_step(unrolled):
    module, variables = unrolled
    ours = step(module, variables)
    theirs = step(module.clone(scan=True, remat=True), scanning.stack(variables))
    theirs = scanning.unstack({"gradients": theirs[0], **theirs[1]})
    ours = {"gradients": ours[0], **ours[1]}
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), ours, theirs)


def test_captures_scanned_or_not(unrolled):
    module, variables = unrolled
    run = jax.jit(models.capture, static_argnums=0)
    _, ours = run(module, variables, IMAGES)
    _, theirs = run(module.clone(scan=True), scanning.stack(variables), IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    assert [x.shape for x in ours["tokens"]] == [(2, 4, 4, 16)] * 2
    assert [x.shape for x in ours["attention"]] == [(2, 4 * 4, 4, 4)] * 2
    np.testing.assert_allclose(ours["attention"][0].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("stride, features, start", [(1, 8, 0), (2, 8, 1), (1, 16, 1)])
def test_a_branch_beside_a_shortcut_starts_at_nothing(stride, features, start):
    block = mobilevit.InvertedResidual(features, stride, 2.0)
    variables = jax.jit(lambda x: block.init(jax.random.key(0), x, None, False))(jnp.ones((1, 4, 4, 8)))
    scale = variables["params"]["conv3_1x1"]["bn"]["scale"]
    np.testing.assert_array_equal(scale, np.full(features, start))


def test_drop_path_needs_its_key_and_changes_the_output(unrolled):
    module, variables = unrolled
    dropped = jax.jit(
        lambda key: module.clone(drop_path=0.9).apply(
            variables, IMAGES, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0]
    )
    outputs = [dropped(jax.random.key(seed)) for seed in range(2)]
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 0


@pytest.mark.parametrize("strides", [(2, 1, 2, 2, 2, 2), (1, 1, 2, 2, 2, 2)])
def test_32_pixel_images(strides):
    module = models.build("mobilevit_xxs", image_size=32, num_classes=10, strides=strides)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    logits, captured = jax.eval_shape(lambda v, x: models.capture(module, v, x, ["tokens"]), variables, images)
    assert logits.shape == (2, 10)
    assert captured["tokens"][-1].shape == (2, 4, 1, 96)  # one 2x2 patch, natural or stretched


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(strides=(2,)), "strides"),
        (dict(blocks=(1,)), "as long as widths"),
        (dict(transformer_depths=(1, 1)), "transformer_depths"),
        (dict(heads=5), "heads = 5"),
        (dict(patch_size=0), "patch_size = 0"),
        (dict(attention="flash"), "attention = 'flash'"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("mobilevit_xxs", **{**FIELDS, **fields})
