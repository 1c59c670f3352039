"""PDPGD: the smallest change under the constraint that it fools, by primal and dual steps and a proximal one. L1, L2,
Linf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import l1_ball, losses, norms
from robust_vit.attacks.arguments import check_count, check_positive, expand, working
from robust_vit.attacks.minimal.nearest import Found, Search, gradient, misclassified, nearer, nothing_yet, seen, within
from robust_vit.attacks.thresholds import largest
from robust_vit.attacks.updates import moments
from robust_vit.typing import Array, Attack, Keys, LogitsFn

FIRST_DUAL = 4.60517  # -ln 0.01, of the constraint over the distance
DUAL_LIMIT = 13.815511  # ln 1e6
DUAL_RATE, LAST_DUAL_RATE, DUAL_DECAY = 0.1, 0.01, 0.9
PROXIMAL_STEPS = 5


class _Walk(NamedTuple):
    delta: Array
    mean: Array
    square: Array
    dual: Array  # [B] logarithm of the constraint's multiplier over the distance's
    share: Array  # [B] of the constraint, averaged
    found: Found


def pdpgd(*, epsilon: float | Array, norm: str = "linf", steps: int = 200, learning_rate: float = 0.1) -> Attack:
    """Makes a PDPGD attack: the nearest adversarial image in a norm, if it is within epsilon.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "linf", "l2" or "l1".
      steps: gradient evaluations.
      learning_rate: of Adam at first; a hundredth at the end.

    Raises:
      ValueError: for a bad keyword.

    Reference: Matyasko and Chau 2021, https://arxiv.org/abs/2106.01538; constants of
      github.com/jeromerony/adversarial-library
    """
    return within(search(norm=norm, steps=steps, learning_rate=learning_rate), norm, epsilon)


def search(*, norm: str = "linf", steps: int = 200, learning_rate: float = 0.1) -> Search:
    """Makes PDPGD's search; see `pdpgd`."""
    ball = norms.get(norm)
    check_count("steps", steps)
    check_positive("learning_rate", learning_rate)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        del keys  # nothing is drawn
        clean, look = working(images), seen(logits_fn, images)

        def step(walk: _Walk, i: Array) -> tuple[_Walk, None]:
            behind = lambda z, y: jax.nn.softplus(-losses.margin(z, y))  # noqa: E731
            shown, logits, _, g = gradient(look, behind, clean + walk.delta, labels)
            wrong = misclassified(logits, labels)
            found = nearer(walk.found, shown, ball.distance(shown, clean), wrong)
            done = i / steps
            rate = learning_rate * 0.01**done
            theta = DUAL_RATE + (LAST_DUAL_RATE - DUAL_RATE) * done
            dual = jnp.clip(walk.dual + theta * jnp.where(wrong, -1.0, 1.0), -DUAL_LIMIT, DUAL_LIMIT)
            share = DUAL_DECAY * walk.share + (1 - DUAL_DECAY) * jax.nn.sigmoid(dual)
            mean, scale, memory = moments(g, (walk.mean, walk.square), i)
            moved = walk.delta - rate * (mean / scale)
            top = jnp.max(scale, axis=norms.PIXELS, keepdims=True)
            weight = (1 - share) / share * rate / top[:, 0, 0, 0]
            delta = _shrunk(norm, moved, scale / top, weight)
            return _Walk(norms.box(clean + delta) - clean, *memory, dual, share, found), None

        zeros = clean - clean
        none = zeros[:, 0, 0, 0]
        first = _Walk(zeros, zeros, zeros, none + FIRST_DUAL, none + jax.nn.sigmoid(FIRST_DUAL), nothing_yet(clean))
        walk, _ = jax.lax.scan(step, first, jnp.arange(steps))
        shown, logits = look(clean + walk.delta)
        return nearer(walk.found, shown, ball.distance(shown, clean), misclassified(logits, labels))

    return run


def _shrunk(norm: str, moved: Array, metric: Array, weight: Array) -> Array:
    """argmin_z 1/2 |z - moved|^2 in a diagonal metric of at most 1, plus weight |z|: by proximal gradient steps."""

    def step(z: Array, _: None) -> tuple[Array, None]:
        return proximal(norm, z - metric * (z - moved), weight), None

    return jax.lax.scan(step, moved, length=PROXIMAL_STEPS)[0]


def proximal(norm: str, x: Array, weight: Array) -> Array:
    """argmin_z 1/2 |z - x|_2^2 + weight |z|, for weights [B]."""
    if norm == "l1":
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - expand(weight, x), 0.0)
    if norm == "l2":
        length = norms.l2_norm(x)
        return x * jnp.maximum(1.0 - expand(weight, x) / jnp.maximum(length, 1e-12), 0.0)
    size = jnp.abs(x)  # Linf: x less its projection on the L1 ball of that radius, which is a clip at a level

    def more(level: Array) -> Array:
        return l1_ball.flat(jnp.maximum(size - expand(level, x), 0.0)).sum(-1) > weight

    return jnp.sign(x) * jnp.minimum(size, expand(largest(more, x.shape[0], x.dtype), x))
