"""The arguments of an evaluation, checked before anything compiles."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import errors, randomness
from robust_vit.evaluation import callables
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.verification import NORMS
from robust_vit.typing import LogitsFn

FLOAT32 = "float32"
DTYPES = (FLOAT32, "bfloat16", "float16")
GROUP = 8  # tiles are whole groups of slots, so that 1, 2, 4 and 8 devices share the same ones


@dataclasses.dataclass(frozen=True)
class Arguments:
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
        errors.check(
            "seed", self.seed, not isinstance(self.seed, jax.Array), "a whole number, which the ledger can name"
        )
        whole = isinstance(self.batch_size, int | np.integer) and not isinstance(self.batch_size, bool)
        errors.check("batch_size", self.batch_size, whole and self.batch_size >= 1, "a whole number, at least 1")
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
    count = len(images) if images.ndim else 0
    errors.check("images.shape", images.shape, images.ndim == 4 and images.size > 0, "[N,H,W,C] with N at least 1")
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
    indices = np.arange(count) if indices is None else np.asarray(indices)
    whole = indices.shape == (count,) and indices.dtype.kind in "iu"
    errors.check("indices.shape", indices.shape, whole, f"[{count}] integers")
    errors.check("indices", "repeated", len(np.unique(indices)) == count, "one distinct index a point")
    indices = randomness.indices(indices).astype(np.int64)
    return Points(images, labels.astype(np.int32), _radii(epsilon, norm, count), indices)


def _radii(epsilon: Any, norm: str, count: int) -> np.ndarray:
    """[N] float32 radii."""
    radius = np.asarray(epsilon)
    errors.check("epsilon", epsilon, radius.dtype.kind in "iuf", "one number or one a point")
    radius = radius.astype(np.float32)
    errors.check("epsilon.shape", radius.shape, radius.shape in ((), (count,)), f"one number or [{count}]")
    valid = bool((radius > 0).all() and np.isfinite(radius).all() and (norm != "linf" or (radius <= 1).all()))
    limit = " and at most 1 for linf (8/255, not 8)" if norm == "linf" else ""
    errors.check("epsilon", epsilon, valid, f"a number above 0{limit}")
    return np.broadcast_to(radius, (count,)).copy()


def classes(logits_fn: LogitsFn, points: Points, stochastic: bool, other: LogitsFn | None = None) -> int:
    """How many classes the model tells apart, by the shape of its logits.

    Args:
      logits_fn: the model.
      points: the examples, whose labels must be among the classes.
      stochastic: whether the model takes keys.
      other: a model of the same classes, if there is one.

    Raises:
      ValueError: if it returns anything but float logits [B,K], or a label is no class.
    """
    extra = (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),) if stochastic else ()
    found = callables.check_logits(logits_fn, points.images.shape[1:], extra=extra)
    if other is not None:
        same = callables.check_logits(other, points.images.shape[1:], extra=extra)
        errors.check("attack_logits_fn", f"{same} classes", same == found, f"a model of the same {found} classes")
    outside = points.labels[(points.labels < 0) | (points.labels >= found)]
    errors.check("labels", int(outside[0]) if len(outside) else 0, not len(outside), f"in [0, {found})")
    return found


def tile(name: str, given: int | None, cpu: int, accelerator: int, mesh: Mesh | None) -> int:
    """The size of a tile: as given or by platform, rounded up to what the devices can share."""
    size = (cpu if jax.default_backend() == "cpu" else accelerator) if given is None else given
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    errors.check(name, size, whole and size >= 1, "a whole number, at least 1")
    devices = 1 if mesh is None else mesh.size
    local = mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)
    errors.check("mesh", f"{devices} devices", local, "of this host; give each host its own points, by `indices`")
    return -(-int(size) // devices) * devices
