"""Training in stages, coarse to fine and weak to strong: small images under few attack steps first, whole ones last.

A stage is a step of its own, compiled once; the state is the same in all. Weights, moments and averages are always
those of the whole model: a stage on smaller images resizes its learned positions on the way into the forward pass, by a
fixed matrix that gradients flow back through. So there is no seam to cross: any checkpoint is a whole model, and what
is resumed needs to know its step and nothing else.

Reference: Wang et al., Revisiting Adversarial Training at Scale (AdvXL), CVPR 2024, arXiv 2401.04727.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import models
from robust_vit.config import ConfigDict
from robust_vit.errors import check
from robust_vit.models import summary
from robust_vit.models.weights import adapt
from robust_vit.typing import Array, Attack, Variables


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of training.

    Fields:
      until: the step before which it ends.
      size: (H, W) that images are resized to.
      module: the model on such images, with the weights of the whole one.
      attack: the training attack.
      step: `training.step.make`'s.
      said: for people.
    """

    until: int
    size: tuple[int, int]
    module: Any
    attack: Attack
    step: Any
    said: str


@dataclasses.dataclass(frozen=True)
class Resized:
    """A model that sees images of another size than its weights are for, and resizes its positions to it.

    Fields:
      module: the model that the weights are for.
      size: (H, W) of the images.
    """

    module: nn.Module
    size: tuple[int, int]

    def apply(self, variables: Variables, images: Array, **keywords: Any) -> Any:
        """`module.apply` on images [B,H,W,C] of this size."""
        params = resized(self.module, self.size, variables["params"])
        return _small(self.module, self.size).apply({**variables, "params": params}, images, **keywords)

    def clone(self, **fields: Any) -> "Resized":
        """The same with other fields of the model."""
        return Resized(self.module.clone(**fields), self.size)


@functools.lru_cache(maxsize=32)
def _small(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    small = module.clone(image_size=size)
    if hasattr(small, "validate"):
        small.validate()
    return small


def at(module: nn.Module, size: tuple[int, int]) -> Any:
    """The model for images of this size, with the weights of `module`.

    Raises:
      ValueError: if it cannot work on such images, or weights other than positions depend on the size.
    """
    if size == models.image_shape(module)[:2]:
        return module
    _matrices(module, size)
    return Resized(module, size)


def resized(module: nn.Module, size: tuple[int, int], params: Any) -> Any:
    """The parameters of `module` for images of another size: positions resized, all others as they are."""
    matrices = _matrices(module, size)

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        matrix = matrices.get(tuple(key.key for key in path))
        if matrix is None:
            return leaf
        return jnp.einsum("nm,...md->...nd", matrix, leaf, precision=jax.lax.Precision.HIGHEST)

    return jax.tree_util.tree_map_with_path(one, params)


@functools.lru_cache(maxsize=32)
def _matrices(module: nn.Module, size: tuple[int, int]) -> dict[tuple[str, ...], np.ndarray]:
    """{path: [new, old]} of the leaves that depend on the size; bicubic with antialiasing, which is linear."""
    small, found = _small(module, size), {}
    here, there = (_shapes(one) for one in (module, small))
    for path, shape in here.items():
        new = there.get(path)
        if new == shape:
            continue
        position = path[-1] in ("pos_embed", "relative_position_bias_table") and new is not None
        check("image_size", size, position, f"{models.image_shape(module)[:2]}: {'/'.join(path)} has its shape from it")
        old, rows, wanted = shape[-2], new[-2], (1,) if path[-1] == "pos_embed" else ()
        unit = np.eye(old).reshape(*wanted, old, old)
        grid = getattr(module, "grid", None)
        matrix = adapt.resize_positions(small, path, unit, (*wanted, rows, old), antialias=True, grid=grid)
        check("image_size", size, matrix.shape[-2] == rows, f"such that {'/'.join(path)} can be resized to it")
        found[path] = matrix.reshape(rows, old).astype(np.float32)
    return found


def _shapes(module: nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(summary.shapes(module)["params"])
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def resize(images: Array, size: tuple[int, int]) -> Array:
    """Images [B,H,W,C] in [0,1] to [B,*size,C], by means of the pixels that a new one covers; still in [0,1]."""
    small = jax.image.resize(images, (len(images), *size, images.shape[-1]), "linear", antialias=True)
    return jnp.clip(small, 0.0, 1.0)


def boundaries(epochs: Sequence[float], steps_per_epoch: float, total_steps: int) -> list[int]:
    """The step before which each stage ends; the last ends with training."""
    ends = [round(passed * steps_per_epoch) for passed in itertools.accumulate(epochs)]
    return [*ends[:-1], total_steps]


def number(stages: Sequence[Stage], step: int) -> int:
    """Which stage a step belongs to; the last one's end belongs to it."""
    return min(bisect.bisect_right([stage.until for stage in stages], step), len(stages) - 1)


def sizes(section: ConfigDict, shape: Sequence[int]) -> list[tuple[int, int]]:
    """(H, W) of each stage.

    Args:
      section: `config.stages`.
      shape: (H, W, C) of the training images.

    Raises:
      ValueError: for a size above the data's.
    """
    whole = tuple(shape[:2])
    if not section.image_sizes:
        return [whole] * max(1, len(section.epochs))
    given = tuple(section.image_sizes)
    check("stages.image_sizes", given, whole[0] == whole[1], f"left out: the training images are {whole}")
    fits = all(one <= whole[0] for one in given)
    check("stages.image_sizes", given, fits, f"at most {whole[0]}, the side of the training images")
    return [(one, one) for one in given]


def validate(section: ConfigDict, epochs: float) -> None:
    """The rules that join the fields of `config.stages`.

    Raises:
      ValueError: one line that names the field.
    """
    count = len(section.epochs)
    for field in ("image_sizes", "steps", "step_sizes"):
        value = tuple(section[field])
        check(f"stages.{field}", value, len(value) in (0, count), f"left out, or as long as stages.epochs, {count}")
    total = math.fsum(section.epochs)
    fits = not count or math.isclose(total, epochs, rel_tol=1e-9)
    check("stages.epochs", tuple(section.epochs), fits, f"{epochs:g} in all, as training.epochs")
