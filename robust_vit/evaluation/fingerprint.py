"""What exactly was evaluated: hashes of weights, data and configuration, and the versions of the packages.

A ledger carries these four, so that a run is resumed only on what it was started on, and a figure can be traced to
its weights.
"""

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from robust_vit.typing import LogitsFn

PACKAGES = ("robust-vit", "jax", "jaxlib", "flax", "numpy")


def weights(logits_fn: LogitsFn) -> str:
    """Hashes the arrays of a logits function, with their names, shapes and types, and the description of its module.

    Returns:
      A hexadecimal SHA-256, or "closure" when the function carries no arrays that could be hashed (its weights are
      hidden in a closure: then only the clean predictions can tell two models apart).
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(logits_fn)
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    ]
    if not leaves:
        return "closure"
    digest = hashlib.sha256(_module(logits_fn).encode())
    for path, leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def identify(logits_fn: LogitsFn, *arguments: Any) -> str:
    """The hash of a classifier's weights, also of those that a plain function holds as constants.

    Args:
      logits_fn: the classifier.
      *arguments: shapes to trace it with (`jax.ShapeDtypeStruct`), if it carries no arrays.
    """
    hashed = weights(logits_fn)
    if hashed != "closure":
        return hashed
    traced = jax.make_jaxpr(lambda *inputs: logits_fn(*inputs))(*arguments)
    program = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))  # addresses differ from process to process
    return weights([*traced.consts, np.frombuffer(program.encode(), np.uint8)])


def _module(logits_fn: LogitsFn) -> str:
    """The module a Partial is bound to, without memory addresses, which differ from process to process."""
    bound = logits_fn
    while isinstance(bound, functools.partial):
        bound = bound.func
    owner = getattr(bound, "__self__", None)
    text = getattr(bound, "__qualname__", type(bound).__name__) if owner is None else repr(owner)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def data(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> str:
    """Hashes examples as a set: the same whatever their order, as results are.

    Args:
      images: [N,H,W,C], any type.
      labels: [N] integers.
      indices: [N] integers, the names of the examples.
    """
    digests = []
    for image, label, index in zip(images, labels, indices):
        head = f"{int(index)} {int(label)} {image.shape} {image.dtype}".encode()
        digests.append(hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def mapping(values: Mapping[str, Any]) -> str:
    """Hashes a JSON-like mapping, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def packages() -> dict[str, str]:
    """The versions that may change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
            versions[name] = "source"
    return versions
