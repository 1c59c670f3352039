"""The Boundary attack: a random walk along the boundary, towards the clean image. L2."""

import jax
import jax.numpy as jnp

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import check_count, check_positive, expand, working
from robust_vit.attacks.blackbox import decisions
from robust_vit.attacks.blackbox.decisions import Walk
from robust_vit.attacks.blackbox.hunting import Hunt, Reached, within
from robust_vit.errors import check
from robust_vit.typing import Array, Attack, Keys, LogitsFn

FIRST = 0.01  # of both steps, in distances to the clean image, as in Foolbox
SMALLEST, LARGEST = 1e-4, 0.5
RATE = 0.25  # how fast the steps adapt, in powers of `adaptation`
WANTED = (0.5, 0.25)  # share of sideways steps, and of steps towards the image, that should fool


def boundary(*, epsilon: float | Array, norm: str = "l2", steps: int = 1000, adaptation: float = 1.5) -> Attack:
    """Makes an attack that asks for classes only, and returns what lies within epsilon; two queries a step.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "l2".
      steps: steps; the paper takes 25,000.
      adaptation: how far the sizes of its steps follow the share of them that fool. They change a little at every
        query, where the paper counts windows of 30 and more.

    Raises:
      ValueError: for a bad keyword.

    Reference: Brendel et al. 2018, https://arxiv.org/abs/1712.04248
    """
    return within(hunt(norm=norm, steps=steps, adaptation=adaptation), norm, epsilon)


def hunt(*, norm: str = "l2", steps: int = 1000, adaptation: float = 1.5) -> Hunt:
    """Makes its hunt; see `boundary`."""
    ball = norms.get(norm)
    check("norm", norm, norm == "l2", "'l2' for boundary")
    check_count("steps", steps)
    check_positive("adaptation", adaptation)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array) -> Reached:
        own, starts = norms.split(keys)
        ask, walk = decisions.begin(starts, logits_fn, images, labels, epsilon, ball)
        clean = working(images)

        def adapted(size: Array, fools: Array, wanted: float) -> Array:
            return jnp.clip(size * adaptation ** (RATE * (fools - wanted)), SMALLEST, LARGEST)

        def step(carry: tuple[Walk, Array, Array], number: Array) -> tuple[tuple[Walk, Array, Array], None]:
            walk, sideways, inwards = carry
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(own, number)
            around = _around(folded, walk.points, clean, sideways)
            fools = ask(around)
            nearer = norms.box(around + expand(inwards, clean) * (clean - around))
            both = ask(nearer) & fools
            shorter = ball.distance(nearer, clean) < ball.distance(walk.points, clean)
            points = jnp.where(expand(walk.found & both & shorter, clean), nearer, walk.points)
            sideways = adapted(sideways, fools, WANTED[0])
            inwards = jnp.where(fools, adapted(inwards, both, WANTED[1]), inwards)
            queries = walk.queries + 2
            reached = decisions.arrived(walk, points, images, epsilon, ball, queries)
            return (walk._replace(points=points, reached=reached, queries=queries), sideways, inwards), None

        first = 0.0 * clean[:, 0, 0, 0] + FIRST
        (walk, _, _), _ = jax.lax.scan(step, (walk, first, first), jnp.arange(steps))
        return walk.reached

    return run


def _around(keys: Keys, points: Array, clean: Array, size: Array) -> Array:
    """A random point as far from the clean image as `points`, about `size` of that distance aside."""
    back = clean - points
    away = norms.l2_norm(back)
    u = norms.draw(keys, points, jax.random.normal)
    toward = back / jnp.maximum(away, norms.TINY)
    u = u - jnp.sum(u * toward, axis=norms.PIXELS, keepdims=True) * toward
    moved = points + expand(size, points) * away * norms.l2_steepest(u, u) - clean
    return norms.box(clean + moved * away / jnp.maximum(norms.l2_norm(moved), norms.TINY))
