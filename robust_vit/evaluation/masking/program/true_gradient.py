"""Evaluates a traced program with its true derivative: stop_gradient passes it, and none is written by hand.

The gradient of that program is the one of the function; where it differs from the gradient that an attack receives,
something hides it. JAX's and Flax's own custom derivatives are kept, they are honest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from robust_vit.attacks import losses
from robust_vit.evaluation.masking.program import lint
from robust_vit.typing import Array, LogitsFn

CUSTOM = ("custom_jvp_call", "custom_vjp_call")
SATURATES = {"tanh", "logistic", "erf", "clamp", "max", "min"}
Tap = Callable[[Any, Array], None]


def unmasked(logits_fn: LogitsFn, images: Array, tap: Tap | None = None) -> LogitsFn:
    """Returns a function with the same values as `logits_fn` on images of this shape, and the true derivative.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K].
      images: [B,H,W,C], or their shape.
      tap: called while evaluating with (equation, share of its outputs [] that saturate), outside loops only.
    """
    closed = lint.trace(logits_fn, images)
    return lambda x: _evaluate(closed, [x], tap)[0]


def compare(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """The difference between the gradient an attack receives and the true one, |g - t| / max(|g|, |t|), [B].

    Of the margin z_y - max_{j != y} z_j, which no softmax can saturate. 0 is the same, above 1 is opposed.
    """
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)

    def gradient(f: LogitsFn) -> Array:
        return jax.grad(lambda x: jnp.sum(losses.margin(f(x), labels)))(images)

    g, t = gradient(logits_fn), gradient(unmasked(logits_fn, shape))
    length = lambda v: jnp.sqrt(jnp.sum(v.astype(jnp.float32) ** 2, axis=(1, 2, 3)))  # noqa: E731
    largest = jnp.maximum(length(g), length(t))
    return jnp.where(largest > 0, length(g - t) / jnp.where(largest > 0, largest, 1.0), 0.0)


def saturation(logits_fn: LogitsFn, images: Array) -> list[tuple[str, str, float]]:
    """Lists (operation, line, share of its outputs with derivative zero) of the bounded activations outside loops."""
    seen: list[tuple[str, str, float]] = []

    def tap(eqn: Any, share: Array) -> None:
        seen.append((eqn.primitive.name, lint.line(eqn), float(share)))

    unmasked(logits_fn, images, tap)(images)
    return sorted(seen, key=lambda row: -row[2])


def _evaluate(closed: Any, arguments: list[Any], tap: Tap | None) -> list[Any]:
    jaxpr, constants = (closed.jaxpr, closed.consts) if hasattr(closed, "jaxpr") else (closed, ())
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars], tap)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, inputs: list[Any], tap: Tap | None) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == "stop_gradient":
        return inputs
    if name == "scan":
        return _scan(params, inputs)
    if name == "cond":
        branches = [lambda *x, b=branch: tuple(_evaluate(b, list(x), None)) for branch in params["branches"]]
        return list(jax.lax.switch(inputs[0], branches, *inputs[1:]))
    body = params.get("call_jaxpr", params.get("jaxpr"))
    if name in CUSTOM and not lint.is_library(body):
        return _evaluate(body, inputs, tap)
    if name in ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat"):
        return _evaluate(body, inputs, tap)
    bind = eqn.primitive.get_bind_params(params)
    functions, bind = bind if isinstance(bind, tuple) else ((), bind)  # a pair in some JAX releases
    outputs = eqn.primitive.bind(*functions, *inputs, **bind)
    outputs = list(outputs) if eqn.primitive.multiple_results else [outputs]
    if tap is not None and name in SATURATES:
        tap(eqn, _saturated(eqn, inputs))
    return outputs


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    first = params["num_consts"]
    last = first + params["num_carry"]
    constants = inputs[:first]

    def step(carry: tuple, x: tuple) -> tuple[tuple, tuple]:
        outputs = _evaluate(params["jaxpr"], [*constants, *carry, *x], None)
        return tuple(outputs[: last - first]), tuple(outputs[last - first :])

    carry, stacked = jax.lax.scan(
        step, tuple(inputs[first:last]), tuple(inputs[last:]), length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *stacked]


def _saturated(eqn: Any, inputs: list[Any]) -> Array:
    """The share of elements where the derivative in the largest operand is exactly zero."""
    which = max(range(len(inputs)), key=lambda i: jnp.size(inputs[i]))

    def f(x: Array) -> Array:
        return eqn.primitive.bind(*inputs[:which], x, *inputs[which + 1 :], **eqn.params)

    derivative = jax.jvp(f, inputs[which : which + 1], [jnp.ones_like(inputs[which])])[1]
    return jnp.mean(derivative == 0)
