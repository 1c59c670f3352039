"""Runs a traced program one operation at a time: the plain meaning of a program, to hold a compiled one against.

NumPy computes what NumPy has; it shares no code with XLA and needs no compilation, so that a deep model takes a second.
Every other operation is handed to XLA alone, fused with nothing. Loops are run by Python, calls are entered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
    "remat",
}
ACCUMULATE = np.float32  # what sums and products of lower precision are formed in


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Traces a function, and evaluates it operation by operation.

    Args:
      function: of pytrees of arrays.
      *arguments: pytrees of arrays; NumPy or JAX.

    Returns:
      What the function returns, with NumPy arrays for leaves.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return jax.tree.unflatten(jax.tree.structure(shape), evaluate(closed, *arguments))


def evaluate(closed: Any, *arguments: Any) -> list[Any]:
    """Evaluates a program that was traced with such arguments; returns its results in their order."""
    with np.errstate(all="ignore"):
        return _evaluate(closed, [_numpy(leaf) for leaf in jax.tree.leaves(arguments)])


def _numpy(value: Any) -> Any:
    """An array as NumPy has it; keys, which NumPy has not, as they are."""
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value if is_key else np.asarray(value)


def _evaluate(closed: Any, arguments: list[Any]) -> list[Any]:
    jaxpr, constants = (closed.jaxpr, closed.consts) if hasattr(closed, "jaxpr") else (closed, ())
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_numpy, constants)))
    known.update(zip(jaxpr.invars, arguments))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else known[atom]

    for operation in jaxpr.eqns:
        known.update(zip(operation.outvars, _apply(operation, [read(atom) for atom in operation.invars])))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(operation: Any, inputs: list[Any]) -> list[Any]:
    name, params = operation.primitive.name, operation.params
    if name in CALLS:
        return _evaluate(params["call_jaxpr"] if "call_jaxpr" in params else params["jaxpr"], inputs)
    if name in LOOPS:
        return LOOPS[name](params, inputs)
    if name in OPERATIONS and len(operation.outvars) == 1 and all(isinstance(x, np.ndarray) for x in inputs):
        aval = operation.outvars[0].aval
        found = OPERATIONS[name](aval, params, *inputs)
        if found is not None:
            return [np.asarray(found).astype(aval.dtype, copy=False).reshape(aval.shape)]
    return _by_xla(operation, inputs)


def _by_xla(operation: Any, inputs: list[Any]) -> list[Any]:
    bind = operation.primitive.get_bind_params(operation.params)
    functions, bind = bind if isinstance(bind, tuple) else ((), bind)  # a pair in some JAX releases
    found = operation.primitive.bind(*functions, *map(jnp.asarray, inputs), **bind)
    return [_numpy(value) for value in (found if operation.primitive.multiple_results else [found])]


# --------------------------------------------------------------------------------------------------------------- loops


def _scan(params: Any, inputs: list[Any]) -> list[Any]:
    first, carries, length = params["num_consts"], params["num_carry"], params["length"]
    constants, carry, columns = inputs[:first], inputs[first : first + carries], inputs[first + carries :]
    rows = []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        found = _evaluate(params["jaxpr"], [*constants, *carry, *(column[step] for column in columns)])
        carry = found[:carries]
        rows.append([jnp.asarray(value) if not isinstance(value, np.ndarray) else value for value in found[carries:]])
    if params["reverse"]:
        rows.reverse()
    avals = params["jaxpr"].out_avals[carries:]
    empty = [np.zeros((0, *aval.shape), aval.dtype) for aval in avals] if not rows else []
    stacked = [(np.stack if isinstance(column[0], np.ndarray) else jnp.stack)(column) for column in zip(*rows)]
    return [*carry, *(stacked or empty)]


def _while(params: Any, inputs: list[Any]) -> list[Any]:
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    carry = inputs[second:]
    while bool(np.all(_evaluate(params["cond_jaxpr"], [*inputs[:first], *carry])[0])):
        carry = _evaluate(params["body_jaxpr"], [*inputs[first:second], *carry])
    return carry


def _cond(params: Any, inputs: list[Any]) -> list[Any]:
    branches = params["branches"]
    return _evaluate(branches[int(np.clip(inputs[0], 0, len(branches) - 1))], inputs[1:])


LOOPS = {"scan": _scan, "while": _while, "cond": _cond}

# --------------------------------------------------------------------------------------------------------- operations
# (type of the result, parameters, operands) -> the result, or None where XLA is to be asked.


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of floats and booleans; whole numbers wrap and divide as XLA has it."""

    def apply(aval: Any, params: Any, *operands: np.ndarray) -> Any:
        del aval, params
        plain = all(x.dtype == bool or jnp.issubdtype(x.dtype, jnp.floating) for x in operands)
        return function(*operands) if plain else None

    return apply


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(aval: Any, params: Any, x: np.ndarray) -> Any:
        del aval
        if not jnp.issubdtype(x.dtype, jnp.floating) or 0 in x.shape:
            return None
        return function(x.astype(np.promote_types(x.dtype, ACCUMULATE)), axis=tuple(params["axes"]))

    return apply


def _broadcast(aval: Any, params: Any, x: np.ndarray, *sizes: Any) -> Any:
    if sizes:
        return None
    shape = np.ones(len(aval.shape), int)
    shape[list(params["broadcast_dimensions"])] = x.shape
    return np.broadcast_to(x.reshape(shape), aval.shape)


def _reshape(aval: Any, params: Any, x: np.ndarray, *sizes: Any) -> Any:
    return None if sizes or params.get("dimensions") is not None else x.reshape(aval.shape)


def _slice(aval: Any, params: Any, x: np.ndarray) -> Any:
    del aval
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _convert(aval: Any, params: Any, x: np.ndarray) -> Any:
    """Whole numbers are made of booleans only: what becomes of fractions and of what does not fit is XLA's to say."""
    del params
    return x.astype(aval.dtype) if jnp.issubdtype(aval.dtype, jnp.floating) or x.dtype == bool else None


def _select(aval: Any, params: Any, which: np.ndarray, *cases: np.ndarray) -> Any:
    del aval, params
    return np.where(which, cases[1], cases[0]) if which.dtype == bool and len(cases) == 2 else None


def _power(aval: Any, params: Any, x: np.ndarray) -> Any:
    return np.power(x, aval.dtype.type(params["y"])) if jnp.issubdtype(x.dtype, jnp.floating) else None


def _product(aval: Any, params: Any, a: np.ndarray, b: np.ndarray) -> Any:
    """[batch, kept of a, kept of b], summed over the contracted axes."""
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return None
    (summed_a, summed_b), (batch_a, batch_b) = params["dimension_numbers"]

    def arranged(x: np.ndarray, batch: Any, summed: Any) -> np.ndarray:
        kept = [axis for axis in range(x.ndim) if axis not in (*batch, *summed)]
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (batch, kept, summed)]
        wide = x.astype(np.promote_types(x.dtype, ACCUMULATE), copy=False)
        return wide.transpose(*batch, *kept, *summed).reshape(sizes)

    return np.matmul(arranged(a, batch_a, summed_a), arranged(b, batch_b, summed_b).transpose(0, 2, 1))


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: _elementwise(getattr(np, name)) for name in ("abs", "exp", "log", "log1p", "expm1", "tanh", "sin", "cos")},
    **{name: _elementwise(getattr(np, name)) for name in ("sqrt", "square", "floor", "ceil", "sign")},
    "neg": _elementwise(np.negative),
    "rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
    "logistic": _elementwise(lambda x: 1 / (1 + np.exp(-x))),
    "is_finite": _elementwise(np.isfinite),
    "add": _elementwise(np.add),
    "add_any": _elementwise(np.add),
    "sub": _elementwise(np.subtract),
    "mul": _elementwise(np.multiply),
    "div": _elementwise(np.divide),
    "max": _elementwise(np.maximum),
    "min": _elementwise(np.minimum),
    "eq": _elementwise(np.equal),
    "ne": _elementwise(np.not_equal),
    "lt": _elementwise(np.less),
    "le": _elementwise(np.less_equal),
    "gt": _elementwise(np.greater),
    "ge": _elementwise(np.greater_equal),
    "reduce_sum": _reduction(np.sum),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": lambda aval, params, x: x.reshape(aval.shape),
    "transpose": lambda aval, params, x: x.transpose(params["permutation"]),
    "concatenate": lambda aval, params, *parts: np.concatenate(parts, axis=params["dimension"]),
    "rev": lambda aval, params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "convert_element_type": _convert,
    "select_n": _select,
    "integer_pow": _power,
    "dot_general": _product,
}
