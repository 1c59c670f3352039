"""From a part of an ensemble to what the scheduler runs: the attack's run, its targets, its cost, the model in
another precision.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.attacks.autoattack import cycles
from robust_vit.attacks.autoattack.apgd import apgd_run
from robust_vit.attacks.autoattack.fab import fab_run
from robust_vit.attacks.autoattack.square.search import square_run
from robust_vit.evaluation.autoattack.ensembles import Part
from robust_vit.evaluation.points import Points
from robust_vit.evaluation.scheduling import scheduler
from robust_vit.typing import Array, LogitsFn

MALT_CANDIDATES = 100  # classes that MALT ranks, the paper's number
GRADIENT_FREE = ("square",)


def build(part: Part, norm: str, stochastic: bool = False, classes: int = 0) -> Any:
    """The run of a part, in the stepping protocol of `scheduling`.

    APGD on the cross-entropy and on the targeted DLR are one run, and so one compiled program, where the number of
    classes allows both.
    """
    if part.name == "square":
        return square_run(norm, queries=part.steps)
    if part.name in ("fab", "fab-t"):
        return fab_run(norm, steps=part.steps, targeted=part.name == "fab-t")
    if part.name == "pgd":
        return cycles.pgd_run(norm, steps=part.steps)
    loss, untargeted = part.loss, None
    if classes >= 4 and loss == ("targeted_dlr" if part.targets else "cross_entropy"):
        loss, untargeted = "targeted_dlr", "cross_entropy"
    return apgd_run(
        norm, part.steps, loss, large_radii=part.large_radii, eot=part.eot, stochastic=stochastic,
        untargeted_loss=untargeted,
    )  # fmt: skip


def gradient_free(part: Part) -> bool:
    """Whether a part needs forward passes only, and so affords a larger tile."""
    return part.name in GRADIENT_FREE


def chunk(part: Part) -> int:
    """Most ticks between two looks at the tile: enough that looking costs nothing, few enough to see progress."""
    return 200 if gradient_free(part) else 20


def cost(run: Any, part: Part, classes: int) -> tuple[float, float]:
    """(forwards, gradients) of one tick of one slot; untargeted FAB takes a backward pass a class."""
    forwards, gradients = run.cost
    return forwards, gradients * (classes if part.name == "fab" else 1)


def in_dtype(logits_fn: LogitsFn, dtype: str) -> LogitsFn:
    """The same model computing in another precision: its flax module with the field `dtype` changed.

    Raises:
      ValueError: if the function is no `Partial` of such a module's method; pass the model as `attack_logits_fn` then.
    """
    function = getattr(logits_fn, "func", None)
    bound = "module" if hasattr(function, "module") else "__self__"  # of `models.logits_fn`, or of `module.apply`
    module = getattr(function, bound, None)
    if module is None or not hasattr(module, "clone") or not hasattr(module, "dtype"):
        raise ValueError(
            f"compute_dtype = {dtype!r}: logits_fn is bound to no module with a field dtype; "
            "pass attack_logits_fn, the model in that precision"
        )
    other = module.clone(dtype=jnp.dtype(dtype))
    if bound == "module":
        function = dataclasses.replace(function, module=other)
    else:
        function = getattr(other, function.__name__)
    return jax.tree_util.Partial(function, *logits_fn.args, **logits_fn.keywords)


def targets(
    part: Part, logits_fn: LogitsFn, points: Points, logits: np.ndarray, norm: str, slots: int, wanted: np.ndarray
) -> np.ndarray:
    """[N, K - 1 or fewer] wrong classes of each point, best target first.

    By rank: in the order of the clean logits, as AutoAttack does. By MALT: of the best 100 by logit, in the order of
      (z_y - z_c) / |d(z_y - z_c)/dx|
    with the dual norm, the distance to the boundary if the model were linear.

    Args:
      part: which attack.
      logits_fn: the model.
      points: the examples.
      logits: [N,K] clean logits.
      norm: of the threat model.
      slots: points in a pass.
      wanted: [N] which points matter; the others keep the order by rank.

    Reference: MALT, https://arxiv.org/abs/2407.02240
    """
    masked = np.array(logits, np.float64)
    masked[np.arange(len(masked)), points.labels] = -np.inf
    order = np.argsort(-masked, axis=1, kind="stable")[:, :-1]
    if part.name != "apgd-malt":
        return order
    order = order[:, :MALT_CANDIDATES]
    rows = np.flatnonzero(wanted)
    for some in scheduler.batches(list(rows), slots):
        padded = np.resize(np.asarray(some), slots)
        scores = _slopes(norm, logits_fn, points.take(padded), points.labels[padded], order[padded])
        best_first = np.argsort(np.asarray(scores)[: len(some)], axis=1, kind="stable")
        order[some] = np.take_along_axis(order[some], best_first, axis=1)
    return order


@functools.partial(jax.jit, static_argnums=0)
def _slopes(norm: str, logits_fn: LogitsFn, images: Array, labels: Array, candidates: Array) -> Array:
    """[B,M] linearised distances to the boundaries of the candidate classes [B,M], one gradient at a time."""

    def gap(points: Array, classes: Array) -> tuple[Array, Array]:
        z = logits_fn(points).astype(jnp.float32)
        here = jnp.arange(len(labels))
        gaps = z[here, labels] - z[here, classes]
        return gaps.sum(), gaps

    def slope(_: None, classes: Array) -> tuple[None, Array]:
        gradient, gaps = jax.grad(gap, has_aux=True)(images, classes)
        flat = jnp.abs(gradient.reshape(len(labels), -1))
        dual = {"linf": flat.sum(-1), "l2": jnp.sqrt((flat**2).sum(-1)), "l1": flat.max(-1)}[norm]
        return None, gaps / (dual + 1e-12)

    return jax.lax.scan(slope, None, candidates.T)[1].T
