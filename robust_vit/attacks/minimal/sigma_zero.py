"""sigma-zero: the fewest values, by a smooth count of them and a threshold that clears the small ones. L0."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, check_positive, expand, working
from robust_vit.attacks.minimal.nearest import Found, Search, misclassified, nearer, nothing_yet, seen
from robust_vit.attacks.updates import moments
from robust_vit.errors import check
from robust_vit.typing import Array, Keys, LogitsFn

FIRST_THRESHOLD, THRESHOLD_RATE, SMOOTH = 0.3, 0.01, 1e-3  # of its authors


class _Walk(NamedTuple):
    points: Array
    mean: Array
    square: Array
    threshold: Array  # [B]
    found: Found


def search(*, norm: str = "l0", steps: int = 300, learning_rate: float = 1.0) -> Search:
    """Makes sigma-zero's search: `found.norm` counts the changed values, of H*W*C.

    Args:
      norm: "l0".
      steps: gradient evaluations.
      learning_rate: of Adam at first; a tenth at the end.

    Raises:
      ValueError: for a bad keyword.

    Reference: Cinà et al. 2025, https://arxiv.org/abs/2402.01879
    """
    check("norm", norm, norm == "l0", "'l0' for sigma_zero")
    check_count("steps", steps)
    check_positive("learning_rate", learning_rate)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        del keys  # nothing is drawn
        clean, look = working(images), seen(logits_fn, images)

        def slope(points: Array) -> tuple[Array, Array, Array]:
            def total(points: Array) -> tuple[Array, tuple[Array, Array]]:
                shown, logits = look(points)
                behind = jnp.maximum(-losses.margin(logits, labels), 0.0)
                squares = (points - clean) ** 2
                count = jnp.mean(squares / (squares + SMOOTH), axis=norms.PIXELS)
                return jnp.sum(behind + count), (shown, logits)

            g, (shown, logits) = jax.grad(total, has_aux=True)(points)
            largest = jnp.max(jnp.abs(g), axis=norms.PIXELS, keepdims=True)
            return jnp.where(jnp.isfinite(g), g / jnp.maximum(largest, 1e-12), 0.0), shown, logits

        def step(walk: _Walk, i: Array) -> tuple[_Walk, None]:
            g, shown, logits = slope(walk.points)
            fools = misclassified(logits, labels)
            found = nearer(walk.found, shown, _count(shown, clean), fools)
            rate = learning_rate * (0.1 + 0.9 * (1 + jnp.cos(jnp.pi * i / steps)) / 2)
            mean, scale, memory = moments(g, (walk.mean, walk.square), i)
            delta = norms.box(walk.points - rate * (mean / scale)) - clean
            threshold = jnp.clip(walk.threshold + THRESHOLD_RATE * rate * jnp.where(fools, 1.0, -1.0), 0.0, 1.0)
            delta = jnp.where(jnp.abs(delta) < expand(threshold, delta), 0.0, delta)
            return _Walk(clean + delta, *memory, threshold, found), None

        zeros = clean - clean
        first = _Walk(clean, zeros, zeros, zeros[:, 0, 0, 0] + FIRST_THRESHOLD, nothing_yet(clean))
        walk, _ = jax.lax.scan(step, first, jnp.arange(steps))
        shown, logits = look(walk.points)
        return nearer(walk.found, shown, _count(shown, clean), misclassified(logits, labels))

    return run


def _count(points: Array, clean: Array) -> Array:
    """[B] how many values differ."""
    return jnp.sum(points != clean, axis=norms.PIXELS).astype(clean.dtype)
