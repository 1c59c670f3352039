"""What black-box attacks share: what a hunt finds and at how many queries, and the common signature.

A query is one image shown to the classifier. Every example of a batch is asked about at once, so that each has spent as
many as the others, also where it was fooled before the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from robust_vit.attacks import losses
from robust_vit.attacks.arguments import check_epsilon, check_inputs, detach, expand, finish, per_example, working
from robust_vit.attacks.minimal.nearest import misclassified
from robust_vit.typing import Array, Attack, Keys, LogitsFn


class Reached(NamedTuple):
    """What a hunt found for each example.

    Attributes:
      points: [B,H,W,C]; the clean image where nothing inside the ball fooled.
      queries: [B] float, at which query the ball held an image that fools; 0 where the clean image is misclassified,
        inf where none was met.
    """

    points: Array
    queries: Array


# (keys [B], logits_fn, images, labels [B], epsilon [B]) -> Reached
Hunt = Callable[[Keys, LogitsFn, Array, Array, Array], Reached]


def asked_once(logits_fn: LogitsFn, images: Array, labels: Array) -> tuple[Reached, Array]:
    """The first query, the clean image: what is reached by it, and its logits [B,K]."""
    logits = logits_fn(images)
    wrong = misclassified(logits, labels)
    return Reached(working(images), jnp.where(wrong, 0.0, jnp.inf).astype(jnp.float32)), logits


def note(reached: Reached, points: Array, inside: Array, query: Array | int) -> Reached:
    """Takes over points that fool inside the ball, [B] bool, of examples that had none."""
    first = inside & jnp.isinf(reached.queries)
    points = jnp.where(expand(first, points), points, reached.points)
    return Reached(points, jnp.where(first, jnp.asarray(query, jnp.float32), reached.queries))


def within(hunt: Hunt, norm: str, epsilon: float | Array) -> Attack:
    """Gives a hunt the common signature: what it reached, elsewhere the clean image."""
    check_epsilon(epsilon, norm)

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        reached = hunt(keys, logits_fn, images, losses.as_labels(targets), radius)
        return finish(reached.points, images, radius)

    return attack
