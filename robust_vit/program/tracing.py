"""Traces a classifier, and says of each part of the trace who wrote it and where."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from robust_vit.typing import Array

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex")
OWN = pathlib.Path(__file__).parents[1] / "models" / "parts"  # custom derivatives that tests compare with the true ones


def trace(logits_fn: Callable[..., Array], images: Array | jax.ShapeDtypeStruct) -> Any:
    """Returns the closed jaxpr of `logits_fn`, freshly traced: a kept trace would hold the lines of another caller."""
    return jax.make_jaxpr(lambda x: logits_fn(x))(jax.ShapeDtypeStruct(images.shape, images.dtype))


def trace_arguments(logits_fn: Callable[..., Any], images: Array, *more: Array) -> tuple[Any, list[Array], Any]:
    """Traces a pytree callable with its arrays as arguments, not as constants.

    Returns:
      The closed jaxpr; the arrays that it takes, the images first; and the structure of what it returns.
    """
    leaves, structure = jax.tree.flatten((logits_fn, more))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray, np.generic, float))]
    arrays = [images, *(leaves[i] for i in places)]

    def flat(images: Array, *arguments: Array) -> Any:
        given = dict(zip(places, arguments))
        model, rest = jax.tree.unflatten(structure, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model(images, *rest)

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*arrays)
    return closed, arrays, jax.tree.structure(shape)


def body(eqn: Any) -> Any:
    """The one body that a call (jit, remat, a custom derivative, shard_map) evaluates with its operands, or None."""
    bodies = [eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if hasattr(eqn.params.get(key), "eqns")]
    if len(bodies) != 1:
        return None
    variables = bodies[0].in_avals if hasattr(bodies[0], "in_avals") else bodies[0].invars
    return bodies[0] if len(variables) == len(eqn.invars) else None


def source(jaxpr: Any) -> str:
    """Returns "function at file:line" of the function that was traced into `jaxpr`, or ""."""
    return str(getattr(getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None), "func_src_info", "") or "")


def is_library(jaxpr: Any) -> bool:
    """True for a function written in JAX, Flax or Optax."""
    return _place(source(jaxpr)).startswith(LIBRARY_ROOTS)


def is_library_rule(eqn: Any) -> bool:
    """True for a custom derivative of a library (`jax.nn.relu`): the function and its rule are both written there."""
    return all(place.startswith(LIBRARY_ROOTS) for place in _rule(eqn))


def is_trusted_rule(eqn: Any) -> bool:
    """True for a custom derivative of a library or of this package's layers: it is no finding."""
    return all(place.startswith(_TRUSTED_ROOTS) for place in _rule(eqn))


def _rule(eqn: Any) -> list[str]:
    """The places of a custom derivative's function and, where JAX tells it, of the rule."""
    rules = (eqn.params.get(name) for name in ("bwd", "jvp"))
    told = [str(getattr(getattr(rule, "debug_info", None), "func_src_info", "") or "") for rule in rules]
    return [_place(source(body(eqn))), *(_place(text) for text in told if " at " in text)]


def _place(told: str) -> str:
    return told.partition(" at ")[2]


def line(eqn: Any) -> str:
    """Returns "file.py:line in function", the innermost line of an equation's history that is no library's, or ""."""
    for frame in getattr(getattr(eqn.source_info, "traceback", None), "frames", ()):
        if frame.file_name == __file__:
            break
        if not frame.file_name.startswith((*LIBRARY_ROOTS, "<")):
            return f"{pathlib.Path(frame.file_name).name}:{frame.line_num} in {frame.function_name}"
    return ""


def _roots(packages: tuple[str, ...]) -> tuple[str, ...]:
    specs = (importlib.util.find_spec(name) for name in packages)
    return tuple(f"{place}/" for spec in specs if spec for place in spec.submodule_search_locations or ())


LIBRARY_ROOTS = _roots(LIBRARIES)
_TRUSTED_ROOTS = (*LIBRARY_ROOTS, f"{OWN}/")
