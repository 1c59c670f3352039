"""ConvNeXt: its block against the definition, its grids, scanned and not, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.families import convnext
from robust_vit.models.parts import activations, scanning

FIELDS = dict(depths=(1, 2), widths=(8, 16), layer_scale=0.5, image_size=32, num_classes=5)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 32, 32, 3))


def test_block_is_depthwise_norm_mlp_scaled():
    block = convnext.Block(kernel_size=3, layer_scale=0.7)
    x = jax.random.normal(jax.random.key(1), (2, 5, 4, 6))
    variables = block.init(jax.random.key(0), x)
    p = variables["params"]
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(p["conv_dw"]["kernel"], np.float64)
    y = sum(padded[:, i : i + 5, j : j + 4] * kernel[i, j, 0] for i in range(3) for j in range(3))
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6)
    hidden = y @ np.asarray(p["mlp"]["fc1"]["kernel"], np.float64)
    y = np.asarray(activations.gelu(jnp.asarray(hidden)), np.float64) @ np.asarray(
        p["mlp"]["fc2"]["kernel"], np.float64
    )
    np.testing.assert_allclose(block.apply(variables, x), x + 0.7 * y, atol=1e-5)


@pytest.mark.parametrize("fields, sides", [(dict(), [8, 4, 4]), (dict(patch_size=2), [16, 8, 8])])
def test_grids(fields, sides):
    module = models.build("convnext_tiny", **FIELDS, **fields)
    run = lambda v, x: models.capture(module, v, x, ["tokens"])[1]["tokens"]  # noqa: E731
    shapes = [tokens.shape for tokens in jax.eval_shape(run, summary.shapes(module), IMAGES)]
    assert shapes == [(2, side, side, width) for side, width in zip(sides, (8, 16, 16), strict=True)]


@pytest.mark.slow
def test_conv_stem_has_overlapping_windows_of_seven_pixels():
    module = models.build("convnext_tiny_cvst", **FIELDS)
    stem = convnext.ConvStem(8)
    variables = stem.init(jax.random.key(0), IMAGES)
    seen = jax.grad(lambda x: stem.apply(variables, x)[0, 4, 4].sum())(IMAGES)[0]
    rows = np.flatnonzero(np.abs(seen).max((1, 2)))
    assert rows.tolist() == list(range(13, 20))
    assert set(summary.shapes(module)["params"]["stem"]) == {"stem_0", "stem_1", "stem_3", "stem_4"}


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_tiny_cvst"])
def test_scanned_equals_unrolled_with_gradients_and_captures(name):
    unrolled = models.build(name, **FIELDS)
    scanned = unrolled.clone(scan=True, remat=True)
    variables = models.init(unrolled, jax.random.key(0))
    run = jax.jit(
        lambda m, v: (jax.grad(lambda x: jnp.sin(m.apply(v, x)).sum())(IMAGES), models.capture(m, v, IMAGES)),
        static_argnums=0,
    )
    ours, theirs = run(unrolled, variables), run(scanned, scanning.stack(variables))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_drop_path_grows_over_all_blocks_of_all_stages():
    module = models.build("convnext_tiny", **FIELDS, drop_path=0.9)
    variables = models.init(module, jax.random.key(0))
    images = jnp.tile(IMAGES, (32, 1, 1, 1))

    def run(variables, key):
        keywords = dict(train=True, rngs={"dropout": key})
        return models.capture(module, variables, images, ["tokens"], **keywords)[1]["tokens"]

    tokens = jax.jit(run)(variables, jax.random.key(1))
    changed = jnp.abs(tokens[2] - tokens[1]).max((1, 2, 3)) > 0
    assert 0 < float(changed.mean()) < 0.35  # the last of three blocks drops 9 of 10; the first never
    again = jax.jit(run)(variables, jax.random.key(2))
    np.testing.assert_allclose(tokens[0], again[0], atol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(stem="convolution"), "stem = 'convolution'"),
        (dict(stem="conv", patch_size=2), "4 with stem = 'conv'"),
        (dict(image_size=7), "at least 8"),
        (dict(kernel_size=4), "kernel_size = 4: must be odd"),
        (dict(widths=(8,)), "as long as depths"),
    ],
)
def test_what_makes_no_model_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("convnext_tiny", **{**FIELDS, **fields})
