"""Evaluates a traced program again, equation by equation, with rules of one's own for some of its operations.

Loops stay loops, branches branches, inner `jit`s compiled: only what holds an operation with a rule is opened. A value
travels with a *shadow*, or None: a float of the same shape that carries the derivative of an integer or a mask, which
JAX gives none (`shadows`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from robust_vit.program import tracing
from robust_vit.typing import Array

Value = tuple[Any, Any]  # an array, and its shadow or None
Path = tuple[int, ...]  # identities of the equations around, outermost first, and of the equation itself


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is evaluated otherwise.

    Attributes:
      equation: (eqn, path, inputs) -> outputs, or None to take the operation as it is.
      opens: (eqn, path, inputs) -> whether its body is evaluated by these rules too.
      settle: gives every value that loops carry or branches return one form: with a shadow or without.
      compiled: keep inner `jit`s compiled; False evaluates their bodies in line, where an equation's outputs are to be
        looked at.
      in_loops: the rules for bodies of loops and branches, where they differ.
    """

    equation: Callable[[Any, Path, list[Value]], list[Value] | None]
    opens: Callable[[Any, Path, list[Value]], bool] = lambda eqn, path, inputs: True
    settle: Callable[[Value], Value] = lambda value: value
    compiled: bool = True
    in_loops: "Rules | None" = None


def evaluate(closed: Any, inputs: Sequence[Value], rules: Rules, path: Path = ()) -> list[Value]:
    """Evaluates a (closed) jaxpr on values by rules."""
    jaxpr, constants = (closed.jaxpr, closed.consts) if hasattr(closed, "jaxpr") else (closed, ())
    env: dict[Any, Value] = {var: (value, None) for var, value in zip(jaxpr.constvars, constants, strict=True)}
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return (atom.val, None) if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _apply(eqn, [read(atom) for atom in eqn.invars], rules, path), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Any, arrays: Sequence[Array]) -> list[Array]:
    """The operation as it is."""
    parameters = eqn.primitive.get_bind_params(eqn.params)
    functions, parameters = parameters if isinstance(parameters, tuple) else ((), parameters)  # a pair in some releases
    outputs = eqn.primitive.bind(*functions, *arrays, **parameters)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _apply(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    here = (*path, id(eqn))
    outputs = rules.equation(eqn, here, inputs)
    if outputs is not None:
        return outputs
    enter = ENTER.get(eqn.primitive.name)
    if enter is not None and rules.opens(eqn, here, inputs):
        return enter(eqn, inputs, rules, here)
    return [(output, None) for output in bind(eqn, [array for array, _ in inputs])]


def _jit(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    run = lambda values: evaluate(eqn.params["jaxpr"], values, rules, path)  # noqa: E731
    return jax.jit(run)(inputs) if rules.compiled else run(inputs)


def _remat(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    run = lambda values: evaluate(eqn.params["jaxpr"], values, rules, path)  # noqa: E731
    if not rules.compiled:
        return run(inputs)
    return jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])(inputs)


def _call(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    return evaluate(tracing.body(eqn), inputs, rules, path)


def _scan(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    rules, first = rules.in_loops or rules, eqn.params["num_consts"]
    last = first + eqn.params["num_carry"]

    def run(constants: list[Value], carry: list[Value], xs: list[Value]) -> list[Value]:
        def step(carry: list[Value], x: list[Value]) -> tuple[list[Value], list[Value]]:
            outputs = evaluate(eqn.params["jaxpr"], [*constants, *carry, *x], rules, path)
            outputs = [rules.settle(output) for output in outputs]
            return outputs[: last - first], outputs[last - first :]

        length, reverse, unroll = (eqn.params[name] for name in ("length", "reverse", "unroll"))
        carry, stacked = jax.lax.scan(step, carry, xs, length=length, reverse=reverse, unroll=unroll)
        return [*carry, *stacked]

    settled = [rules.settle(value) for value in inputs[first:last]]
    return jax.jit(run)(inputs[:first], settled, inputs[last:])  # jit: eagerly, constants stay arguments of the loop


def _cond(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    rules, platforms = rules.in_loops or rules, eqn.params.get("branches_platforms")

    def branch(body: Any) -> Callable[[list[Value]], list[Value]]:
        return lambda values: [rules.settle(output) for output in evaluate(body, values, rules, path)]

    branches = [branch(body) for body in eqn.params["branches"]]
    if platforms is None:
        return jax.jit(lambda index, values: jax.lax.switch(index, branches, values))(inputs[0][0], inputs[1:])
    named = {name: run for names, run in zip(platforms, branches) if names is not None for name in names}
    default = next((run for names, run in zip(platforms, branches) if names is None), None)
    return jax.lax.platform_dependent(inputs[1:], default=default, **named)


def _shard_map(eqn: Any, inputs: list[Value], rules: Rules, path: Path) -> list[Value]:
    params = eqn.params
    axes = params.get("newly_manual_axes", params.get("manual_axes"))

    def run(*arrays: Array) -> list[Array]:
        values = evaluate(params["jaxpr"], [(array, None) for array in arrays], rules, path)
        return [array for array, _ in values]

    mapped = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        **({} if axes is None else {"axis_names": set(axes)}),
    )
    return [(array, None) for array in mapped(*(array for array, _ in inputs))]


# How bodies are entered. Custom derivatives are not among them: their rule is kept, or a rule of one's own opens them.
ENTER: dict[str, Callable[[Any, list[Value], Rules, Path], list[Value]]] = {
    "jit": _jit,
    "pjit": _jit,
    "scan": _scan,
    "cond": _cond,
    "shard_map": _shard_map,
    **dict.fromkeys(("remat2", "remat", "checkpoint"), _remat),
    **dict.fromkeys(("closed_call", "core_call"), _call),
}
