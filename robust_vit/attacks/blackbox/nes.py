"""NES and SPSA: PGD along gradients that are estimated from differences of the loss."""

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import as_seen, check_count, check_positive, expand, per_example, working
from robust_vit.attacks.blackbox.hunting import Hunt, Reached, asked_once, note, within
from robust_vit.attacks.minimal.nearest import misclassified
from robust_vit.errors import lookup
from robust_vit.typing import Array, Attack, Keys, LogitsFn

DIRECTIONS = {"normal": jax.random.normal, "signs": jax.random.rademacher}  # of NES, of SPSA


def nes(
    *,
    epsilon: float | Array,
    norm: str = "linf",
    steps: int = 50,
    pairs: int = 25,
    sigma: float = 0.01,
    step_size: float | Array | None = None,
    directions: str = "normal",
    loss: str = "margin",
) -> Attack:
    """Makes an attack that climbs an estimate: the mean of (l(x + sigma u) - l(x - sigma u)) / (2 sigma) u.

    It spends 1 + steps (2 pairs + 1) queries an image.

    Args:
      epsilon: radius of the ball, in units of the [0,1] pixel range; may be traced.
      norm: "linf", "l2" or "l1".
      steps: steps.
      pairs: directions u a step, each asked to both sides.
      sigma: how far apart, in units of the [0,1] pixel range.
      step_size: 2.5 epsilon / steps by default.
      directions: "normal" (NES) or "signs" (SPSA).
      loss: what is climbed, a name of `losses.LOSSES`.

    Raises:
      ValueError: for a bad keyword.

    Reference: Ilyas et al. 2018 (NES), https://arxiv.org/abs/1804.08598; Uesato et al. 2018 (SPSA),
      https://arxiv.org/abs/1802.05666
    """
    given = dict(steps=steps, pairs=pairs, sigma=sigma, step_size=step_size, directions=directions, loss=loss)
    return within(hunt(norm=norm, **given), norm, epsilon)


def hunt(
    *,
    norm: str = "linf",
    steps: int = 50,
    pairs: int = 25,
    sigma: float = 0.01,
    step_size: float | Array | None = None,
    directions: str = "normal",
    loss: str = "margin",
) -> Hunt:
    """Makes its hunt; see `nes`."""
    ball, objective = norms.get(norm), losses.get(loss)
    check_count("steps", steps)
    check_count("pairs", pairs)
    check_positive("sigma", sigma)
    if step_size is not None:
        check_positive("step_size", step_size)
    sampler = lookup("directions", directions, DIRECTIONS)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array) -> Reached:
        clean = working(images)
        length = epsilon * 2.5 / steps if step_size is None else per_example(step_size, images) * jnp.sign(epsilon)

        def value(points: Array) -> Array:
            found = objective(logits_fn(as_seen(points, images)), labels)
            return jnp.where(jnp.isfinite(found), found, 0.0)  # a refused query tells nothing

        def slope(points: Array, number: Array) -> Array:
            def one(total: Array, pair: Array) -> tuple[Array, None]:
                folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number * pairs + pair)
                u = norms.draw(folded, clean, sampler)
                rise = value(points + sigma * u) - value(points - sigma * u)
                return total + expand(rise / (2 * sigma), u) * u, None

            return jax.lax.scan(one, points - points, jnp.arange(pairs))[0] / pairs

        def step(carry: tuple[Array, Reached], number: Array) -> tuple[tuple[Array, Reached], None]:
            points, reached = carry
            points = points + expand(length, clean) * ball.steepest(slope(points, number), points)
            points = ball.project(points, clean, epsilon)
            shown = as_seen(points, images)
            fools = misclassified(logits_fn(shown), labels)
            query = 1 + (number + 1) * (2 * pairs + 1)
            return (points, note(reached, working(shown), fools, query)), None

        reached, _ = asked_once(logits_fn, images, labels)
        (_, reached), _ = jax.lax.scan(step, (clean, reached), jnp.arange(steps))
        return reached

    return run
