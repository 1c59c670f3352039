"""Carlini and Wagner's attack (L2) and elastic nets (EAD, L1): distance plus c times the margin, c by bisection."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count, check_positive, working
from robust_vit.attacks.minimal.nearest import Found, Search, misclassified, nearer, nothing_yet, seen, within
from robust_vit.attacks.updates import moments
from robust_vit.errors import check
from robust_vit.typing import Array, Attack, Keys, LogitsFn

SMOOTHER = 0.999999  # keeps arctanh finite at 0 and 1
BETA = 1e-2  # of EAD: weight of the absolute values, that of the squares is 1


class _Range(NamedTuple):
    """Where the weight of the margin may lie, [B] each; the upper end is inf until something fooled."""

    low: Array
    high: Array
    weight: Array


def cw(
    *,
    epsilon: float | Array,
    norm: str = "l2",
    steps: int = 200,
    rounds: int = 6,
    learning_rate: float = 0.01,
    weight: float = 1e-2,
    confidence: float = 0.0,
) -> Attack:
    """Makes Carlini and Wagner's attack: Adam on arctanh(2x - 1), so that the pixel range needs no clip.

    Args:
      epsilon: radius beyond which a change does not count, in units of the [0,1] pixel range; may be traced.
      norm: "l2".
      steps: gradient evaluations a round; Foolbox takes 10,000.
      rounds: of the bisection for the margin's weight; Foolbox takes 9.
      learning_rate: of Adam.
      weight: of the margin in the first round; tenfold in each until something fools.
      confidence: by how much the margin has to be won.

    Raises:
      ValueError: for a bad keyword.

    Reference: Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644
    """
    given = dict(steps=steps, rounds=rounds, learning_rate=learning_rate, weight=weight, confidence=confidence)
    return within(search_cw(norm=norm, **given), norm, epsilon)


def search_cw(
    *,
    norm: str = "l2",
    steps: int = 200,
    rounds: int = 6,
    learning_rate: float = 0.01,
    weight: float = 1e-2,
    confidence: float = 0.0,
) -> Search:
    """Makes its search; see `cw`."""
    norms.get(norm)
    check("norm", norm, norm == "l2", "'l2' for cw")
    _check(steps, rounds, learning_rate, weight, confidence)

    def walk(clean: Array, slope: Callable, c: Array) -> Callable:
        def image(w: Array) -> Array:
            return 0.5 * (1.0 + jnp.tanh(w) / SMOOTHER)

        first = jnp.arctanh((2.0 * clean - 1.0) * SMOOTHER)

        def step(carry: tuple, i: Array) -> tuple:
            w, memory = carry
            g = slope(lambda w: norms.box(image(w)), lambda delta: jnp.sum(delta**2, norms.PIXELS), w, c)
            mean, scale, memory = moments(g, memory, i)
            w = w - learning_rate * (mean / scale)
            return (w, memory), norms.box(image(w))

        return (first, (first - first, first - first)), step

    return _bisected(norm, walk, steps, rounds, weight, confidence)


def ead(
    *,
    epsilon: float | Array,
    norm: str = "l1",
    steps: int = 200,
    rounds: int = 6,
    learning_rate: float = 0.01,
    weight: float = 1e-2,
    confidence: float = 0.0,
) -> Attack:
    """Makes the elastic-net attack: c margin + |d|_2^2 + 0.01 |d|_1 by accelerated shrinkage (FISTA); keeps the change
    of least L1 norm.

    Args:
      epsilon, steps, rounds, learning_rate, weight, confidence: as of `cw`; the learning rate falls as a square root.
      norm: "l1".

    Raises:
      ValueError: for a bad keyword.

    Reference: Chen et al. 2018, https://arxiv.org/abs/1709.04114
    """
    given = dict(steps=steps, rounds=rounds, learning_rate=learning_rate, weight=weight, confidence=confidence)
    return within(search_ead(norm=norm, **given), norm, epsilon)


def search_ead(
    *,
    norm: str = "l1",
    steps: int = 200,
    rounds: int = 6,
    learning_rate: float = 0.01,
    weight: float = 1e-2,
    confidence: float = 0.0,
) -> Search:
    """Makes its search; see `ead`."""
    norms.get(norm)
    check("norm", norm, norm == "l1", "'l1' for ead")
    _check(steps, rounds, learning_rate, weight, confidence)

    def walk(clean: Array, slope: Callable, c: Array) -> Callable:
        def step(carry: tuple, i: Array) -> tuple:
            points, ahead = carry
            rate = learning_rate * jnp.sqrt(1.0 - i / steps)
            g = slope(lambda x: x, lambda delta: jnp.sum(delta**2, norms.PIXELS), ahead, c)
            delta = ahead - rate * g - clean
            shrunk = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - learning_rate * BETA, 0.0)
            new = norms.box(clean + shrunk)
            return (new, new + i / (i + 3.0) * (new - points)), new

        return (clean, clean), step

    return _bisected(norm, walk, steps, rounds, weight, confidence)


def _bisected(norm: str, walk: Callable, steps: int, rounds: int, weight: float, confidence: float) -> Search:
    """Runs a walk for one weight of the margin after the other: less where something fooled, more where nothing did."""
    ball = norms.get(norm)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array) -> Found:
        del keys  # nothing is drawn
        clean, look = working(images), seen(logits_fn, images)

        def slope(image: Callable, size: Callable, variable: Array, c: Array) -> Array:
            def total(variable: Array) -> Array:
                points = image(variable)
                _, logits = look(points)
                behind = jnp.maximum(confidence - losses.margin(logits, labels), 0.0)
                return jnp.sum(size(points - clean) + c * behind)

            g = jax.grad(total)(variable)
            return jnp.where(jnp.isfinite(g), g, 0.0)

        def one_round(carry: tuple[Found, _Range], _: None) -> tuple[tuple[Found, _Range], None]:
            found, span = carry
            start, step = walk(clean, slope, span.weight)

            def judged(carry: tuple, i: Array) -> tuple[tuple, None]:
                state, found, fooled = carry
                state, points = step(state, i)
                shown, logits = look(points)
                wrong = misclassified(logits, labels)
                return (state, nearer(found, shown, ball.distance(shown, clean), wrong), fooled | wrong), None

            nothing = jnp.isnan(span.weight)
            (_, found, fooled), _ = jax.lax.scan(judged, (start, found, nothing), jnp.arange(steps))
            low = jnp.where(fooled, span.low, span.weight)
            high = jnp.where(fooled, jnp.minimum(span.high, span.weight), span.high)
            middle = jnp.where(jnp.isinf(high), 10.0 * span.weight, 0.5 * (low + jnp.where(jnp.isinf(high), 0.0, high)))
            return (found, _Range(low, high, middle)), None

        zero = clean[:, 0, 0, 0] - clean[:, 0, 0, 0]
        shown, logits = look(clean)
        found = nearer(nothing_yet(clean), shown, ball.distance(shown, clean), misclassified(logits, labels))
        span = _Range(zero, zero + jnp.inf, zero + weight)
        (found, _), _ = jax.lax.scan(one_round, (found, span), length=rounds)
        return found

    return run


def _check(steps: int, rounds: int, learning_rate: float, weight: float, confidence: float) -> None:
    check_count("steps", steps)
    check_count("rounds", rounds)
    check_positive("learning_rate", learning_rate)
    check_positive("weight", weight)
    check("confidence", confidence, confidence >= 0, "at least 0")
