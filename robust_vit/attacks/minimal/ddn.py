"""DDN: the direction from the gradient, the length from whether the last point was adversarial. L2."""

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, check_positive, expand, working
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

FLAT = 1e-12  # a shorter gradient has no direction: a random one is taken


def ddn(
    *, epsilon: float | Array, norm: str = "l2", steps: int = 100, gamma: float = 0.05, start: float = 1.0
) -> Attack:
    """Makes a DDN attack: the nearest adversarial image in Euclidean length, if it is within epsilon.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "l2".
      steps: gradient evaluations.
      gamma: by which share the radius of the walk shrinks when the point is adversarial, and grows when it is not.
      start: radius that the walk begins with.

    Raises:
      ValueError: for a bad keyword.

    Reference: Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and
      Defenses, CVPR 2019, arXiv 1811.09600; constants of github.com/jeromerony/adversarial-library.
    """
    return within(search(norm=norm, steps=steps, gamma=gamma, start=start), norm, epsilon)


def search(*, norm: str = "l2", steps: int = 100, gamma: float = 0.05, start: float = 1.0) -> Search:
    """Makes DDN's search; see `ddn`."""
    ball = norms.get(norm)
    check("norm", norm, norm == "l2", "'l2' for ddn; fmn knows the other norms")
    check_count("steps", steps)
    check("gamma", gamma, 0 < gamma < 1, "in (0, 1)")
    check_positive("start", start)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        clean = working(images)
        look, longest = seen(logits_fn, images), farthest(clean, ball)

        def step(carry: tuple[Array, Array, Found], i: Array) -> tuple[tuple[Array, Array, Found], None]:
            points, radius, found = carry
            shown, logits, _, g = gradient(look, losses.cross_entropy, points, labels)
            adversarial = misclassified(logits, labels)
            found = nearer(found, shown, ball.distance(shown, clean), adversarial)
            alpha = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i / steps)) / 2
            delta = points - clean + alpha * _direction(keys, i, g)
            radius = jnp.minimum(jnp.where(adversarial, 1 - gamma, 1 + gamma) * radius, longest)
            delta = delta * expand(radius, clean) / jnp.maximum(norms.l2_norm(delta), FLAT)
            return (norms.box(clean + delta), radius, found), None

        first = (clean, jnp.full_like(clean[:, 0, 0, 0], start), nothing_yet(clean))
        (points, _, found), _ = jax.lax.scan(step, first, jnp.arange(steps))
        shown, logits = look(points)
        return nearer(found, shown, ball.distance(shown, clean), misclassified(logits, labels))

    return run


def _direction(keys: Keys, i: Array, g: Array) -> Array:
    """The gradient at length 1; a random direction where it is flat."""
    length = norms.l2_norm(g)
    noise = norms.draw(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i), g, jax.random.normal)
    flat = length < FLAT
    return jnp.where(flat, noise / norms.l2_norm(noise), g / jnp.where(flat, 1.0, length))
