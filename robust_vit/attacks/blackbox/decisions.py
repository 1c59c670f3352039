"""What attacks on classes alone share: a misclassified start, the way back to the boundary, how each is asked for."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import as_seen, expand, working
from robust_vit.attacks.blackbox.hunting import Reached, asked_once, note
from robust_vit.attacks.minimal.nearest import misclassified
from robust_vit.typing import Array, Keys, LogitsFn

TRIES = 25  # random images asked about for a start; each is misclassified for most images with ten classes
HALVINGS = 10  # of the way to the boundary: a thousandth of it is left

Ask = Callable[[Array], Array]  # points [B,H,W,C] -> whether they fool, [B] bool


class Walk(NamedTuple):
    """Where a decision-based walk is.

    Attributes:
      points: [B,H,W,C], which fool where `found`.
      found: [B] bool.
      reached: the first point inside the ball.
      queries: asked so far; scalar.
    """

    points: Array
    found: Array
    reached: Reached
    queries: Array


def asks(logits_fn: LogitsFn, images: Array, labels: Array) -> Ask:
    """Returns points -> whether the classifier misclassifies them, shown in the dtype of the clean images."""
    return lambda points: misclassified(logits_fn(as_seen(points, images)), labels)


def begin(
    keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array, ball: norms.Ball
) -> tuple[Ask, Walk]:
    """Asks about the clean images, and about uniform noise until it fools; goes from there to the boundary."""
    ask, clean = asks(logits_fn, images, labels), working(images)
    reached, _ = asked_once(logits_fn, images, labels)

    def attempt(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        points, found = carry
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        noise = norms.draw(folded, clean, jax.random.uniform)
        fools = ask(noise)
        return (jnp.where(expand(fools & ~found, clean), noise, points), found | fools), None

    nothing = jnp.isnan(clean[:, 0, 0, 0])  # not zeros: under shard_map it varies over devices as what is found does
    (points, found), _ = jax.lax.scan(attempt, (clean, nothing), jnp.arange(TRIES))
    walk = Walk(points, found, reached, jnp.int32(1 + TRIES))
    return ask, to_boundary(ask, walk, images, epsilon, ball)


def to_boundary(ask: Ask, walk: Walk, images: Array, epsilon: Array, ball: norms.Ball) -> Walk:
    """Halves the way between the clean image and the point, along a line or (Linf) through shrinking boxes."""
    clean = working(images)
    length = ball.distance(walk.points, clean)

    def between(share: Array) -> Array:
        if ball.name == "linf":
            return ball.project(walk.points, clean, share * length)
        return clean + expand(share, clean) * (walk.points - clean)

    def halve(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = carry
        middle = 0.5 * (low + high)
        fools = ask(between(middle))
        return (jnp.where(fools, low, middle), jnp.where(fools, middle, high)), None

    nothing = length - length  # not zeros: under shard_map it varies over devices as the share does
    (_, high), _ = jax.lax.scan(halve, (nothing, nothing + 1.0), length=HALVINGS)
    points = jnp.where(expand(walk.found & (high < 1.0), clean), between(high), walk.points)
    queries = walk.queries + HALVINGS
    return walk._replace(points=points, reached=arrived(walk, points, images, epsilon, ball, queries), queries=queries)


def arrived(walk: Walk, points: Array, images: Array, epsilon: Array, ball: norms.Ball, queries: Array) -> Reached:
    """Notes points that fool and lie in the ball."""
    shown = working(as_seen(points, images))
    inside = walk.found & (ball.distance(shown, working(images)) <= epsilon)
    return note(walk.reached, shown, inside, queries)
