"""What exactly was evaluated: digests of weights, program and data, and the versions of the packages.

A ledger carries them, so that a run is resumed only on what it was started on, and a figure can be traced to its
weights. The program is that of the forward pass and of its gradient, as traced: models with the same weights that
differ in any field which changes what is computed (mean, heads, dtype, ...) are not the same. Neither are the scanned
and the unrolled form of one model: they round differently, and a resumed evaluation must not mix them.
"""

import hashlib
import importlib.metadata
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.evaluation import canonical
from robust_vit.typing import Array, LogitsFn

PACKAGES = ("robust-vit", "jax", "jaxlib", "flax", "numpy")
CLOSURE = "closure"  # the weights of a function that carries none: they are constants of its program


def weights(tree: Any) -> str:
    """Hashes the arrays of a tree, with their names, shapes and types.

    Returns:
      A hexadecimal SHA-256, or "closure" where there are no arrays.
    """
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if _is_array(leaf)]
    if not leaves:
        return CLOSURE
    digest = hashlib.sha256()
    for path, leaf in leaves:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def program(logits_fn: LogitsFn, *arguments: Any) -> str:
    """Hashes what a classifier computes from its weights and its arguments: the forward pass and its gradient.

    Args:
      logits_fn: the classifier.
      *arguments: what it is called with, images first; shapes (`jax.ShapeDtypeStruct`) will do.

    Returns:
      A hexadecimal SHA-256; "unknown-" and a number that never comes again, where a host callback computes with what
      cannot be read, so that nothing is taken for its continuation.
    """
    leaves, structure = jax.tree.flatten(logits_fn)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]

    def forward(arrays: list[Array], images: Array, *more: Any) -> Any:
        remaining = iter(arrays)
        model = structure.unflatten([next(remaining) if _is_array(leaf) else leaf for leaf in leaves])
        return model(images, *more)

    def gradient(arrays: list[Array], images: Array, *more: Any) -> Any:
        logits, pull_back = jax.vjp(lambda images: forward(arrays, images, *more), images)
        return pull_back(logits)

    shapes = [jax.eval_shape(lambda leaf=leaf: jnp.asarray(leaf)) for leaf in arrays]
    try:
        found = canonical.program(forward, shapes, *arguments)
        try:
            found += canonical.program(gradient, shapes, *arguments)
        except (TypeError, ValueError, NotImplementedError) as error:
            if isinstance(error, canonical.Opaque):
                raise
            found += "no gradient"  # integer logits, or a host callback
    except canonical.Opaque:
        return f"unknown-{uuid.uuid4().hex}"
    return hashlib.sha256(found.encode()).hexdigest()


def identify(logits_fn: LogitsFn, *arguments: Any) -> str:
    """The hash of a classifier: of its weights, also of those that a plain function holds as constants, and of its
    program; see `program` for the arguments.
    """
    return hashlib.sha256(f"{weights(logits_fn)} {program(logits_fn, *arguments)}".encode()).hexdigest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


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


def packages() -> dict[str, str]:
    """The versions that may change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
            versions[name] = "source"
    return versions
