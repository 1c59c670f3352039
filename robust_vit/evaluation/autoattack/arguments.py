"""The arguments of an evaluation, checked before anything compiles."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import errors, randomness
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.verification import NORMS
from robust_vit.typing import LogitsFn

FLOAT32 = "float32"
DTYPES = (FLOAT32, "bfloat16", "float16")
GROUP = 8  # tiles are whole groups of slots, so that 1, 2, 4 and 8 devices share the same ones


@dataclasses.dataclass(frozen=True)
class Plan:
    """How an evaluation is run; see `autoattack` for the fields."""

    norm: str
    seed: int
    batch_size: int
    tile: int
    forward_tile: int
    compute_dtype: str
    stochastic: bool
    mesh: Mesh | None

    def __post_init__(self) -> None:
        randomness.check_seed(self.seed)
        errors.check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        errors.lookup("compute_dtype", self.compute_dtype, dict.fromkeys(DTYPES))

    @property
    def multiple(self) -> int:
        """What the size of a tile is a multiple of."""
        return math.lcm(GROUP, 1 if self.mesh is None else self.mesh.size)

    def fitted(self, work: int) -> int:
        """The tile for so many items: no larger than they can fill."""
        return min(self.tile, -(-work // self.multiple) * self.multiple)


def points(images: Any, labels: Any, norm: str, epsilon: Any, indices: Any) -> Points:
    """Checks and gathers the arguments that describe the examples."""
    images, labels = np.asarray(images), np.asarray(labels)
    count = len(images)
    errors.check("images.shape", images.shape, images.ndim == 4 and count > 0, "[N,H,W,C] with N at least 1")
    errors.check(
        "images.dtype", str(images.dtype), images.dtype == np.uint8 or images.dtype.kind == "f", "float or uint8"
    )
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        errors.check("images", f"[{low:g}, {high:g}]", low >= 0 and high <= 1, "in [0, 1]")
    errors.check(
        "labels.shape", labels.shape, labels.shape == (count,) and labels.dtype.kind in "iu", f"[{count}] integers"
    )
    errors.lookup("norm", norm, dict.fromkeys(NORMS))
    radius = np.asarray(epsilon, np.float32)
    errors.check("epsilon.shape", radius.shape, radius.shape in ((), (count,)), f"one number or [{count}]")
    valid = bool((radius > 0).all() and np.isfinite(radius).all() and (norm != "linf" or (radius <= 1).all()))
    limit = " and at most 1 for linf (8/255, not 8)" if norm == "linf" else ""
    errors.check("epsilon", epsilon, valid, f"above 0{limit}")
    indices = np.arange(count) if indices is None else np.asarray(indices)
    errors.check("indices.shape", indices.shape, indices.shape == (count,), f"[{count}]")
    errors.check("indices", "repeated", len(np.unique(indices)) == count, "one distinct index a point")
    return Points(images, labels.astype(np.int32), np.broadcast_to(radius, (count,)).copy(), indices.astype(np.int64))


def classifier(logits_fn: Any, points: Points, stochastic: bool) -> LogitsFn:
    """The model as a pytree, its logits and the labels checked by shapes and values alone.

    Raises:
      ValueError: if it returns no logits [B,K], or labels are outside [0,K).
    """
    batch = max(2, min(len(points.labels), GROUP))
    keys = (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),) if stochastic else ()
    classes = check_logits(logits_fn, points.images.shape[1:], batch, extra=keys)
    low, high = int(points.labels.min()), int(points.labels.max())
    errors.check("labels", high if high >= classes else low, low >= 0 and high < classes, f"in [0, {classes})")
    return as_logits_fn(logits_fn)


def tile(given: int | None, cpu: int, accelerator: int, mesh: Mesh | None) -> int:
    """The size of a tile: as given or by platform, rounded up to what the devices can share."""
    size = given or (cpu if jax.default_backend() == "cpu" else accelerator)
    errors.check("tile", size, size >= 1, "at least 1")
    devices = 1 if mesh is None else mesh.size
    local = mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)
    errors.check("mesh", f"{devices} devices", local, "of this host; give each host its own points, by `indices`")
    return -(-size // devices) * devices
