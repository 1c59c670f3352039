"""Accuracy against the number of queries, from one run of a black-box attack.

    curve = query_curve.measure(blackbox.hunt("square", queries=1000), 8 / 255, logits_fn, batches)
    curve.accuracy(100), curve.interval(100), curve.median

An example stands until the query at which the attack had an image inside the ball that fools; every such image is
judged again, by a second forward pass.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel, randomness
from robust_vit.attacks.blackbox import Hunt
from robust_vit.attacks.minimal.nearest import misclassified
from robust_vit.errors import check
from robust_vit.evaluation import intervals
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.evaluation.measure import Batch, check_batch, padded
from robust_vit.pixels import as_float
from robust_vit.typing import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class QueryCurve:
    """How many queries each example withstood.

    Attributes:
      indices: [N] dataset indices.
      queries: [N] at which query it fell; 0 where it is misclassified without a change, inf where it stands.
    """

    indices: np.ndarray
    queries: np.ndarray

    @property
    def examples(self) -> int:
        """N."""
        return len(self.queries)

    def standing(self, queries: float) -> int:
        """How many examples stand after so many queries each."""
        return int((self.queries > queries).sum())

    def accuracy(self, queries: float) -> float:
        """Share of the examples that stand after so many queries each."""
        return self.standing(queries) / self.examples

    def interval(self, queries: float) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return intervals.wilson(self.standing(queries), self.examples)

    @property
    def median(self) -> float:
        """Median queries of the examples that fell to some; NaN where none did."""
        fell = self.queries[(self.queries > 0) & np.isfinite(self.queries)]
        return float(np.median(fell)) if fell.size else float("nan")


def measure(
    hunt: Hunt,
    epsilon: float,
    logits_fn: LogitsFn,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
    seed: int | Array = 0,
) -> QueryCurve:
    """Hunts every unmasked example.

    Args:
      hunt: of `attacks.blackbox`.
      epsilon: radius of the ball in the hunt's norm, in units of the [0,1] pixel range.
      logits_fn: the classifier; a `Victim` counts the padding of the last batch too.
      batches: as for `Measurer.measure`; of this host.
      mesh: the devices that share each batch; all by default.
      seed: of the hunt's draws.

    Raises:
      ValueError: as `Measurer.measure`.
    """
    mesh = parallel.mesh() if mesh is None else mesh
    logits_fn = parallel.replicate(mesh, as_logits_fn(logits_fn))
    key = parallel.replicate(mesh, randomness.as_key(seed))

    def find(key: Array, logits_fn: LogitsFn, batch: Batch) -> tuple[Array, Array]:
        keys = randomness.example_keys(key, batch["index"], randomness.EVALUATION_ATTACK)
        images = as_float(batch["image"])
        reached = hunt(keys, logits_fn, images, batch["label"], jnp.full(images.shape[0], epsilon, jnp.float32))
        return reached.queries, misclassified(logits_fn(reached.points.astype(images.dtype)), batch["label"])

    compiled = parallel.compile(find, mesh, arguments="rrb", results="bb")
    indices, queries = [], []
    for batch in padded(batches, mesh.size):
        check_batch(batch, check_logits(logits_fn, batch["image"].shape[1:], max(2, len(batch["label"]))))
        spent, fooled = jax.device_get(compiled(key, logits_fn, parallel.global_batch(mesh, batch)))
        indices.append(batch["index"][batch["mask"]])
        queries.append(np.where(fooled, np.asarray(spent, np.float64), np.inf)[batch["mask"]])
    check("batches", "empty", bool(indices), "at least one batch: there is nothing to measure")
    return QueryCurve(np.concatenate(indices), np.concatenate(queries))
