"""Is every claimed adversarial image one? A second look that shares nothing with the attack: the ball, the box, and a
fresh float32 forward.

Norms are computed in float64 on the host, from the images as they are stored. A logit that is not a number is a
status of its own: such a point is neither robust nor broken, and the report says so.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import errors, parallel
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.scheduling import programs, scheduler
from robust_vit.pixels import as_float
from robust_vit.typing import Array, Keys, LogitsFn

NORMS = ("linf", "l2", "l1")

# Statuses of a point. The first three are of its clean image and its adversarial one; the others are faults of a claim.
WRONG = "misclassified"  # already without an attack
ROBUST = "robust"
BROKEN = scheduler.BROKEN
NONFINITE = scheduler.NONFINITE
FAULTS = ("outside the ball", "outside [0, 1]", "non-finite image", NONFINITE, "classified correctly")


def tolerance(norm: str, epsilon: np.ndarray | float, pixels: int) -> np.ndarray | float:
    """How far beyond epsilon an image may lie by float32 rounding of its pixels alone.

    A pixel near 1 is stored to 6e-8; rounding errors of d pixels add up to at most 6e-8 times d, sqrt(d), 1 in L1,
    L2, Linf. The projection's own rounding is of the size of 1e-6 of epsilon, and gets ten times that.
    """
    spread = {"linf": 1.0, "l2": np.sqrt(pixels), "l1": float(pixels)}[norm]
    return 6e-8 * spread + 1e-5 * epsilon


def distances(norm: str, images: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """[N] distances between images [N,H,W,C] in float64."""
    delta = np.abs(adversarial.astype(np.float64) - images.astype(np.float64))
    pixels = (1, 2, 3)
    if norm == "linf":
        return delta.max(axis=pixels, initial=0.0)
    return np.sqrt((delta**2).sum(axis=pixels)) if norm == "l2" else delta.sum(axis=pixels)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What the second look found.

    Attributes:
      claimed: number of claims looked at.
      confirmed: [N] True where the image is in the ball and the box, finite, and misclassified.
      fault: [N] the first fault of each claim, one of `FAULTS`, or "" where confirmed.
      largest: the greatest distance over epsilon; at most 1 up to rounding.
    """

    claimed: int
    confirmed: np.ndarray
    fault: list[str]
    largest: float

    @property
    def faults(self) -> dict[str, int]:
        """How many claims have each fault."""
        return {name: self.fault.count(name) for name in FAULTS if name in self.fault}

    def __str__(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in self.faults.items()) or "no fault"
        confirmed = f"{int(self.confirmed.sum())} of {self.claimed} adversarial images confirmed in float32"
        return f"{confirmed} ({found}; largest distance {self.largest:.6f} epsilon)"


class Judge:
    """Forward passes in float32, in tiles of one shape; compiled once.

    Args:
      logits_fn: the model whose robustness is claimed.
      slots: size of the tile; a multiple of the number of devices.
      mesh: devices to split it over; one device if None.
      keys: [N] keys of the points, for a stochastic model, which is called as logits_fn(images, keys).
    """

    def __init__(self, logits_fn: LogitsFn, slots: int, mesh: Mesh | None = None, keys: Keys | None = None):
        self.logits_fn = logits_fn if mesh is None else parallel.replicate(mesh, logits_fn)
        self.slots, self.mesh, self.keys = slots, mesh, keys
        self.compile_seconds = 0.0

    def logits(self, images: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """[N,K] float32 logits of images [N,H,W,C], padded to whole tiles; `rows` [N] says whose keys to use."""
        out = []
        for part in scheduler.batches(range(len(images)), self.slots):
            tile = np.zeros((self.slots, *images.shape[1:]), np.float32)
            tile[: len(part)] = as_float(images[part[0] : part[-1] + 1])
            keys = ()
            if self.keys is not None:
                named = np.resize(np.asarray(rows)[part], self.slots)  # padded with keys that are thrown away
                keys = (self.keys[named],)
            out.append(np.asarray(self._forward(tile, *keys))[: len(part)])
        return np.concatenate(out) if out else np.zeros((0, 0), np.float32)

    def _forward(self, *inputs: Any) -> Array:
        """[S,K] logits of one tile."""
        if self.mesh is not None:
            inputs = jax.device_put(inputs, parallel.batched(self.mesh))
        compiled, seconds = programs.forward(self.mesh, len(inputs)).compiled((self.logits_fn, *inputs))
        self.compile_seconds += seconds
        return compiled(self.logits_fn, *inputs)


def verdict(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(misclassified [N], finite [N]) of logits [N,K]; a row with a NaN or an infinity is not finite and not
    misclassified.
    """
    finite = np.isfinite(logits).all(axis=1)
    return finite & (logits.argmax(axis=1) != labels), finite


def verify(
    logits_fn: LogitsFn | Judge,
    images: np.ndarray,
    labels: np.ndarray,
    adversarial: np.ndarray,
    *,
    norm: str,
    epsilon: float | np.ndarray,
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
) -> Verification:
    """Checks claimed adversarial images one by one.

    Args:
      logits_fn: the model, computing in float32 (or a `Judge` of it).
      images: [N,H,W,C] clean images in [0,1] (or uint8).
      labels: [N] integers.
      adversarial: [N,H,W,C] the claimed images in [0,1].
      norm: "linf", "l2" or "l1".
      epsilon: radius, a fraction of [0,1]; one for all or [N].
      batch_size: images in a forward pass.
      rows: [N] whose keys to use, where a `Judge` of a stochastic model is given.

    Returns:
      A Verification.

    Raises:
      ValueError: if the norm is unknown or the shapes differ.
    """
    errors.check("norm", norm, norm in NORMS, f"one of {', '.join(NORMS)}")
    errors.check(
        "adversarial.shape", adversarial.shape, adversarial.shape == images.shape, f"that of the images, {images.shape}"
    )
    judge = logits_fn if isinstance(logits_fn, Judge) else Judge(logits_fn, min(batch_size, max(1, len(images))))
    clean = as_float(images)
    radius = np.broadcast_to(np.asarray(epsilon, np.float64), (len(images),))
    finite_image = np.isfinite(adversarial).all(axis=(1, 2, 3))
    distance = distances(norm, clean, np.where(finite_image[:, None, None, None], adversarial, clean))
    inside = distance <= radius + tolerance(norm, radius, int(np.prod(images.shape[1:])))
    boxed = ((adversarial >= 0) & (adversarial <= 1)).all(axis=(1, 2, 3)) | ~finite_image
    misclassified, finite = (
        verdict(judge.logits(adversarial, rows), np.asarray(labels)) if len(images) else (np.zeros(0, bool),) * 2
    )
    checks = (inside, boxed, finite_image, finite | ~finite_image, misclassified | ~finite)
    fault = [next((name for name, ok in zip(FAULTS, row) if not ok), "") for row in zip(*checks)]
    largest = float(np.max(distance / np.maximum(radius, 1e-12), initial=0.0))
    return Verification(len(images), np.array([not name for name in fault], bool), fault, largest)


class Examiner:
    """Verifies claims as they come, and remembers what was found.

    Args:
      judge: gives logits in float32.
      points: the examples.
      norm: "linf", "l2" or "l1".
    """

    def __init__(self, judge: Judge, points: Points, norm: str):
        self.judge, self.points, self.norm = judge, points, norm
        self.largest = 0.0  # distance over epsilon
        self.refused: list[str] = []  # the faults of claims that did not stand

    def __call__(self, rows: Sequence[int], images: np.ndarray) -> list[str]:
        """The fault of each claimed image [n,H,W,C] of the points `rows` [n], "" for none."""
        points, rows = self.points, np.asarray(rows)
        found = verify(
            self.judge, points.images[rows], points.labels[rows], images, norm=self.norm, epsilon=points.epsilon[rows],
            rows=rows,
        )  # fmt: skip
        self.largest = max(self.largest, found.largest)
        self.refused += [fault for fault in found.fault if fault]
        return found.fault

    def summary(self, confirmed: int) -> Verification:
        """All claims: so many that stand, and those that were refused."""
        faults = [""] * confirmed + self.refused
        return Verification(len(faults), np.array([not fault for fault in faults], bool), faults, self.largest)
