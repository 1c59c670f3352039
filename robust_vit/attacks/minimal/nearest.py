"""What minimal-norm attacks share: the nearest adversarial image so far, one pass of a walk, the common signature."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import (
    as_seen,
    check_epsilon,
    check_inputs,
    detach,
    expand,
    finish,
    per_example,
    working,
)
from robust_vit.typing import Array, Attack, Keys, LogitsFn


class Found(NamedTuple):
    """The nearest adversarial image of each example.

    Attributes:
      points: [B,H,W,C]; the clean image where nothing adversarial was met.
      norm: [B] length of the change; 0 where the clean image is misclassified, inf where nothing adversarial was met.
    """

    points: Array
    norm: Array


Search = Callable[[Keys, LogitsFn, Array, Array], Found]  # (keys [B], logits_fn, images, targets) -> Found


def nothing_yet(images: Array) -> Found:
    """No example has an adversarial image yet."""
    return Found(images, jnp.full_like(images[:, 0, 0, 0], jnp.inf))


def nearer(found: Found, points: Array, norm: Array, adversarial: Array) -> Found:
    """Takes over the points that are adversarial [B] bool and nearer than what was found."""
    better = adversarial & (norm < found.norm)
    return Found(jnp.where(expand(better, points), points, found.points), jnp.where(better, norm, found.norm))


def seen(logits_fn: LogitsFn, images: Array) -> Callable[[Array], tuple[Array, Array]]:
    """Returns points -> (points as the model is shown them, in the working precision, and their logits).

    An image has the dtype of the clean one: what is judged, measured and returned is the same image.
    """

    def look(points: Array) -> tuple[Array, Array]:
        fixed = jax.lax.stop_gradient(points)
        shown = as_seen(fixed, images) + (points - fixed).astype(images.dtype)
        return working(shown), logits_fn(shown)

    return look


def gradient(
    look: Callable[[Array], tuple[Array, Array]], loss: Callable[[Array, Array], Array], points: Array, labels: Array
) -> tuple[Array, Array, Array, Array]:
    """One pass: (points as shown, logits [B,K], loss [B], gradient of the loss to the points)."""

    def total(points: Array):
        shown, logits = look(points)
        values = loss(logits, labels)
        return jnp.sum(values), (shown, logits, values)

    g, (shown, logits, values) = jax.grad(total, has_aux=True)(points)
    return shown, logits, values, jnp.where(jnp.isfinite(g), g, 0.0)


def misclassified(logits: Array, labels: Array) -> Array:
    """[B] bool: the arg max is another class, and all logits are finite."""
    return (jnp.argmax(logits, -1) != labels) & jnp.all(jnp.isfinite(logits), -1)


def farthest(images: Array, ball: norms.Ball) -> Array:
    """[B] the length of the longest change that the pixel range allows."""
    return ball.distance(jnp.where(images > 0.5, 0.0, 1.0), images)


def within(search: Search, norm: str, epsilon: float | Array) -> Attack:
    """Gives a search the common signature: its image where the change fits in the ball, elsewhere the clean image.

    The walk does not depend on the radius, which only judges what it found.

    Args:
      search: of this package.
      norm: in which its changes are measured.
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
    """
    check_epsilon(epsilon, norm)

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        found = search(keys, logits_fn, images, losses.as_labels(targets))
        clean = working(images)
        fits = found.norm <= radius
        return finish(jnp.where(expand(fits, clean), found.points, clean), images, radius)

    return attack
