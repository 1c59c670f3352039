"""Weights for another head or another image size: what changes shape, and how. Only ever done when asked for."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.models import image_shape
from robust_vit.models.families import swin
from robust_vit.models.parts import forms, layers, positions, windowing
from robust_vit.models.weights import timm_names

RESIZE = ("", "antialias", "plain")


def head_leaves(module: nn.Module, num_classes: int | None = None) -> dict[str, tuple[int, ...]]:
    """Returns timm's name -> Flax shape of the classifier: what changes with the number of classes.

    Args:
      module: any model.
      num_classes: look at the model with so many classes instead; for models without a head.
    """
    module = module if num_classes is None else module.clone(num_classes=num_classes)
    other = timm_names.leaves(module.clone(num_classes=module.num_classes + 1))
    found = timm_names.leaves(module).items()
    return {name: leaf.shape for name, leaf in found if other[name].shape != leaf.shape}


def initial_leaves(module: nn.Module, paths: Sequence[tuple[str, ...]], seed: int) -> dict[tuple[str, ...], np.ndarray]:
    """Initialises a few leaves of the unrolled variables tree; the rest is not computed."""
    module = forms.unrolled(module)
    images = jnp.zeros((1, *image_shape(module)), layers.wide(module.dtype))

    @jax.jit
    def some() -> list[Any]:
        flat = timm_names.flatten(module.init(jax.random.key(seed), images))
        return [flat[path] for path in paths]

    return dict(zip(paths, map(np.asarray, some()), strict=True))


def resize_positions(
    module: nn.Module,
    path: tuple[str, ...],
    array: np.ndarray,
    shape: tuple[int, ...],
    antialias: bool,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resamples learned positions and relative-bias tables to the model's grid.

    Args:
      module: the model that is wanted.
      path: of the leaf in its variables.
      array: the leaf in the file.
      shape: of the leaf in the model.
      antialias: bicubic with antialiasing (as timm) or without (as the Light Recipe).
      grid: (h, w) that `array` is for; by default a square.

    Returns:
      The resampled leaf; `array` itself if it holds no positions, or none for such a grid.
    """
    if path[-1] == "pos_embed" and array.ndim == 3 and array.shape[::2] == shape[::2]:
        prefix = getattr(module, "prefix", 0) if shape[1] != math.prod(module.grid) else 0
        old = grid or _square(array.shape[1] - prefix)
        if old is None or array.shape[1] != prefix + math.prod(old):
            return array
        return positions.resize_learned(array, old, module.grid, prefix, antialias)
    if path[-1] == "relative_position_bias_table" and array.ndim == 2 and array.shape[1] == shape[1]:
        new, prefix = _window(module, path)
        rows = array.shape[0] - (3 if prefix else 0)
        sides = _square(rows) if grid is None else tuple(2 * side - 1 for side in grid)
        if sides is None or math.prod(sides) != rows or not all(side % 2 for side in sides):
            return array
        old = tuple((side + 1) // 2 for side in sides)
        return positions.resize_relative(array, old, new, prefix, antialias)
    return array


def _square(n: int) -> tuple[int, int] | None:
    side = math.isqrt(max(n, 0))
    return (side, side) if side * side == n else None


def _window(module: nn.Module, path: tuple[str, ...]) -> tuple[tuple[int, int], bool]:
    """(h, w) tokens that a relative-bias table of the model is for, and whether it has rows for prefix tokens."""
    if isinstance(module, swin.Swin):
        stage = next(int(key.rpartition("_")[2]) for key in path if key.startswith("layers_"))
        return windowing.window_and_shift(module.grids[stage], module.window_size)[0], False
    return module.grid, module.prefix > 0
