"""Convolution as a function: the one place that chooses how it is computed."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

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
    if groups == x.shape[-1] == kernel.shape[-1]:
        return depthwise(x, kernel, stride, padding)
    return _direct(x, kernel, stride, padding, groups)


def _direct(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> Array:
    """XLA's own convolution."""
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
    """A depthwise convolution, [B,H,W,C] by [k,k,1,C] -> [B,H',W',C], in the form of the platform it is lowered for.

    On CPUs it is a sum of shifted images, y = sum_ij x[i::stride, j::stride] * kernel[i,j]: 20 to 80 times faster than
    XLA's grouped convolution there, and its input gradient 5 to 70 times. Elsewhere it is the convolution itself.
    """
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_sum(x, kernel, stride, padding),
        default=lambda x, kernel: _direct(x, kernel, stride, padding, x.shape[-1]),
    )


def _depthwise_jvp(stride: int, padding: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The two linear maps of the product rule, in forms whose transposes, which JAX derives, are fast.

    Both are checkpointed: they keep `x` and `kernel` for the backward pass, not the k*k slices of them.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    out = _depthwise(x, kernel, stride, padding)
    change = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        by_image = jax.checkpoint(functools.partial(_by_image, stride, padding), prevent_cse=False)
        change = by_image(dx, kernel)
    if not isinstance(dkernel, SymbolicZero):  # an attack leaves the kernel alone
        by_kernel = jax.checkpoint(functools.partial(_by_kernel, stride, padding), prevent_cse=False)
        change = change + by_kernel(dkernel, x)
    return out, change


_depthwise.defjvp(_depthwise_jvp, symbolic_zeros=True)


def _by_image(stride: int, padding: int, dx: Array, kernel: Array) -> Array:
    """The convolution as a linear map of the image."""
    k = kernel.shape[0]

    def spread(dx: Array, kernel: Array) -> Array:
        # the transpose of k*k slices is k*k padded arrays in memory and then their sum. So it is this map that is
        # written as a transpose, of the convolution with the flipped kernel: its own transpose, the input gradient,
        # is that convolution again, one loop, and an XCiT block's input gradient takes two thirds of the time
        def flipped(y: Array) -> Array:
            return _shifted_sum(y, kernel[::-1, ::-1], 1, k - 1 - padding)

        side = 2 * padding + 1 - k
        shape = (dx.shape[0], dx.shape[1] + side, dx.shape[2] + side, dx.shape[3])
        return jax.linear_transpose(flipped, jax.ShapeDtypeStruct(shape, dx.dtype))(dx)[0]

    def shifted(dx: Array, kernel: Array) -> Array:
        return _shifted_sum(dx, kernel, stride, padding)

    def direct(dx: Array, kernel: Array) -> Array:
        return _direct(dx, kernel, stride, padding, dx.shape[-1])

    cpu = spread if stride == 1 and padding < k else shifted
    return lax.platform_dependent(dx, kernel, cpu=cpu, default=direct)


def _by_kernel(stride: int, padding: int, dkernel: Array, x: Array) -> Array:
    """The convolution as a linear map of the kernel, whose gradient is summed over all pixels in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def shifted(dkernel: Array, x: Array) -> Array:
        return _shifted_sum(x.astype(wide), dkernel.astype(wide), stride, padding).astype(x.dtype)

    def direct(dkernel: Array, x: Array) -> Array:
        return _direct(x, dkernel, stride, padding, x.shape[-1])

    return lax.platform_dependent(dkernel, x, cpu=shifted, default=direct)


def _shifted_sum(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """y[h,w] = sum_ij x[stride h + i - padding, stride w + j - padding] * kernel[i,j]."""
    k = kernel.shape[0]
    height, width = ((n + 2 * padding - k) // stride + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = None
    for i, j in itertools.product(range(k), range(k)):
        rows = slice(i, i + (height - 1) * stride + 1, stride)
        term = x[:, rows, j : j + (width - 1) * stride + 1 : stride] * kernel[i, j][None, None]
        out = term if out is None else out + term
    return out
