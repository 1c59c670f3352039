"""Convolution as a function: the one place that chooses how it is computed."""

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
    if k == 1 and padding == 0 and groups == 1:
        x = x[:, ::stride, ::stride] if stride > 1 else x
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        preferred_element_type=jnp.result_type(x),
    )
