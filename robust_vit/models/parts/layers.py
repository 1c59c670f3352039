"""The small parts that every architecture is made of, with the semantics of the PyTorch code whose weights we load.

Parameter names are Flax's (`kernel`, `bias`, `scale`), module names mirror timm's state dict, so that conversion is
mechanical.

Precision: `dtype` is what products are computed in, `param_dtype` what parameters are stored in. Statistics, softmax
and logits are computed in `wide(dtype)`, at least float32. Nothing is hard-coded to float32: with
`dtype=param_dtype=float64` under `jax_enable_x64` a model runs in float64 throughout.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from robust_vit.models.parts import activations, convolution, initializers, noise
from robust_vit.typing import Array


def wide(dtype: Any) -> Any:
    """Returns `dtype`, but at least float32: what statistics, softmax and logits are computed in."""
    return jnp.promote_types(dtype, jnp.float32)


def by_channel(values: Any, like: Array) -> Array:
    """[C] as [1,..,1,C] of the dtype of `like` [..,C], to be combined with it: ranks are added where it is said."""
    values = jnp.asarray(values, like.dtype)
    return values.reshape((1,) * (like.ndim - 1) + values.shape[-1:])


def normalize(images: Array, mean: Sequence[float], std: Sequence[float], dtype: Any) -> Array:
    """Returns (images - mean) / std in `dtype`; empty `mean` and `std` leave the [0,1] pixels as they are.

    This sits inside the model, so that epsilon always means pixels. It is computed before rounding to a narrow `dtype`:
    bfloat16 pixels would lose steps of 1/255.
    """
    images = images.astype(wide(images.dtype))
    if len(mean):
        images = (images - by_channel(mean, images)) / by_channel(std, images)
    return images.astype(dtype)


class Dense(nn.Module):
    """y = x W + b over the last axis; kernel [in, out].

    Leading axes are flattened to one before the product: XLA's CPU matrix product of [B,N,D] by [D,E] is up to 1.7x
    slower than that of [B*N,D] by [D,E].
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = initializers.trunc_normal(0.02)
    bias_init: Callable[..., Array] = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)  # [B*N,E]
        if self.use_bias:
            y = y + by_channel(self.param("bias", self.bias_init, (self.features,), self.param_dtype), y)
        return y.reshape(*x.shape[:-1], self.features)


class Head(nn.Module):
    """The classifier: features [B,D] -> logits [B,K] in `wide(dtype)`, whatever the compute precision before it.

    With `num_classes=0` there is none, and the features come back, as in timm.
    """

    num_classes: int
    kernel_init: Callable[..., Array] = initializers.trunc_normal(0.02)
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        dtype = wide(self.dtype)
        if not self.num_classes:
            return features.astype(dtype)
        kernel = self.param("kernel", self.kernel_init, (features.shape[-1], self.num_classes), self.param_dtype)
        logits = features.astype(dtype) @ kernel.astype(dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
            logits = logits + by_channel(bias, logits)
        return logits


class Patchify(nn.Module):
    """A convolution whose stride is its kernel size, as reshape + matrix product (im2col): [B,H,W,C] -> [B,H/p,W/p,D].

    The input gradient of the strided convolution is 10 to 15 times slower on XLA's CPU backend, and every attack lives
    on it. The kernel keeps the convolution's shape [p,p,C,D], so weights convert as for any convolution.
    """

    features: int
    patch_size: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = initializers.torch_default
    bias_init: Callable[..., Array] | None = None  # None: PyTorch's default
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        p, (b, height, width, c) = self.patch_size, images.shape
        kernel = self.param("kernel", self.kernel_init, (p, p, c, self.features), self.param_dtype)
        h, w = height // p, width // p
        images = images[:, : h * p, : w * p]  # like an unpadded convolution: a remainder is not seen
        patches = images.reshape(b, h, p, w, p, c).transpose(0, 1, 3, 2, 4, 5)  # [B,h,w,p,p,C]
        y = patches.reshape(b * h * w, p * p * c).astype(self.dtype) @ kernel.astype(self.dtype).reshape(
            -1, self.features
        )
        if self.use_bias:
            bias_init = self.bias_init or initializers.torch_uniform(p * p * c)
            y = y + by_channel(self.param("bias", bias_init, (self.features,), self.param_dtype), y)
        return y.reshape(b, h, w, self.features)


class Conv(nn.Module):
    """A square convolution with PyTorch's symmetric padding k//2.

    'SAME' would pad (0,1) at even sizes, which is another function. The kernel is HWIO [k, k, C/groups, features],
    initialised as PyTorch does unless told otherwise.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    padding: int | None = None  # pixels on each side; None: kernel_size // 2
    use_bias: bool = True
    kernel_init: Callable[..., Array] = initializers.torch_default
    bias_init: Callable[..., Array] | None = None  # None: PyTorch's default
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, fan_in = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param("kernel", self.kernel_init, (k, k, fan_in, self.features), self.param_dtype)
        padding = k // 2 if self.padding is None else self.padding
        y = convolution.conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding, self.groups)
        if self.use_bias:
            bias_init = self.bias_init or initializers.torch_uniform(k * k * fan_in)
            y = y + by_channel(self.param("bias", bias_init, (self.features,), self.param_dtype), y)
        return y


class LayerNorm(nn.Module):
    """Normalises the last axis, with a two-pass variance (the one-pass form loses 1e-6 parity)."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        x = x.astype(wide(self.dtype))
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * by_channel(scale, x) + by_channel(bias, x)).astype(self.dtype)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm: batch variance normalises (biased), but the running variance takes the UNBIASED one.

    Under `jax.jit` with a sharded batch the statistics are those of the whole batch. With `train=True` and an immutable
    `batch_stats` collection (an attack inside a training step) the batch is used and nothing is stored.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9  # PyTorch calls this 0.1
    scale_init: Callable[..., Array] = nn.initializers.ones
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        features = x.shape[-1]
        scale = self.param("scale", self.scale_init, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        stats_dtype = wide(self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), stats_dtype)
        x = x.astype(wide(self.dtype))
        if train:
            axes, n = tuple(range(x.ndim - 1)), x.size // features
            mean = x.mean(axes)
            var = jnp.square(x - by_channel(mean, x)).mean(axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                self._update(running_mean, mean)
                self._update(running_var, var * (n / max(n - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        multiplier = lax.rsqrt(var + self.epsilon) * scale
        return ((x - by_channel(mean, x)) * by_channel(multiplier, x) + by_channel(bias, x)).astype(self.dtype)

    def _update(self, running: Any, batch: Array) -> None:
        batch = lax.stop_gradient(batch).astype(running.value.dtype)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


class Mlp(nn.Module):
    """fc2(activation(fc1(x))); `hidden` is the inner width."""

    hidden: int
    activation: Callable[[Array], Array] = activations.gelu
    kernel_init: Callable[..., Array] = initializers.trunc_normal(0.02)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        policy = dict(kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = self.activation(Dense(self.hidden, name="fc1", **policy)(x))
        return Dense(x.shape[-1], name="fc2", **policy)(hidden)


class LayerScale(nn.Module):
    """x * gamma, one learned factor a channel."""

    init_value: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), (x.shape[-1],), self.param_dtype)
        return x * by_channel(gamma.astype(self.dtype), x)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, and scales what is kept by 1/(1-rate)."""

    @nn.compact
    def __call__(self, x: Array, rate: float | Array | None, train: bool) -> Array:
        """Args:
        x: [B, ...] a residual branch.
        rate: probability; may be traced (one value a layer under `scan`); None or 0 is no drop path.
        train: drops nothing when false.
        """
        if not train or rate is None or (isinstance(rate, int | float) and rate == 0):
            return x
        keep = 1 - rate
        mask = noise.coins(self.make_rng("dropout"), keep, x.shape[0]).reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / jnp.asarray(keep, x.dtype), jnp.zeros_like(x))


def drop_path_rates(rate: float, depth: int) -> list[float] | None:
    """timm's linear rule, 0 at the first block and `rate` at the last; None for no drop path."""
    if not rate:
        return None
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
