"""The canonical form of a traced program: a digest of what it computes, the same in every process and on every machine.

Two programs have one digest if they apply the same operations with the same parameters to the same constants in the
same order. Names of functions, files, lines, addresses, devices and shardings are no part of it. A function that an
operation carries along is a rule of differentiation and shows in the traced gradient; a host callback computes with
its function, whose code and data are therefore read.
"""

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import jax
import numpy as np
from jax.extend import core, linear_util

# Parameters that say where and how a program runs, or how it is called, and not what it computes.
PLACE = frozenset(
    "name ctx_mesh mesh sharding out_sharding in_shardings out_shardings in_layouts out_layouts donated_invars"
    " keep_unused inline debug debug_info transforms".split()
)


class Opaque(ValueError):
    """Something computes with data that cannot be read."""


def program(function: Callable[..., Any], *arguments: Any) -> str:
    """Traces a function and returns the digest of its program.

    Args:
      function: a pure function of arrays.
      *arguments: pytrees of arrays, or of their shapes (`jax.ShapeDtypeStruct`).

    Raises:
      Opaque: if a host callback holds data that cannot be read.
    """
    return _digest(_closed(jax.make_jaxpr(function)(*arguments)))


def value(thing: Any) -> str:
    """The digest of plain values, arrays, and functions with what they hold."""
    return _digest(_value(thing, frozenset()))


def _digest(parts: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _closed(closed: Any) -> Iterator[str]:
    yield from _program(closed.jaxpr)
    for constant in closed.consts:
        yield from _array(constant)


def _program(jaxpr: Any) -> Iterator[str]:
    """The operations in order; variables are named by the order in which they appear."""
    names: dict[Any, int] = {}

    def new(variables: Any) -> Iterator[str]:
        for variable in variables:
            yield f"{names.setdefault(variable, len(names))}:{variable.aval.str_short()}"

    yield "program"
    yield from new([*jaxpr.constvars, *jaxpr.invars])
    for operation in jaxpr.eqns:
        yield operation.primitive.name
        for atom in operation.invars:
            yield from _atom(atom, names)
        yield from _parameters(operation)
        yield from new(operation.outvars)
    for atom in jaxpr.outvars:
        yield from _atom(atom, names)


def _atom(atom: Any, names: Mapping[Any, int]) -> Iterator[str]:
    if isinstance(atom, core.Literal):
        yield atom.aval.str_short()
        yield from _array(atom.val)
    else:
        yield str(names[atom])


def _parameters(operation: Any) -> Iterator[str]:
    called = "callback" in operation.primitive.name
    for name, parameter in sorted(operation.params.items()):
        if name not in PLACE and (called or not _is_rule(parameter)):
            yield name
            yield from _value(parameter, frozenset())


def _is_rule(parameter: Any) -> bool:
    """Whether a parameter is a function that only differentiation calls."""
    return isinstance(parameter, linear_util.WrappedFun) or (
        callable(parameter) and not isinstance(parameter, type | core.Jaxpr | core.ClosedJaxpr)
    )


def _array(array: Any) -> Iterator[str]:
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        yield str(jax.random.key_impl(array))
        array = jax.random.key_data(array)
    array = np.asarray(array)
    yield f"{array.shape} {array.dtype} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def _value(thing: Any, seen: frozenset[int]) -> Iterator[str]:
    """Walks a parameter; `seen` are the objects around it, for those that hold themselves."""
    if id(thing) in seen:
        yield "itself"
        return
    inside = seen | {id(thing)}
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
        yield f"{type(thing).__name__} {thing!r}"
    elif isinstance(thing, enum.Enum):
        yield f"{type(thing).__qualname__}.{thing.name}"
    elif isinstance(thing, core.ClosedJaxpr):
        yield from _closed(thing)
    elif isinstance(thing, core.Jaxpr):
        yield from _program(thing)
    elif isinstance(thing, np.dtype | type):
        yield thing.name if isinstance(thing, np.dtype) else f"{thing.__module__}.{thing.__qualname__}"
    elif isinstance(thing, jax.core.AbstractValue):
        yield thing.str_short()
    elif hasattr(thing, "__array__") and hasattr(thing, "dtype") and hasattr(thing, "shape"):
        yield from _array(thing)
    elif isinstance(thing, Mapping):
        yield f"{len(thing)} entries"
        for key in sorted(thing, key=str):
            yield from _value(key, inside)
            yield from _value(thing[key], inside)
    elif isinstance(thing, Set):
        yield f"{len(thing)} members"
        yield from sorted(_digest(_value(one, inside)) for one in thing)
    elif isinstance(thing, list | tuple):
        yield f"{type(thing).__qualname__} of {len(thing)}"
        for one in thing:
            yield from _value(one, inside)
    elif isinstance(thing, types.ModuleType):
        yield thing.__name__
    elif isinstance(thing, types.BuiltinFunctionType | np.ufunc):
        yield getattr(thing, "__qualname__", thing.__name__)
    elif isinstance(thing, types.FunctionType):
        yield from _function(thing, inside)
    elif isinstance(thing, types.MethodType):
        yield from _value(thing.__func__, inside)
        yield from _value(thing.__self__, inside)
    else:
        yield from _object(thing, inside)


def _function(function: types.FunctionType, seen: frozenset[int]) -> Iterator[str]:
    """Code, defaults, what it closes over, and the globals that it names."""
    yield from _code(function.__code__)
    yield from _value((function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        yield from _value(cell.cell_contents, seen)
    library = function.__module__ and function.__module__.split(".")[0] in ("jax", "numpy", "flax", "torch")
    for name in () if library else sorted(set(function.__code__.co_names) & function.__globals__.keys()):
        yield name
        yield from _value(function.__globals__[name], seen)


def _code(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield " ".join((*code.co_names, *code.co_varnames, *code.co_freevars))
    for constant in code.co_consts:
        yield from _code(constant) if isinstance(constant, types.CodeType) else _value(constant, frozenset())


def _object(thing: Any, seen: frozenset[int]) -> Iterator[str]:
    """The type, and the data: a state dict where there is one (PyTorch), the attributes otherwise.

    Raises:
      Opaque: if the object shows neither.
    """
    yield f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, functools.partial):
        yield from _value((thing.func, thing.args, thing.keywords), seen)
    elif callable(getattr(thing, "state_dict", None)):
        yield str(thing) if " at 0x" not in str(thing) else ""
        for name, tensor in sorted(thing.state_dict().items()):
            yield name
            yield from _value(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor, seen)
    elif dataclasses.is_dataclass(thing):
        yield from _value({field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}, seen)
    elif hasattr(thing, "__dict__"):
        yield from _value(vars(thing), seen)
    elif hasattr(type(thing), "__slots__"):
        yield from _value({name: getattr(thing, name, None) for name in type(thing).__slots__}, seen)
    elif isinstance(thing, jax.tree_util.PyTreeDef):
        yield str(thing) if " at 0x" not in str(thing) else ""
    else:
        raise Opaque(f"a host callback holds a {type(thing).__qualname__}, whose content cannot be read")
