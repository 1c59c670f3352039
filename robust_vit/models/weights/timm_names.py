"""timm's name and layout of every array of a model: the one rule, and its exceptions.

The rule is read off the shapes of the module (`jax.eval_shape`), since modules are named as in timm: `_0` is `.0`,
`kernel` and `scale` are `weight`, running statistics are `running_mean` and `running_var`, other parameters keep their
name; a Dense kernel is the transposed weight, a convolution's HWIO is OIHW.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from robust_vit.models import summary
from robust_vit.models.parts import forms

# Flax's leaf -> PyTorch's, by collection; other leaves keep their name
LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# (pattern, replacement) on the joined Flax path, where a module cannot carry timm's name
EXCEPTIONS: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the variables tree and its place in timm's state dict."""

    path: tuple[str, ...]  # collection, modules, name
    shape: tuple[int, ...]
    dtype: Any

    @property
    def timm_name(self) -> str:
        collection, *modules, name = self.path
        joined = "/".join(modules)
        for pattern, replacement in EXCEPTIONS:
            joined = re.sub(pattern, replacement, joined)
        segments = [re.sub(r"_(?=\d+(_|$))", ".", segment) for segment in joined.split("/") if segment]
        return ".".join([*segments, LEAVES.get((collection, name), name)])

    @property
    def timm_shape(self) -> tuple[int, ...]:
        """The shape in PyTorch's layout."""
        return self.to_torch(np.empty(self.shape, bool)).shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Flax's layout -> PyTorch's."""
        if self.path[-1] != "kernel":
            return array
        return np.ascontiguousarray(array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1))  # HWIO -> OIHW

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's layout -> Flax's; an array that has another number of axes is left as it is."""
        if self.path[-1] != "kernel" or array.ndim != len(self.shape):
            return array
        return np.ascontiguousarray(array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0))


def as_path(name: str) -> str:
    """Our path of a tensor that no model of ours need have: `blocks.1.attn.weight` -> `blocks_1/attn/weight`."""
    return re.sub(r"\.(?=\d+(\.|$))", "_", name).replace(".", "/")


def leaves(module: nn.Module) -> dict[str, Leaf]:
    """Returns timm's name -> place in the module's unrolled variables tree, for every array of it."""
    return dict(_leaves(module))


@functools.lru_cache(maxsize=16)  # each traces the model
def _leaves(module: nn.Module) -> Mapping[str, Leaf]:
    shapes = summary.shapes(forms.unrolled(module))
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        entry = Leaf(tuple(key.key for key in keys), leaf.shape, np.dtype(leaf.dtype))
        if entry.timm_name in found:
            raise ValueError(f"{entry.path} and {found[entry.timm_name].path} have one name, {entry.timm_name}")
        found[entry.timm_name] = entry
    return found


# Trees as flat dicts ----------------------------------------------------------------------------------------------


def flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    return {tuple(k.key for k in keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
