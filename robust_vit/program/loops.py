"""Loops of unknown length: a classifier that may never return, made to return."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from robust_vit.program import interpreter, tracing
from robust_vit.program.interpreter import Path, Rules, Value
from robust_vit.typing import Array, LogitsFn


def has_while(logits_fn: LogitsFn, images: Array | jax.ShapeDtypeStruct) -> bool:
    """True if the program holds a `while_loop` anywhere (a `scan`, and a `fori_loop` of known length, is none)."""
    return any(eqn.primitive.name == "while" for eqn in _equations(tracing.trace(logits_fn, images).jaxpr))


def bounded(logits_fn: LogitsFn, rounds: int, poison: bool = False) -> LogitsFn:
    """Returns the classifier with every `while_loop` ended after so many rounds, at what it then holds.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K], a pytree callable.
      rounds: of each loop.
      poison: a loop that would have gone on gives NaN instead.
    """
    return jax.tree_util.Partial(_Bounded(rounds, poison), logits_fn)


@dataclasses.dataclass(frozen=True)
class _Bounded:
    rounds: int
    poison: bool

    def __call__(self, logits_fn: LogitsFn, images: Array) -> Array:
        closed, arrays, structure = tracing.trace_arguments(logits_fn, images)
        outputs = interpreter.evaluate(closed, [(array, None) for array in arrays], Rules(self._equation))
        return jax.tree.unflatten(structure, [array for array, _ in outputs])

    def _equation(self, eqn: Any, path: Path, inputs: list[Value]) -> list[Value] | None:
        if eqn.primitive.name != "while":
            return None
        first, arrays = eqn.params["cond_nconsts"], [array for array, _ in inputs]
        last = first + eqn.params["body_nconsts"]

        def evaluate(name: str, constants: list[Array], carry: list[Array]) -> list[Array]:
            values = [(array, None) for array in (*constants, *carry)]
            return [array for array, _ in interpreter.evaluate(eqn.params[name], values, Rules(self._equation), path)]

        def goes_on(carry: list[Array]) -> Array:
            return evaluate("cond_jaxpr", arrays[:first], carry)[0]

        _, end = jax.lax.while_loop(
            lambda state: (state[0] < self.rounds) & goes_on(state[1]),
            lambda state: (state[0] + 1, evaluate("body_jaxpr", arrays[first:last], state[1])),
            (0, [jnp.asarray(array) for array in arrays[last:]]),
        )
        if self.poison:
            lost = goes_on(end)
            end = [jnp.where(lost, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in end]
        return [(array, None) for array in end]


def _equations(jaxpr: Any) -> Iterator[Any]:
    yield from jaxpr.eqns
    for body in core.subjaxprs(jaxpr):
        yield from _equations(body)
