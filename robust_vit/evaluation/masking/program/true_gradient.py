"""Evaluates a traced program with its true derivative: stop_gradient passes it, and none is written by hand.

The gradient of that program is the one of the function; where it differs from the gradient that an attack receives,
something hides it. JAX's and Flax's own custom derivatives are kept, they are honest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses
from robust_vit.program import flow, interpreter, tracing
from robust_vit.program.interpreter import Rules, Value
from robust_vit.typing import Array, LogitsFn

SATURATES = {"tanh", "logistic", "erf", "clamp", "max", "min"}
Tap = Callable[[Any, Array], None]


def unmasked(logits_fn: LogitsFn, images: Array, tap: Tap | None = None) -> LogitsFn:
    """Returns a function with the same values as `logits_fn` on images of this shape, and the true derivative.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K].
      images: [B,H,W,C], or their shape.
      tap: called while evaluating with (equation, share of its outputs [] that saturate), outside loops only.
    """
    closed = tracing.trace(logits_fn, images)
    rules = _rules(None)
    if tap is not None:
        rules = _rules(tap, compiled=False, in_loops=rules)
    return lambda x: interpreter.evaluate(closed, [(x, None)], rules)[0][0]


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
        seen.append((eqn.primitive.name, tracing.line(eqn), float(share)))

    unmasked(logits_fn, images, tap)(images)
    return sorted(seen, key=lambda row: -row[2])


def _rules(tap: Tap | None, **settings: Any) -> Rules:
    def equation(eqn: Any, path: interpreter.Path, inputs: list[Value]) -> list[Value] | None:
        name = eqn.primitive.name
        if name == "stop_gradient":
            return inputs
        if name in flow.CUSTOM and not tracing.is_library_rule(eqn):
            return interpreter.evaluate(tracing.body(eqn), inputs, rules, path)
        if tap is not None and name in SATURATES:
            arrays = [array for array, _ in inputs]
            tap(eqn, _saturated(eqn, arrays))
        return None

    rules = Rules(equation, **settings)
    return rules


def _saturated(eqn: Any, inputs: list[Any]) -> Array:
    """The share of elements where the derivative in the largest operand is exactly zero."""
    which = max(range(len(inputs)), key=lambda i: jnp.size(inputs[i]))

    def f(x: Array) -> Array:
        return eqn.primitive.bind(*inputs[:which], x, *inputs[which + 1 :], **eqn.params)

    derivative = jax.jvp(f, inputs[which : which + 1], [jnp.ones_like(inputs[which])])[1]
    return jnp.mean(derivative == 0)
