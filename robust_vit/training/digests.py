"""What a checkpoint holds, leaf by leaf: tells a damaged one from one of another model, and rot from the right bits.

A record travels with every checkpoint: {"leaves": {name: {"shape", "dtype", "sha256"}}, "position": digest of the
data's position, "metrics": of the validation, "self": digest of all that}. The last says whether the record itself can
be believed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from robust_vit import parallel

Described = dict[str, dict[str, Any]]  # leaf name -> {"shape": [...], "dtype": "float32"}, with "sha256" in a record


class DamagedError(Exception):
    """What is stored cannot be read, or is not what was written."""


def leaves(tree: Any) -> dict[str, Any]:
    """Names the leaves of a state, the same for its dataclasses and for the nested dicts that are read back."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def describe(tree: Any) -> Described:
    """Names, shapes and types of arrays, of `jax.ShapeDtypeStruct`, or of any other leaf with a shape and a type."""
    described = {name: (list(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in leaves(tree).items()}
    return {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in described.items()}


def record(state: Any, position: Mapping[str, Any], metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """Makes the record of a checkpoint.

    Args:
      state: the arrays; copied to the host, one after the other.
      position: of the data iterator, JSON-like.
      metrics: of the validation split, or None.
    """
    described = describe(state)
    for name, leaf in leaves(state).items():
        described[name]["sha256"] = _digest(leaf)
    content = {"leaves": described, "position": _text(position), "metrics": dict(metrics or {})}
    return content | {"self": _text(content)}


def check(found: Any) -> dict[str, Any]:
    """Returns a record that was read, without its own digest.

    Raises:
      DamagedError: if it is not what `record` made.
    """
    content = {name: value for name, value in found.items() if name != "self"} if isinstance(found, dict) else {}
    if not content or found.get("self") != _text(content):
        raise DamagedError("its record of digests has changed since it was written")
    return content


def verify(content: Mapping[str, Any], state: Any, position: Mapping[str, Any] | None = None) -> None:
    """Compares what was restored with its record, bit for bit.

    Args:
      content: from `check`.
      state: the restored arrays, of a dataclass or of nested dicts.
      position: the restored position of the data iterator; None where it was not read.

    Raises:
      DamagedError: naming the first leaf that is not what was written.
    """
    restored = leaves(state)
    if (odd := difference(content["leaves"], describe(state))) is not None:
        raise DamagedError(odd)
    for name, known in content["leaves"].items():
        if _digest(restored[name]) != known["sha256"]:
            raise DamagedError(f"{name} is not what was written (its digest differs)")
    if position is not None and _text(position) != content["position"]:
        raise DamagedError("the position of the data is not what was written (its digest differs)")


def difference(there: Described, here: Described) -> str | None:
    """Says which leaf differs in name, shape or type; None if none does."""
    for name in [*here, *there]:
        old, new = (_brief(side.get(name)) for side in (there, here))
        if old != new:
            return f"{name} is {old} there and {new} here"
    return None


def nonfinite(state: Any) -> str | None:
    """Returns the name of the first leaf that holds a NaN or an infinity; None if all are finite."""
    for name, leaf in leaves(state).items():
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(parallel.fetch(leaf)).all():
            return name
    return None


def _brief(leaf: Mapping[str, Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf['dtype']}{list(leaf['shape'])}"


def _digest(leaf: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(parallel.fetch(leaf)).tobytes()).hexdigest()


def _text(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
