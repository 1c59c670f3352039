"""Calls of NumPy functions from compiled programs, which do not lock up as `jax.pure_callback` can.

`jax.pure_callback` hands its function JAX arrays. On CPU those of more than 100 KiB are still being copied by the pool
of threads that runs the program, while the function holds one of these threads and waits for them: with as many calls
at once as there are cores, each waits for ever (jax-ml/jax issues 24255 and 25861). The compiled program itself has
the arrays as NumPy arrays; this primitive hands on those.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.callback import _callback_op_sharding  # the one private name: which device of several makes the call
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robust_vit.typing import Array

Function = Callable[..., np.ndarray]


def host_call(function: Function, result: jax.ShapeDtypeStruct, *arrays: Array) -> Array:
    """Calls a function of NumPy arrays from inside or outside a compiled program; there is no gradient through it.

    Args:
      function: pure, and must not use JAX; under `jax.vmap` its arguments and its result have the mapped axes in front.
      result: shape and dtype of what it returns.
      *arrays: its arguments.
    """
    arrays = map(jnp.asarray, arrays)
    return _primitive.bind(*arrays, function=function, shape=tuple(result.shape), dtype=jnp.dtype(result.dtype))


_primitive = Primitive("host_callback")


@_primitive.def_impl
def _eager(*arrays: Array, function: Function, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    return jnp.asarray(_checked(function(*map(np.asarray, arrays)), shape, dtype))


@_primitive.def_abstract_eval
def _abstract(*_: Any, function: Function, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    del function
    return jax.core.ShapedArray(shape, dtype)


def _batched(arrays: Sequence[Array], axes: Sequence[Any], *, function: Function, shape: tuple[int, ...], dtype: Any):
    """One call for all: every argument gets the mapped axis in front."""
    size = next(array.shape[axis] for array, axis in zip(arrays, axes) if axis is not None)
    front = [
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes)
    ]
    return _primitive.bind(*front, function=function, shape=(size, *shape), dtype=dtype), 0


def _lowered(ctx: Any, *operands: Any, function: Function, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    def call(*arrays: np.ndarray) -> tuple[np.ndarray]:
        return (_checked(function(*map(np.asarray, arrays)), shape, dtype),)

    sharding = _callback_op_sharding(ctx.module_context.axis_context, None, ctx.avals_out)
    made = dict(has_side_effect=False, returns_token=False, sharding=sharding)
    return mlir.emit_python_callback(ctx, call, None, list(operands), ctx.avals_in, ctx.avals_out, **made)[0]


def _no_gradient(*_: Any, **__: Any) -> Any:
    raise ValueError("gradient: a function called on the host has none; use attacks that need none, such as square")


batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, _lowered, cacheable=False)
ad.primitive_jvps[_primitive] = _no_gradient


def _checked(found: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What the function returned; a bad shape would be read beyond its end."""
    found = np.asarray(found)
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(f"host function: returned {found.dtype}{list(found.shape)}, must be {dtype}{list(shape)}")
    return found
