"""Models that one file of weights fits equally: the same names and shapes, another function.

XCiT's patch size is the stride of its stem and ResNet's activation has no weights, so a strict loader cannot tell
`xcit_small_12_p16_224` from `xcit_small_12_p8_224`, nor `resnet50` from `resnet50_gelu`. All it can do is say so.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from robust_vit import models
from robust_vit.models.weights import timm_names

# Fields in which models may differ and yet be the same function of the same weights, or of weights for another size
SAME = {"image_size", "num_classes", "mean", "std", "drop_path", "layer_scale", "initializer", "attention"}
SAME |= {"remat", "scan", "dtype", "param_dtype", "parent", "name"}


def names(name: str, overrides: Mapping[str, Any]) -> list[str]:
    """Returns the other names whose models, with these overrides, would take the same weights and compute otherwise.

    Args:
      name: of the model that was loaded.
      overrides: fields that were given for it.
    """
    module = models.build(name, **overrides)
    found = []
    for other, factory in models.MODELS.items():
        if other == name or factory.func is not type(module):
            continue
        try:
            candidate = models.build(other, **{"num_classes": module.num_classes, **overrides})
        except ValueError:
            continue
        differ = {key for key, value in _fields(module).items() if _fields(candidate)[key] != value} - SAME
        if differ and _sizes(candidate) == _sizes(module):
            found += [other] if _shapes(candidate) == _shapes(module) else []
    return found


def _fields(module: nn.Module) -> dict[str, Any]:
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}


def _sizes(module: nn.Module) -> list[Any]:
    """Widths and depths: where these differ, so do the shapes, and nothing need be traced."""
    return [value for key, value in _fields(module).items() if key.startswith(("width", "depth"))]


@functools.lru_cache(maxsize=64)
def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of one block, or one a stage: the others are equal to it, or follow from the widths, which are."""
    if hasattr(module, "depth"):
        module = module.clone(depth=1)
    elif hasattr(module, "depths"):
        module = module.clone(depths=(1,) * len(module.depths))
    return {name: leaf.shape for name, leaf in timm_names.leaves(module).items()}
