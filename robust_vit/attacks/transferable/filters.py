"""Gradients changed on their way back to the image: smoothed over places (TI), or filtered inside a transformer.

The forward pass stays as it is, bit for bit.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.attacks.arguments import is_concrete
from robust_vit.errors import check, lookup
from robust_vit.typing import Array, LogitsFn

Filter = Callable[[Array], Array]  # gradient -> gradient, of the value's shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def filtered(change: Filter, value: Array) -> Array:
    """The value; its gradient goes through `change`."""
    return value


def _forward(change: Filter, value: Array) -> tuple[Array, None]:
    return value, None


def _backward(change: Filter, _: None, gradient: Array) -> tuple[Array]:
    return (change(gradient).astype(gradient.dtype),)


filtered.defvjp(_forward, _backward)


def smoothed(logits_fn: LogitsFn, width: int) -> LogitsFn:
    """The classifier whose gradient is smoothed by a Gaussian of `width` pixels, three deviations to either side: the
    mean gradient over shifted images, to first order.

    Reference: Dong et al. 2019 (TI-FGSM), https://arxiv.org/abs/1904.02884
    """
    return jax.tree_util.Partial(_Smoothed(width), logits_fn)


class _Smoothed:
    """Compares by its width, so that equal ones share a compilation."""

    def __init__(self, width: int):
        self.width = width

    def __call__(self, logits_fn: LogitsFn, images: Array, *keys: Array) -> Array:
        return logits_fn(filtered(functools.partial(blurred, width=self.width), images), *keys)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.width == self.width

    def __hash__(self) -> int:
        return hash(self.width)


def blurred(images: Array, width: int) -> Array:
    """[B,H,W,C] convolved with that Gaussian, zeros outside."""
    places = np.linspace(-3.0, 3.0, width) if width > 1 else np.zeros(1)
    taps = np.exp(-0.5 * places**2)
    taps = jnp.asarray(taps / taps.sum(), images.dtype)
    for axis in (1, 2):
        along = jnp.moveaxis(images, axis, -1)
        rows = along.reshape(-1, 1, along.shape[-1])
        rows = jax.lax.conv_general_dilated(
            rows, taps[None, None], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
        )
        images = jnp.moveaxis(rows.reshape(along.shape), -1, axis)
    return images


# --- inside transformers: gradients at the points of `models.parts.taps` --------------------------------------------


def scaled(factor: float) -> Filter:
    """The gradient times a factor."""
    return lambda gradient: factor * gradient


def regular_map(gradient: Array) -> Array:
    """Zero in the rows and columns of the largest and the smallest entry of every head's map [B,A,Q,K]."""
    *front, q, k = gradient.shape
    flat = gradient.reshape(*front, q * k)
    for extreme in (jnp.argmax(flat, -1), jnp.argmin(flat, -1)):  # [B,A]
        row, column = jax.nn.one_hot(extreme // k, q, dtype=bool), jax.nn.one_hot(extreme % k, k, dtype=bool)
        gradient = jnp.where(row[..., :, None] | column[..., None, :], 0.0, gradient)
    return gradient


def regular_tokens(gradient: Array) -> Array:
    """Zero at the tokens of the largest and the smallest entry of every channel, [B,...,D]."""
    flat = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])  # [B,N,D]
    tokens = jnp.arange(flat.shape[1])[None, :, None]
    extremes = (tokens == jnp.argmax(flat, 1)[:, None]) | (tokens == jnp.argmin(flat, 1)[:, None])
    return jnp.where(extremes, 0.0, flat).reshape(gradient.shape)


def _tgr() -> dict[str, Filter]:
    return {
        "attention_probabilities": lambda gradient: regular_map(0.25 * gradient),
        "qkv": lambda gradient: regular_tokens(0.75 * gradient),
        "mlp_output": lambda gradient: regular_tokens(0.5 * gradient),
    }


# Point -> filter. PNA: no gradient through the maps, Wei et al. 2022, https://arxiv.org/abs/2109.04176; TGR: Zhang et
# al. 2023, https://arxiv.org/abs/2303.15754, factors of github.com/Trustworthy-AI-Group/TransferAttack.
TOKENS: dict[str, dict[str, Filter]] = {
    "none": {},
    "pna": {"attention_probabilities": scaled(0.0)},
    "tgr": _tgr(),
}


def through_tokens(
    logits_fn: LogitsFn, name: str, keep_tokens: float | Array = 1.0, keep_heads: float | Array = 1.0
) -> Callable[..., Array]:
    """The classifier, a transformer of `models`, whose gradient is filtered inside its blocks.

    Args:
      logits_fn: the classifier.
      name: of `TOKENS`.
      keep_tokens, keep_heads: shares of the tokens of the stream and of the heads that let gradients pass, in [0,1],
        drawn for every example and point. Blocks that are scanned, compiled once for all, share their draws.

    Returns:
      (images) -> logits; (images, keys [B]) -> logits where something is drawn.

    Raises:
      ValueError: for an unknown name, or, when it is called, for a model without these points.
    """
    filters, keep = lookup("tokens", name, TOKENS), {}
    if not is_one(keep_tokens):
        keep["residual"] = keep_tokens
    if not is_one(keep_heads):
        keep["attention_probabilities"] = keep_heads
    if not (filters or keep):
        return logits_fn
    return jax.tree_util.Partial(functools.partial(_tapped, filters=filters, keep=keep), logits_fn)


def _tapped(
    logits_fn: LogitsFn, images: Array, *keys: Array, filters: dict[str, Filter], keep: dict[str, float | Array]
) -> Array:
    from robust_vit.models.parts import taps  # the other attacks need no models

    met: list[str] = []

    def handler(module: Any, point: str, value: Array) -> Array:
        met.append(point)
        value = filtered(filters[point], value) if point in filters else value
        if point not in keep:
            return value
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys[0], len(met))
        return jnp.where(_coins(own, keep[point], value, point), value, jax.lax.stop_gradient(value))

    with taps.handled(handler, {*filters, *keep}):
        logits = logits_fn(images)
    wanted = " or ".join(sorted({*filters, *keep}))
    check("surrogate", "a model", bool(met), f"a transformer of models with {wanted} to tap, not compiled already")
    return logits


def _coins(keys: Array, keep: float | Array, value: Array, point: str) -> Array:
    """Which heads of a map, or tokens of a stream, let gradients pass; a window of an image draws like a token."""
    front = value.shape[:2] if point == "attention_probabilities" else value.shape[:-1]
    shape = (front[0] // keys.shape[0], *front[1:])
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(keys)
    return coins.reshape(*front, *(1,) * (value.ndim - len(front)))


def is_one(value: float | Array) -> bool:
    """True if the number can be read now and is 1."""
    return is_concrete(value) and value == 1
