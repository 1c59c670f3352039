"""Models that are not JAX's: PyTorch modules with their gradients, and NumPy functions without.

    logits_fn = from_torch(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    logits_fn = from_numpy(predict, classes=10)

Each is a `LogitsFn` that compiled programs call back into Python for, one call at a time. Models of Flax NNX, Equinox
or Haiku need nothing: they are JAX. See docs/bring_your_own_model.md.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robust_vit.errors import check
from robust_vit.evaluation import callables
from robust_vit.host_call import host_call
from robust_vit.typing import Array, LogitsFn

# Several tiles are in flight, each with a thread that calls back: one at a time, as few networks promise more, and each
# call has all cores anyway.
_TURN = threading.Lock()


def from_torch(network: Any, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> LogitsFn:
    """Makes a PyTorch module a `LogitsFn`, with PyTorch's gradients.

    A gradient costs a forward pass more than in PyTorch, as nothing is kept between the two passes. There is no forward
    mode (`jax.jvp`).

    Args:
      network: a `torch.nn.Module`, normalised images [B,C,H,W] -> logits [B,K]; on any device and in any precision. It
        is put, and kept, in evaluation mode.
      mean, std: what the network wants its images normalised by, one value or one a channel; none for raw pixels in
        [0,1]. Epsilon is then still a fraction of the pixel range.

    Returns:
      images [B,H,W,C] in [0,1] -> logits [B,K] float32.

    Raises:
      ValueError: if it is no module, or mean and std do not fit; when it is first called, if the module cannot take the
        images, or returns anything but logits.
    """
    import torch

    check("network", type(network).__name__, isinstance(network, torch.nn.Module), "a torch.nn.Module")
    check("mean and std", (tuple(mean), tuple(std)), len(mean) == len(std), "of one length, or both left out")
    check("std", tuple(std), all(value > 0 for value in std), "above 0")
    return Partial(_Torch(network, tuple(map(float, mean)), tuple(map(float, std))))


def from_numpy(function: Callable[[np.ndarray], np.ndarray], classes: int) -> LogitsFn:
    """Makes any NumPy function a `LogitsFn` for attacks and measurements that need no gradient.

    Args:
      function: images float32 [B,H,W,C] in [0,1] -> logits [B,K] of floats; log-probabilities will do.
      classes: K.

    Returns:
      images [B,H,W,C] -> logits [B,K] float32. Asked for a gradient it raises a ValueError.

    Raises:
      ValueError: if `function` cannot be called, or there are fewer than 2 classes.
    """
    check("function", function, callable(function), "callable, images [B,H,W,C] -> logits [B,K]")
    check("classes", classes, classes >= 2, "at least 2")
    return callables.on_host(_OneAtATime(function), classes)


@dataclasses.dataclass(frozen=True)
class _OneAtATime:
    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with _TURN:
            return self.function(np.array(images))  # a copy: the function may write into it, and that is XLA's memory


@dataclasses.dataclass(frozen=True)
class _Torch:
    """A PyTorch network between two callbacks, one for its logits and one for its gradient."""

    network: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def __name__(self) -> str:
        return type(self.network).__name__

    @property
    def weights(self) -> int:
        """How many numbers the network learned."""
        return sum(one.numel() for one in self.network.parameters())

    def __call__(self, images: Array) -> Array:
        images = jnp.asarray(images, jnp.float32)
        if self.mean:
            channels = images.shape[-1]
            check("mean", self.mean, len(self.mean) in (1, channels), f"one value, or {channels}, as the images have")
            mean, std = (jnp.asarray(values).reshape(1, 1, 1, -1) for values in (self.mean, self.std))
            images = (images - mean) / std
        return _logits(self, self._classes(images.shape[1:]), images)

    def _classes(self, shape: tuple[int, ...]) -> int:
        """K, from a call with two blank images; says in one line what is wrong."""
        name = f"network = {self.__name__}"
        shown = f"images [2, {shape[2]}, {shape[0]}, {shape[1]}]"
        try:
            logits = self._run(np.zeros((2, *shape), np.float32), None)
        except Exception as error:  # PyTorch raises many kinds for shapes that do not fit
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{name}: fails on {shown}: {told}") from None
        if not hasattr(logits, "shape") or not hasattr(logits, "detach"):
            raise ValueError(
                f"{name}: returns a {type(logits).__name__}, must return a tensor of logits [B,K]: wrap it"
            )
        right = len(logits.shape) == 2 and logits.shape[0] == 2 and logits.shape[1] >= 2 and logits.is_floating_point()
        check(f"{name}: logits of {shown}", list(logits.shape), right, "floats [2,K] with K at least 2")
        return logits.shape[1]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """[...,H,W,C] -> [...,K]; leading axes are those of the batch, and of every vmap around it."""
        found = self._run(images.reshape(-1, *images.shape[-3:]), None)
        return found.float().cpu().numpy().reshape(*images.shape[:-3], -1)

    def gradient(self, images: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """d(sum logits * cotangents) / d images, [...,H,W,C]."""
        flat = cotangents.reshape(-1, cotangents.shape[-1])
        found = self._run(images.reshape(-1, *images.shape[-3:]), flat)
        return found.float().cpu().permute(0, 2, 3, 1).numpy().reshape(images.shape)

    def _run(self, images: np.ndarray, cotangents: np.ndarray | None) -> Any:
        """Logits of images [B,H,W,C], or with cotangents [B,K] their gradient [B,C,H,W], as tensors."""
        import torch

        with _TURN, torch.set_grad_enabled(cotangents is not None):
            self.network.eval()
            weights = itertools.chain(self.network.parameters(), self.network.buffers())
            like = next((one for one in weights if one.is_floating_point()), torch.empty(0))
            turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            points = torch.tensor(turned, dtype=like.dtype, device=like.device, requires_grad=cotangents is not None)
            logits = self.network(points)
            if cotangents is None:
                return logits
            pulled = torch.tensor(cotangents, dtype=logits.dtype, device=logits.device)
            return torch.autograd.grad(logits, points, pulled)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _logits(bridge: _Torch, classes: int, images: Array) -> Array:
    """[B,H,W,C] -> [B,K]."""
    shape = jax.ShapeDtypeStruct((images.shape[0], classes), jnp.float32)
    return host_call(bridge.logits, shape, images)


def _forward(bridge: _Torch, classes: int, images: Array) -> tuple[Array, Array]:
    return _logits(bridge, classes, images), images


def _backward(bridge: _Torch, classes: int, images: Array, cotangents: Array) -> tuple[Array]:
    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    return (host_call(bridge.gradient, shape, images, cotangents),)


_logits.defvjp(_forward, _backward)
