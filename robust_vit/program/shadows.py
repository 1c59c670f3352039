"""Derivatives for what JAX gives none: integers, masks and indices carry a float of the same shape, their shadow.

A quantised image (float -> uint8 -> float), a thermometer code (sum of x > c) or a hard decision (one-hot of an argmax)
passes through integers or booleans, whose tangents do not exist. Their shadow follows them through structure and
arithmetic, and hands its derivative on where they become floats again. Values are never changed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit.program.interpreter import Value, bind
from robust_vit.typing import Array

STRUCTURE = {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "rev", "slice"),
    *("pvary", "pcast", "sharding_constraint"),
}
ARITHMETIC = {
    *("add", "sub", "mul", "div", "neg", "abs", "max", "min", "clamp", "integer_pow", "concatenate", "pad"),
    *("reduce_sum", "reduce_max", "reduce_min", "cumsum"),
}
INDEXED = {"dynamic_slice", "gather"}  # operands after the first say where
PASSED = {"rem", "xor", "and", "or"}  # of integers: the derivative of the first operand
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}


@jax.custom_jvp
def substitute(value: Array, soft: Array) -> Array:
    """`value`, bit for bit, with the derivative of `soft` (of the same shape and type)."""
    del soft
    return value


@substitute.defjvp
def _substitute_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """The shadow of an index that was chosen by scores: for each possible index its softmax weight, [..., K]."""

    weights: Array


def step(x: Array) -> Array:
    """(1 + x/(1 + |x|))/2, in place of a jump at 0: its derivative fades with the distance and is never zero."""
    return 0.5 * (1.0 + x / (1.0 + jnp.abs(x)))


def number(value: Value) -> Array:
    """The float that follows a value: its shadow, or the value itself."""
    array, shadow = value
    if isinstance(shadow, Scores):
        return shadow.weights @ jnp.arange(shadow.weights.shape[-1], dtype=jnp.float32)
    return shadow if shadow is not None else jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def is_discrete(array: Any) -> bool:
    """True for integers and booleans."""
    dtype = jnp.result_type(array)
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def settle(value: Value) -> Value:
    """The form of a value that loops carry: every integer and boolean with a number for shadow."""
    return (value[0], number(value)) if is_discrete(value[0]) else value


def compared(eqn: Any, inputs: list[Value]) -> Array | None:
    """The shadow of a comparison: a smooth step, or for equality a smooth bump, in [0,1]."""
    (a, shadow), other = inputs
    if eqn.primitive.name == "eq" and isinstance(shadow, Scores) and other[1] is None:
        return _chosen(shadow.weights, other[0])
    apart = number(inputs[0]) - number(other)
    name = eqn.primitive.name
    if name in ("eq", "ne"):
        bump = 1.0 / (1.0 + apart**2)
        return bump if name == "eq" else 1.0 - bump
    return step(apart if name in ("gt", "ge") else -apart)


def _chosen(weights: Array, index: Array) -> Array:
    """The weight [...] of the index [...] asked for, of weights [..., K]."""
    shape = jnp.broadcast_shapes(weights.shape[:-1], jnp.shape(index))
    weights = jnp.broadcast_to(weights, (*shape, weights.shape[-1]))
    index = jnp.broadcast_to(index, shape)[..., None].astype(jnp.int32)
    return jnp.take_along_axis(weights, index, axis=-1, mode="fill", fill_value=0.0)[..., 0]


def follow(eqn: Any, inputs: list[Value], blends: bool) -> list[Value]:
    """Applies an operation with shadows among its operands.

    Args:
      eqn: without a body.
      inputs: values with their shadows.
      blends: of a select_n: none of its cases carries a derivative, so its mask does.
    """
    outputs = bind(eqn, [array for array, _ in inputs])
    if len(outputs) != 1:
        return [(output, None) for output in outputs]
    if is_discrete(outputs[0]):
        return [(outputs[0], _shadow(eqn, inputs))]
    soft = _as_float(eqn, inputs, blends)
    return [(outputs[0] if soft is None else substitute(outputs[0], soft.astype(outputs[0].dtype)), None)]


def _as_float(eqn: Any, inputs: list[Value], blends: bool) -> Array | None:
    """What passes where integers and masks become floats."""
    if eqn.primitive.name == "convert_element_type":
        return number(inputs[0])
    if eqn.primitive.name == "select_n" and blends and len(inputs) == 3:
        mask, off, on = (number(value) for value in inputs)
        return off + mask * (on - off)
    return None


def _shadow(eqn: Any, inputs: list[Value]) -> Array | Scores | None:
    """The shadow of an integer or boolean result; None where none is known."""
    name, first = eqn.primitive.name, inputs[0]
    if name in COMPARISONS:
        return compared(eqn, inputs)
    if name == "convert_element_type":
        return first[1]
    if name in STRUCTURE:
        return _structure(eqn, first[1], [array for array, _ in inputs[1:]])
    if name in INDEXED:
        return bind(eqn, [number(first), *(array for array, _ in inputs[1:])])[0]
    if name == "select_n":
        return bind(eqn, [first[0], *(number(value) for value in inputs[1:])])[0]
    if name in ARITHMETIC:
        return bind(eqn, [number(value) for value in inputs])[0]
    if name in ("and", "or", "not", "xor") and jnp.issubdtype(jnp.result_type(first[0]), jnp.bool_):
        return _logic(name, [number(value) for value in inputs])
    if name in ("shift_left", "shift_right_logical", "shift_right_arithmetic"):
        power = jnp.exp2(number((inputs[1][0], None)))
        return number(first) * power if name == "shift_left" else number(first) / power
    return number(first) if name in PASSED else None


def _structure(eqn: Any, shadow: Array | Scores, rest: list[Array]) -> Array | Scores:
    if isinstance(shadow, Scores):
        one = jax.vmap(lambda weights: bind(eqn, [weights, *rest])[0], in_axes=-1, out_axes=-1)
        return Scores(one(shadow.weights))
    return bind(eqn, [shadow, *rest])[0]


def _logic(name: str, x: list[Array]) -> Array:
    """and, or, xor, not of numbers in [0,1]."""
    if name == "not":
        return 1.0 - x[0]
    both = x[0] * x[1]
    return {"and": both, "or": x[0] + x[1] - both, "xor": x[0] + x[1] - 2.0 * both}[name]
