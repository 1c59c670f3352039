"""HopSkipJump: along the boundary by a gradient estimated from decisions. L2, Linf."""

import jax
import jax.numpy as jnp

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import check_count, expand, working
from robust_vit.attacks.blackbox import decisions
from robust_vit.attacks.blackbox.decisions import Ask, Walk
from robust_vit.attacks.blackbox.hunting import Hunt, Reached, within
from robust_vit.errors import check
from robust_vit.typing import Array, Attack, Keys, LogitsFn

TRIALS = 10  # halvings of a step until it lands where it fools


def hop_skip_jump(
    *, epsilon: float | Array, norm: str = "l2", steps: int = 20, evaluations: int = 50, most: int = 500
) -> Attack:
    """Makes an attack that asks for classes only, and returns what lies within epsilon.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "l2" or "linf".
      steps: jumps; each also spends 20 queries on its length and on the way back to the boundary.
      evaluations: queries of the first estimate; that of step t takes their sqrt(t)-fold.
      most: queries of an estimate at most.

    Raises:
      ValueError: for a bad keyword.

    Reference: Chen et al. 2020, https://arxiv.org/abs/1904.02144
    """
    return within(hunt(norm=norm, steps=steps, evaluations=evaluations, most=most), norm, epsilon)


def hunt(*, norm: str = "l2", steps: int = 20, evaluations: int = 50, most: int = 500) -> Hunt:
    """Makes its hunt; see `hop_skip_jump`."""
    ball = norms.get(norm)
    check("norm", norm, norm in ("l2", "linf"), "'l2' or 'linf' for hop_skip_jump")
    check_count("steps", steps)
    check_count("evaluations", evaluations)
    check_count("most", most)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array) -> Reached:
        own, starts = norms.split(keys)
        ask, walk = decisions.begin(starts, logits_fn, images, labels, epsilon, ball)

        def jump(walk: Walk, number: Array) -> tuple[Walk, None]:
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(own, number)
            count = jnp.minimum(evaluations * jnp.sqrt(number + 1.0), most).astype(jnp.int32)
            clean = working(images)
            away = ball.distance(walk.points, clean)
            size = jnp.where(number == 0, 0.1, jnp.maximum(away / walk.points[0].size, 1e-6))
            v = _estimate(ask, folded, walk.points, size, count, norm)
            v = jnp.sign(v) if norm == "linf" else norms.l2_steepest(v, v)
            points = _landed(ask, walk.points, v, away / jnp.sqrt(number + 1.0))
            walk = walk._replace(
                points=jnp.where(expand(walk.found, clean), points, walk.points), queries=walk.queries + count + TRIALS
            )
            return decisions.to_boundary(ask, walk, images, epsilon, ball), None

        walk, _ = jax.lax.scan(jump, walk, jnp.arange(steps))
        return walk.reached

    return run


def _estimate(ask: Ask, keys: Keys, points: Array, size: Array, count: Array, norm: str) -> Array:
    """The direction into what fools: the mean of u, unit and random, with the sign of what is at size u from the point,
    less the mean sign.
    """
    sampler = jax.random.uniform if norm == "linf" else jax.random.normal

    def one(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weighted, plain, signs = sums
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        u = norms.draw(folded, points, sampler)
        u = norms.l2_steepest(2 * u - 1 if norm == "linf" else u, u)
        shown = norms.box(points + expand(size, points) * u)
        u = (shown - points) / expand(size, points)
        sign = jnp.where(ask(shown), 1.0, -1.0).astype(points.dtype)
        return weighted + expand(sign, u) * u, plain + u, signs + sign

    none = points - points  # not zeros: under shard_map it varies over devices as the sums do
    weighted, plain, signs = jax.lax.fori_loop(0, count, one, (none, none, none[:, 0, 0, 0]))
    mean = signs / count
    same = jnp.abs(mean) == 1.0  # all fool, or none
    return jnp.where(expand(same, plain), expand(mean, plain) * plain, weighted - expand(mean, plain) * plain)


def _landed(ask: Ask, points: Array, v: Array, length: Array) -> Array:
    """The longest of the steps length, length / 2, ... along v that fools; the point itself if none does."""

    def trial(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        best, length, done = carry
        there = norms.box(points + expand(length, points) * v)
        fools = ask(there) & ~done
        return (jnp.where(expand(fools, points), there, best), length / 2, done | fools), None

    (best, _, _), _ = jax.lax.scan(trial, (points, length, jnp.isnan(length)), length=TRIALS)
    return best
