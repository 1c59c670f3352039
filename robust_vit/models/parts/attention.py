"""Multi-head self-attention, and the formulations it can be computed in.

`attend` is shared by every family whose attention is softmax(q k^T / sqrt(d) + bias) v; talking heads (CaiT),
cross-covariance (XCiT) and ReLU-linear attention (EfficientViT) live with their families.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robust_vit.models.parts import captures, initializers, layers, taps
from robust_vit.typing import Array


@jax.custom_jvp
def _scores(q: Array, k: Array) -> Array:
    """q k^T for each head, [B,A,Q,d] and [B,A,K,d] -> [B,A,Q,K], in `wide` precision.

    This product and `_mix` have derivatives by hand for one reason: the gradient of their second factor contracts the
    rows of its first argument, for which XLA's CPU backend has no fast kernel; turned round first, the input
    gradient of a small ViT takes 8 % less time. The derivatives are written forward, so that every mode of
    differentiation has them; what matters is what JAX makes of them when it transposes them.
    """
    return jnp.einsum("baqd,bakd->baqk", q, k, preferred_element_type=layers.wide(q.dtype))


@_scores.defjvp
def _scores_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (q, k), (dq, dk) = primals, tangents
    turned = jnp.einsum("bakd,baqd->bakq", dk, q, preferred_element_type=layers.wide(q.dtype))
    return _scores(q, k), _scores(dq, k) + _apart(turned).swapaxes(-1, -2)


@jax.custom_jvp
def _mix(attention: Array, v: Array) -> Array:
    """attention v for each head, [B,A,Q,K] and [B,A,K,d] -> [B,A,Q,d]."""
    return jnp.einsum("baqk,bakd->baqd", attention, v)


@_mix.defjvp
def _mix_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (attention, v), (dattention, dv) = primals, tangents
    return _mix(attention, v), _mix(dattention, v) + _mix_turned(dv, attention)


@functools.partial(jax.checkpoint, prevent_cse=False)  # the backward pass turns the map; it is not kept twice
def _mix_turned(v: Array, attention: Array) -> Array:
    return jnp.einsum("bakq,bakd->baqd", _apart(attention.swapaxes(-1, -2)), v)


def _apart(x: Array) -> Array:
    """On CPUs, an array of its own, which the product after it does not look through; elsewhere nothing."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def einsum_attention(
    q: Array, k: Array, v: Array, bias: Array | None, through: Callable[[Array], Array] = lambda attention: attention
) -> tuple[Array, Array]:
    """Heads first, two batched products; softmax in at least float32. The only form with a map to show.

    Args:
      q, k, v: [B,A,N,d].
      bias: added to the scaled products, broadcastable to [B,A,Q,K]; or None.
      through: what the map goes through before it is used.

    Returns:
      values [B,A,Q,d] and the attention map [B,A,Q,K] (in `wide` precision).
    """
    dtype = layers.wide(q.dtype)
    scores = _scores(q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias.astype(dtype), scores.shape)
    attention = through(jax.nn.softmax(scores, axis=-1))
    return _mix(attention.astype(v.dtype), v), attention


def fused_attention(q: Array, k: Array, v: Array, bias: Array | None, implementation: str) -> tuple[Array, None]:
    """`jax.nn.dot_product_attention` ("xla" or "cudnn"): no map, less memory on accelerators."""
    if implementation == "cudnn":
        _check_cudnn(q, k)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B,N,A,d]
    if bias is not None:
        bias = jnp.broadcast_to(bias, (1,) * (4 - bias.ndim) + bias.shape).astype(q.dtype)
    out = jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)
    return out.swapaxes(1, 2), None


def _check_cudnn(q: Array, k: Array) -> None:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention='cudnn' needs dtype bfloat16 or float16, got {q.dtype.name}; use 'einsum' or 'xla'"
        )
    odd = [n for n in (q.shape[2], k.shape[2]) if n % 2]
    if odd:
        raise ValueError(
            f"attention='cudnn' needs an even number of tokens, got {odd[0]}: "
            "use pooling='mean' without a class token, 'einsum' or 'xla'"
        )


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Array, Array | None]]] = {
    "einsum": einsum_attention,
    "xla": lambda q, k, v, bias: fused_attention(q, k, v, bias, "xla"),
    "cudnn": lambda q, k, v, bias: fused_attention(q, k, v, bias, "cudnn"),
}


def attend(
    module: nn.Module, q: Array, k: Array, v: Array, bias: Array | None = None, implementation: str = "einsum"
) -> Array:
    """softmax(q k^T / sqrt(d) + bias) v; records and taps the map for `module` where somebody asks for it.

    Args:
      module: whose attention this is.
      q, k, v: [B,A,N,d]; `q` may have another number of tokens than `k` and `v`.
      bias: broadcastable to [B,A,Q,K], or None.
      implementation: a key of `IMPLEMENTATIONS`.

    Returns:
      [B,A,Q,d].
    """
    if taps.tapped("attention_probabilities"):
        tap = functools.partial(taps.tap, module, "attention_probabilities")
        out, attention = einsum_attention(q, k, v, bias, tap)
    else:
        if captures.recording(module):
            implementation = "einsum"  # the fused forms never hold the map
        out, attention = IMPLEMENTATIONS[implementation](q, k, v, bias)
    if attention is not None:
        captures.record(module, "attention", attention)
    return out


def split_heads(x: Array, parts: int, heads: int) -> list[Array]:
    """[B,N,parts*A*d] with columns ordered (part, head, d), as timm packs them, -> `parts` arrays [B,A,N,d]."""
    b, n, _ = x.shape
    x = x.reshape(b, n, parts, heads, -1).transpose(2, 0, 3, 1, 4)  # [parts,B,A,N,d]
    return [x[i] for i in range(parts)]


def merge_heads(x: Array) -> Array:
    """[B,A,N,d] -> [B,N,A*d]."""
    b, a, n, d = x.shape
    return x.swapaxes(1, 2).reshape(b, n, a * d)


class Attention(nn.Module):
    """Multi-head self-attention, [B,N,D] -> [B,N,D]: packed `qkv` (columns ordered (3, head, d)), output `proj`."""

    heads: int
    qkv_bias: bool = True
    implementation: str = "einsum"
    kernel_init: Callable[..., Array] = initializers.trunc_normal(0.02)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        policy = dict(kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        qkv = layers.Dense(3 * x.shape[-1], use_bias=self.qkv_bias, name="qkv", **policy)(x)
        q, k, v = split_heads(taps.tap(self, "qkv", qkv), 3, self.heads)
        out = merge_heads(attend(self, q, k, v, bias, self.implementation))
        return layers.Dense(x.shape[-1], name="proj", **policy)(out)
