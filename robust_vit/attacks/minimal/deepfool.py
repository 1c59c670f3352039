"""DeepFool: over and over to the nearest of the boundaries as they look from here. L2, Linf."""

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, expand, working
from robust_vit.attacks.minimal.nearest import Found, Search, misclassified, nearer, nothing_yet, seen, within
from robust_vit.errors import check
from robust_vit.typing import Array, Attack, Keys, LogitsFn

FLAT = 1e-12


def deepfool(
    *, epsilon: float | Array, norm: str = "l2", steps: int = 50, candidates: int = 10, overshoot: float = 0.02
) -> Attack:
    """Makes a DeepFool attack: what it meets, if it is within epsilon.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "l2" or "linf".
      steps: linearisations, each of `candidates` gradients.
      candidates: classes looked at, the likeliest of the clean image, its own among them.
      overshoot: share by which the sum of all steps is lengthened.

    Raises:
      ValueError: for a bad keyword.

    Reference: Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599; defaults of Foolbox
    """
    return within(search(norm=norm, steps=steps, candidates=candidates, overshoot=overshoot), norm, epsilon)


def search(*, norm: str = "l2", steps: int = 50, candidates: int = 10, overshoot: float = 0.02) -> Search:
    """Makes DeepFool's search; see `deepfool`."""
    ball = norms.get(norm)
    check("norm", norm, norm in ("l2", "linf"), "'l2' or 'linf' for deepfool")
    check_count("steps", steps)
    check_count("candidates", candidates, 2)
    check("overshoot", overshoot, 0 <= overshoot < 1, "in [0, 1)")

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        del keys  # nothing is drawn
        clean, look = working(images), seen(logits_fn, images)
        first = losses.in_float32(logits_fn(images))
        others = jnp.where(jax.nn.one_hot(labels, first.shape[-1], dtype=bool), -jnp.inf, first)
        ranked = jax.lax.top_k(others, min(candidates, first.shape[-1]) - 1)[1]  # [B,n] other classes

        def differences(points: Array) -> tuple[Array, Array, Array, Array]:
            """f_c - f_y of the other classes [n,B], their gradients [n,B,H,W,C], the point as shown, its logits."""

            def one(target: Array) -> tuple[Array, Array, Array, Array]:
                def total(points: Array) -> tuple[Array, tuple[Array, Array, Array]]:
                    shown, logits = look(points)
                    z = losses.in_float32(logits)
                    pair = jnp.stack([target, labels], -1)
                    apart = jnp.take_along_axis(z, pair, -1)
                    return jnp.sum(apart[:, 0] - apart[:, 1]), (apart[:, 0] - apart[:, 1], shown, logits)

                slope, (value, shown, logits) = jax.grad(total, has_aux=True)(points)
                return value, slope, shown, logits

            return jax.lax.map(one, ranked.T)

        def step(carry: tuple[Array, Found], _: None) -> tuple[tuple[Array, Found], None]:
            points, found = carry
            value, slope, shown, logits = differences(points)
            wrong = misclassified(logits[0], labels)
            found = nearer(found, shown[0], ball.distance(shown[0], clean), wrong)
            dual = jnp.stack([_dual(norm, each) for each in slope])  # [n,B]
            away = jnp.where(dual > FLAT, jnp.abs(value) / jnp.maximum(dual, FLAT), jnp.inf)
            nearest = jnp.argmin(away, 0)  # [B]
            chosen = jnp.take_along_axis(slope, nearest[None, :, None, None, None], 0)[0]
            length = jnp.take_along_axis(away, nearest[None], 0)[0] + 1e-4
            length = jnp.where(jnp.isfinite(length) & ~wrong, length, 0.0)
            moved = points - clean + expand(length, clean) * ball.steepest(chosen, points)
            return (norms.box(clean + (1 + overshoot) * moved), found), None

        (points, found), _ = jax.lax.scan(step, (clean, nothing_yet(clean)), length=steps)
        shown, logits = look(points)
        return nearer(found, shown, ball.distance(shown, clean), misclassified(logits, labels))

    return run


def _dual(norm: str, slope: Array) -> Array:
    """[B] by how much a step of length 1 raises a linear function."""
    return norms.l1_distance(slope, jnp.zeros_like(slope)) if norm == "linf" else norms.l2_norm(slope)[:, 0, 0, 0]
