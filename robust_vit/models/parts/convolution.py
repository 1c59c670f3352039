"""Convolution as a function: the one place that chooses how it is computed."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from robust_vit.typing import Array


def conv(x: Array, kernel: Array, stride: int = 1, padding: int = 0, groups: int = 1) -> Array:
    """Convolves NHWC images with an HWIO kernel.

    Args:
      x: [B,H,W,C].
      kernel: [k,k,C/groups,D].
      stride: pixels, both directions.
      padding: pixels of zeros on every side.
      groups: feature groups; C for a depthwise convolution.

    Returns:
      [B,H',W',D].
    """
    k = kernel.shape[0]
    if k == 1 and padding == 0:
        return _pointwise(x[:, ::stride, ::stride] if stride > 1 else x, kernel[0, 0], groups)
    if groups == x.shape[-1] == kernel.shape[-1] and jax.default_backend() == "cpu":
        return depthwise(x, kernel, stride, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        preferred_element_type=jnp.result_type(x),
    )


def _pointwise(x: Array, kernel: Array, groups: int) -> Array:
    """A 1x1 convolution as a matrix product; kernel [C/groups,D]."""
    if groups == 1:
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel.reshape(kernel.shape[0], groups, -1)  # the outputs of one group are neighbours
    return jnp.einsum("bhwgi,igo->bhwgo", grouped, kernel).reshape(*x.shape[:-1], -1)


@functools.partial(jax.jit, static_argnums=(2, 3))  # by its name in the traced program, its work can be counted
def depthwise(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """A depthwise convolution as a sum of shifted images: y = sum_ij x[i::stride, j::stride] * kernel[i,j].

    On XLA's CPU backend this is 20 to 80 times faster than the grouped convolution, and its input gradient 5 to 70
    times; kernel [k,k,1,C]. Without stride it is differentiated by hand, in reverse mode only.
    """
    if stride == 1 and padding < kernel.shape[0]:
        return _unstrided(x, kernel, padding)
    return _shifted_sum(x, kernel, stride, padding)


def _shifted_sum(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    out = None
    for (i, j), seen in _taps(x, kernel.shape[0], stride, padding):
        term = seen * kernel[i, j, 0]
        out = term if out is None else out + term
    return out


def _taps(x: Array, k: int, stride: int, padding: int) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yields each place (i, j) of a kernel and the pixels [B,H',W',C] that it meets."""
    height, width = ((n + 2 * padding - k) // stride + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for i in range(k):
        for j in range(k):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            yield (i, j), x[:, rows, j : j + (width - 1) * stride + 1 : stride]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unstrided(x: Array, kernel: Array, padding: int) -> Array:
    return _shifted_sum(x, kernel, 1, padding)


def _unstrided_forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, kernel, 1, padding), (x, kernel)


def _unstrided_backward(padding: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # the transpose of k*k slices is k*k padded arrays in memory and then their sum; the same as a convolution with the
    # flipped kernel is one loop, and an XCiT block's input gradient takes two thirds of the time
    x, kernel = saved
    k = kernel.shape[0]
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    taps = [(seen * gradient).sum((0, 1, 2), dtype=wide) for _, seen in _taps(x, k, 1, padding)]
    by_kernel = jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)
    return _unstrided(gradient, kernel[::-1, ::-1], k - 1 - padding), by_kernel


_unstrided.defvjp(_unstrided_forward, _unstrided_backward)
