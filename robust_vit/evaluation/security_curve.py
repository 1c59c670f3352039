"""Robust accuracy at every radius from one run of a minimal-norm attack.

    curve = security_curve.measure(minimal.search("fmn", norm="linf"), "linf", logits_fn, batches)
    curve.robust_accuracy(8 / 255), curve.interval(8 / 255), curve.area(16 / 255), curve.median

An example stands at a radius if the nearest adversarial image that was found lies beyond it. As with every attack the
curve is an upper bound: nearer images may exist. Every image is judged again, by a second forward pass, and measured
again, on the host in float64.

Reference: Biggio & Roli, Wild Patterns, 2018, arXiv 1712.03141 (security evaluation curves).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel, randomness
from robust_vit.attacks.minimal import Search
from robust_vit.errors import check
from robust_vit.evaluation import intervals
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.evaluation.measure import Batch, check_batch, padded
from robust_vit.pixels import as_float
from robust_vit.typing import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class SecurityCurve:
    """How far the nearest adversarial image of each example is.

    Attributes:
      norm: "linf", "l2" or "l1".
      indices: [N] dataset indices.
      distances: [N] float64, in units of the [0,1] pixel range; 0 where the example is misclassified without a change,
        inf where no adversarial image was found.
    """

    norm: str
    indices: np.ndarray
    distances: np.ndarray

    @property
    def examples(self) -> int:
        """N."""
        return len(self.distances)

    def standing(self, epsilon: float) -> int:
        """How many examples stand in a ball of that radius."""
        return int((self.distances > epsilon).sum())

    def robust_accuracy(self, epsilon: float) -> float:
        """Share of the examples that stand in a ball of that radius."""
        return self.standing(epsilon) / self.examples

    def interval(self, epsilon: float) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return intervals.wilson(self.standing(epsilon), self.examples)

    def area(self, limit: float) -> float:
        """Area under the curve from 0 to `limit`: the mean distance, cut off there."""
        return float(np.minimum(self.distances, limit).mean())

    @property
    def median(self) -> float:
        """Median distance over all examples; inf where fewer than half can be changed."""
        return float(np.sort(self.distances)[(self.examples - 1) // 2])


def measure(
    search: Search,
    norm: str,
    logits_fn: LogitsFn,
    batches: Iterable[Batch],
    *,
    attacked: LogitsFn | None = None,
    mesh: Mesh | None = None,
    seed: int | Array = 0,
) -> SecurityCurve:
    """Looks for the nearest adversarial image of every unmasked example.

    Args:
      search: of `attacks.minimal`.
      norm: the one it measures changes in.
      logits_fn: the classifier.
      batches: as for `Measurer.measure`; of this host, all of whose devices are on the mesh.
      attacked: what the search differentiates, where that is another form of the classifier.
      mesh: the devices that share each batch; all by default.
      seed: of the search's draws.

    Raises:
      ValueError: as `Measurer.measure`, or if a claimed image leaves the pixel range.
    """
    mesh = parallel.mesh() if mesh is None else mesh
    logits_fn = parallel.replicate(mesh, as_logits_fn(logits_fn))
    attacked = logits_fn if attacked is None else parallel.replicate(mesh, as_logits_fn(attacked))
    key = parallel.replicate(mesh, randomness.as_key(seed))

    def find(key: Array, logits_fn: LogitsFn, attacked: LogitsFn, batch: Batch) -> tuple[Array, Array]:
        keys = randomness.example_keys(key, batch["index"], randomness.EVALUATION_ATTACK)
        images = as_float(batch["image"])
        found = search(keys, attacked, images, batch["label"])
        logits = logits_fn(found.points.astype(images.dtype))
        fooled = (jnp.argmax(logits, -1) != batch["label"]) | ~jnp.all(jnp.isfinite(logits), -1)
        return found.points, fooled

    compiled = parallel.compile(find, mesh, arguments="rrrb", results="bb")
    indices, distances = [], []
    for batch in padded(batches, mesh.size):
        check_batch(batch, check_logits(logits_fn, batch["image"].shape[1:], max(2, len(batch["label"]))))
        points, fooled = jax.device_get(compiled(key, logits_fn, attacked, parallel.global_batch(mesh, batch)))
        check("adversarial images", float(np.abs(points - 0.5).max()), np.all(np.abs(points - 0.5) <= 0.5), "in [0, 1]")
        clean = np.asarray(as_float(batch["image"]), np.float64)
        lengths = np.where(fooled, _lengths(points - clean, norm), np.inf)
        indices.append(batch["index"][batch["mask"]])
        distances.append(lengths[batch["mask"]])
    check("batches", "empty", bool(indices), "at least one batch: there is nothing to measure")
    return SecurityCurve(norm, np.concatenate(indices), np.concatenate(distances))


def _lengths(delta: np.ndarray, norm: str) -> np.ndarray:
    """[B] lengths of changes [B,H,W,C], in float64."""
    order: dict[str, Any] = {"linf": np.inf, "l2": 2, "l1": 1}
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=order[norm], axis=1)
