"""FMN: the radius follows a linear estimate of the boundary, then the adversarial points it met. L1, L2, Linf."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, check_positive, working
from robust_vit.attacks.minimal.nearest import (
    Found,
    Search,
    farthest,
    gradient,
    misclassified,
    nearer,
    nothing_yet,
    seen,
    within,
)
from robust_vit.errors import check
from robust_vit.typing import Array, Attack, Keys, LogitsFn

FLAT = 1e-12
FINAL_GAMMA = 0.001
BEYOND = (
    1.001  # of the linear estimate: on the boundary itself, where a linear model would stay, nothing is misclassified
)
DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}  # norm of the gradient by which a change of length 1 can raise the loss
STEP_SIZE = {"l1": 1.0, "l2": 1.0, "linf": 10.0}


class _Walk(NamedTuple):
    points: Array
    radius: Array  # [B]
    found: Found


def fmn(
    *,
    epsilon: float | Array,
    norm: str = "linf",
    steps: int = 100,
    gamma: float = 0.05,
    step_size: float | None = None,
) -> Attack:
    """Makes an FMN attack: the nearest adversarial image in a norm, if it is within epsilon.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "linf", "l2" or "l1".
      steps: gradient evaluations.
      gamma: by which share the radius of the walk changes at first; it falls to 0.001 by a cosine.
      step_size: Euclidean length of the first step, of which the last is a hundredth; 10 for linf and 1 else by
        default.

    Raises:
      ValueError: for a bad keyword.

    Reference: Pintor et al., Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints, NeurIPS 2021,
      arXiv 2102.12827; constants of github.com/jeromerony/adversarial-library.
    """
    return within(search(norm=norm, steps=steps, gamma=gamma, step_size=step_size), norm, epsilon)


def search(*, norm: str = "linf", steps: int = 100, gamma: float = 0.05, step_size: float | None = None) -> Search:
    """Makes FMN's search; see `fmn`."""
    ball = norms.get(norm)
    check_count("steps", steps)
    check("gamma", gamma, 0 < gamma < 1, "in (0, 1)")
    if step_size is not None:
        check_positive("step_size", step_size)
    alpha = STEP_SIZE[norm] if step_size is None else step_size

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        del keys  # nothing is drawn
        clean = working(images)
        look, longest = seen(logits_fn, images), farthest(clean, ball)

        def step(walk: _Walk, i: Array) -> tuple[_Walk, None]:
            shown, logits, margin, g = gradient(look, losses.margin, walk.points, labels)
            adversarial, length = misclassified(logits, labels), ball.distance(shown, clean)
            found = nearer(walk.found, shown, length, adversarial)
            falling = (1 + jnp.cos(jnp.pi * i / steps)) / 2
            share = FINAL_GAMMA + (gamma - FINAL_GAMMA) * falling
            slope = norms.get(DUAL[norm]).distance(g, jnp.zeros_like(g))
            linear = (length + jnp.abs(margin) / jnp.maximum(slope, FLAT)) * BEYOND
            outwards = jnp.where(jnp.isfinite(found.norm), walk.radius * (1 + share), linear)
            inwards = jnp.minimum(walk.radius * (1 - share), found.norm)
            radius = jnp.minimum(jnp.where(adversarial, inwards, outwards), longest)
            size = alpha * (0.01 + 0.99 * falling)
            points = walk.points + size * g / jnp.maximum(norms.l2_norm(g), FLAT)
            return _Walk(ball.project(points, clean, radius), radius, found), None

        first = _Walk(clean, jnp.full_like(clean[:, 0, 0, 0], jnp.inf), nothing_yet(clean))
        walk, _ = jax.lax.scan(step, first, jnp.arange(steps))
        shown, logits = look(walk.points)
        return nearer(walk.found, shown, ball.distance(shown, clean), misclassified(logits, labels))

    return run
