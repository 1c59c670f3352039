"""Every way of computing a convolution gives the convolution, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robust_vit.models.parts import convolution


@pytest.mark.parametrize(
    "side, channels, features, kernel_size, stride, groups",
    [
        (9, 6, 6, 3, 1, 6),  # depthwise
        (8, 6, 6, 3, 2, 6),  # depthwise, the last row not reached
        (7, 4, 4, 5, 1, 4),
        (2, 4, 4, 7, 1, 4),  # a kernel larger than the image
        (5, 12, 24, 1, 1, 3),  # grouped 1x1
        (6, 12, 5, 1, 2, 1),  # strided 1x1
        (6, 4, 8, 3, 1, 4),  # two features a channel
    ],
)
def test_equals_xla(side, channels, features, kernel_size, stride, groups):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, side, side, channels))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, channels // groups, features))
    padding = kernel_size // 2

    def ours(x, kernel):
        return convolution.conv(x, kernel, stride, padding, groups)

    def reference(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=names, feature_group_count=groups
        )

    def run(f):
        def value(x, kernel):
            y = f(x, kernel)
            return jnp.sin(y).sum(), y

        return jax.jit(jax.grad(value, (0, 1), has_aux=True))(x, kernel)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), run(ours), run(reference))
