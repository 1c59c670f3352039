"""Swin: windows, shifts, masks, patch merging, scanned and recomputed blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import models
from robust_vit.models.families import swin
from robust_vit.models.parts import scanning, windowing

RANK_PROMOTION = "allow"  # of the models that are made here

FIELDS = dict(
    depths=(3, 1), width=8, heads=(2, 2), patch_size=2, window_size=4, image_size=16, num_classes=5, mlp_ratio=2.0
)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))


def test_windows_and_shifts_of_the_published_models():
    module = models.build("swin_tiny_patch4_window7_224")
    assert module.grids == [(56, 56), (28, 28), (14, 14), (7, 7)]
    found = [windowing.window_and_shift(grid, 7) for grid in module.grids]
    assert found == [((7, 7), (3, 3))] * 3 + [((7, 7), (0, 0))]
    assert windowing.window_and_shift((4, 10), 7) == ((4, 7), (0, 3))  # direction by direction


@examples(8)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_partition_and_its_inverse(rows, columns, height, width):
    grid, window = (rows * height, columns * width), (height, width)
    x = np.arange(2 * grid[0] * grid[1] * 3).reshape(2, *grid, 3)
    windows = np.asarray(windowing.partition(jnp.asarray(x), window))
    assert windows.shape == (2, rows * columns, height * width, 3)
    np.testing.assert_array_equal(windows[1, -1].reshape(height, width, 3), x[1, -height:, -width:])
    np.testing.assert_array_equal(windowing.unpartition(jnp.asarray(windows), window, grid), x)


@examples(8)
@given(st.integers(2, 3), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5))
def test_the_mask_parts_tokens_that_the_shift_brought_together(rows, columns, height, width):
    grid, window = (rows * height, columns * width), (height, width)
    shift = (height // 2, width // 2 if columns > 1 else 0)
    mask = windowing.shift_mask(grid, window, shift)
    place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    rolled = np.roll(place, (-shift[0], -shift[1]), (0, 1))[None]
    windows = np.asarray(windowing.partition(jnp.asarray(rolled), window))[0]  # [W,N,2] where each token came from
    distance = np.abs(windows[:, :, None] - windows[:, None, :])
    together = (distance < np.array(window)).all(-1)  # tokens of one region are less than a window apart
    np.testing.assert_array_equal(mask, np.where(together, 0, -100))


def test_a_shifted_block_sees_its_shifted_window_only():
    block = swin.Block(heads=2, window_size=4)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    variables = block.init(jax.random.key(1), x, None, False, True)

    @jax.jit
    def seen(shifted, row, column):
        def token(x):
            return jnp.square(block.apply(variables, x, None, False, shifted)[0, row, column]).sum()

        return jnp.abs(jax.grad(token)(x)[0]).max(-1) > 1e-9

    def expected(rows, columns):
        mask = np.zeros((8, 8), bool)
        mask[rows, columns] = True
        return mask

    np.testing.assert_array_equal(seen(0, 0, 5), expected(slice(0, 4), slice(4, 8)))
    np.testing.assert_array_equal(seen(1, 0, 5), expected(slice(0, 2), slice(2, 6)))
    np.testing.assert_array_equal(seen(1, 7, 7), expected(slice(6, 8), slice(6, 8)))


@pytest.mark.parametrize("grid", [(8, 8), (5, 7)])  # the second is padded
def test_a_traced_shift_equals_a_static_one(grid):
    block = swin.Block(heads=2, window_size=4)
    x = jax.random.normal(jax.random.key(0), (2, *grid, 4))
    variables = block.init(jax.random.key(1), x, None, False, True)
    traced = jax.jit(lambda shifted: block.apply(variables, x, None, False, shifted))
    static = jax.jit(lambda x, shifted: block.apply(variables, x, None, False, shifted), static_argnums=1)
    for shifted in (False, True):
        np.testing.assert_allclose(traced(jnp.int32(shifted)), static(x, shifted), atol=1e-6)


def test_patch_merging_orders_columns_before_rows():
    x = jnp.arange(2 * 3).reshape(1, 2, 3, 1).astype(jnp.float32)  # an odd width is padded with zero
    module = swin.PatchMerging(4)
    variables = module.init(jax.random.key(0), x)
    variables["params"]["reduction"]["kernel"] = jnp.eye(4)
    merged = module.apply(variables, x)
    neighbours = np.array([[0, 3, 1, 4], [2, 5, 0, 0]], np.float32)
    centred = neighbours - neighbours.mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(merged[0, 0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def unrolled():
    module = models.build("swin", **FIELDS)
    variables = models.init(module, jax.random.key(0))
    return module, jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables)


def gradients(module, variables):
    return jax.jit(jax.grad(lambda v, x: jnp.sin(module.apply(v, x)).sum(), argnums=(0, 1)))(variables, IMAGES)


@pytest.mark.slow
def test_scanned_and_recomputed_blocks_are_the_same_function(unrolled):
    module, variables = unrolled
    ours = gradients(module, variables)
    scanned = gradients(module.clone(scan=True, remat=True), scanning.stack(variables))
    theirs = (scanning.unstack(scanned[0]), scanned[1])
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), ours, theirs)


def test_captures_scanned_or_not(unrolled):
    module, variables = unrolled
    run = jax.jit(models.capture, static_argnums=0)
    logits, ours = run(module, variables, IMAGES)
    _, theirs = run(module.clone(scan=True), scanning.stack(variables), IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    assert [x.shape for x in ours["tokens"]] == [(2, 8, 8, 8)] * 3 + [(2, 4, 4, 16)]
    assert [x.shape for x in ours["attention"]] == [(2, 4 * 2, 16, 16)] * 3 + [(2, 1 * 2, 16, 16)]
    np.testing.assert_allclose(ours["attention"][1].sum(-1), 1, atol=1e-5)
    head = variables["params"]["head"]["fc"]
    np.testing.assert_allclose(ours["features"][0] @ head["kernel"] + head["bias"], logits, atol=1e-5)


def test_fused_attention_takes_the_bias_and_the_mask(unrolled):
    module, variables = unrolled
    run = jax.jit(lambda f, x: f(x))
    ours, theirs = (run(models.logits_fn(m, variables), IMAGES) for m in (module, module.clone(attention="xla")))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_drop_path_grows_over_all_stages():
    module = models.build("swin", **FIELDS, drop_path=0.3)
    np.testing.assert_allclose(list(itertools.chain(*module._rates())), [0, 0.1, 0.2, 0.3], atol=1e-12)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(patch_size=3), "patch_size = 3"),
        (dict(heads=(2,)), "as long as depths"),
        (dict(heads=(3, 2)), "divisors"),
        (dict(window_size=0), "window_size = 0"),
        (dict(depths=(2, 0)), "at least 1 block"),
        (dict(attention="einsun"), "did you mean 'einsum'"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("swin", **{**FIELDS, **fields})
