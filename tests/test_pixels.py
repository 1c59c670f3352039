"""Promise: uint8 and uint16 become the correctly rounded quotient everywhere, NumPy or compiled, alone or fused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import pixels

RANK_PROMOTION = "allow"  # of the models that are made here

LEVELS = {np.uint8: 255, np.uint16: 65535}


@pytest.fixture(params=LEVELS, ids=["uint8", "uint16"])
def levels(request):
    """(every level of the type, its quotient in exact arithmetic rounded once)."""
    top = LEVELS[request.param]
    x = np.arange(top + 1)
    return x.astype(request.param), (x / top).astype(np.float32)


@pytest.fixture
def optimised():
    """XLA's rewrites on: the suite turns most of them off, and they are what is guarded against."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_the_reference_is_numpys_quotient(levels):
    x, expected = levels
    assert np.array_equal(x.astype(np.float32) / np.float32(len(x) - 1), expected)


@pytest.mark.parametrize(
    "convert",
    [
        pixels.as_float,
        lambda x: pixels.as_float(jnp.asarray(x)),
        jax.jit(pixels.as_float),
        jax.jit(jax.vmap(pixels.as_float)),
        lambda x: jax.jit(lambda: pixels.as_float(jnp.asarray(x)))(),  # folded at compile time
        jax.jit(lambda x: jax.lax.map(pixels.as_float, x)),
    ],
    ids=["numpy", "eager", "jit", "vmap", "constant", "scan"],
)
def test_every_level_is_correctly_rounded(levels, convert, optimised):
    x, expected = levels
    converted = convert(x)
    assert converted.dtype == np.float32
    assert np.array_equal(np.asarray(converted), expected)


def test_every_level_is_correctly_rounded_inside_a_larger_program(levels, optimised):
    """Beside normalisation, clipping and a matrix product, with which XLA fuses it."""
    x, expected = levels
    mean, std = np.float32([0.485, 0.456, 0.406, 0.4]), np.float32([0.229, 0.224, 0.225, 0.2])

    @jax.jit
    def program(x, weights, noise):
        images = pixels.as_float(x)
        near = jnp.clip(images + noise, images - 0.03, images + 0.03)
        logits = jnp.tanh((images - mean) / std) @ weights + jnp.sum(near * images)
        return logits, 2 * images - 1, images, near - images

    blocks = x.reshape(-1, 4)
    _, centred, images, _ = program(blocks, np.ones((4, 3), np.float32), np.float32(0.01))
    assert np.array_equal(np.asarray(images).ravel(), expected)
    assert np.array_equal(np.asarray(centred).ravel(), 2 * expected - 1)


def test_a_loss_over_converted_pixels_has_the_gradient_of_the_floats():
    """Integers carry no gradient: what follows the conversion is differentiated, and nothing breaks on the way."""
    x = np.arange(256, dtype=np.uint8)
    weights = jnp.linspace(-1.0, 1.0, 256)
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(w * pixels.as_float(x))))(weights, x)
    assert np.array_equal(gradient, x / np.float32(255))


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_floats_keep_their_values_in_float32(kind, as_array):
    x = as_array(np.linspace(0, 1, 7).astype(kind))
    converted = pixels.as_float(x)
    assert converted.dtype == np.float32 and np.array_equal(np.asarray(converted), np.asarray(x).astype(np.float32))


def test_the_result_is_a_new_array():
    """Who writes into it does not write into the caller's images."""
    x = np.zeros(3, np.float32)
    pixels.as_float(x)[:] = 1
    assert not x.any()


@pytest.mark.parametrize("kind", [np.int32, np.int8, np.uint32, bool, np.complex64])
def test_other_numbers_are_refused(kind):
    for convert in (pixels.as_float, jax.jit(pixels.as_float)):
        with pytest.raises(ValueError, match=r"images\.dtype = '\w+': must be uint8") as error:
            convert(np.zeros((2, 2), kind))
        assert "\n" not in str(error.value)
