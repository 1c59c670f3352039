"""Convolution as a function: the one place that chooses how it is computed."""

import functools

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
    times; kernel [k,k,1,C].
    """
    k = kernel.shape[0]
    height, width = ((n + 2 * padding - k) // stride + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = jnp.zeros((x.shape[0], height, width, x.shape[-1]), x.dtype)
    for i in range(k):
        for j in range(k):
            seen = x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
            out = out + seen * kernel[i, j, 0]
    return out
