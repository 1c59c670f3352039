"""How parameters begin: timm's and PyTorch's distributions, which are not those of `jax.nn.initializers`."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.typing import Array


def trunc_normal(std: float = 0.02) -> Callable[..., Array]:
    """timm's `trunc_normal_`: a normal cut at -2 and 2 ABSOLUTE, so plain N(0, std) for the usual small `std`.

    `jax.nn.initializers.truncated_normal` cuts at two standard deviations, which is another distribution.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if std < 0.3:  # the cut lies beyond 6.6 sigma; inverting the distribution function there would yield +-2 itself
            return std * jax.random.normal(key, shape, dtype)
        return std * jax.random.truncated_normal(key, -2 / std, 2 / std, shape, dtype)

    return init


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for weights and biases of convolutions and linear layers: U(+-1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_default(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """PyTorch's default for a kernel [..., in, out]: U(+-1/sqrt(fan_in)) with the fan-in read off the shape."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return torch_uniform(fan_in)(key, shape, dtype)


# How dense kernels begin. "timm" is what ImageNet-sized widths were tuned with; at width 64 it leaves
# every branch near zero for the first epochs, and "lecun", N(0, 1/fan_in), learns at once.
INITS = {"timm": trunc_normal(0.02), "lecun": nn.initializers.lecun_normal()}
