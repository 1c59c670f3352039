"""The parts of the masking report: each runs its probes on the points and judges what they measured."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import attacks
from robust_vit.attacks.straight_through import passes
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.masking import failures, findings, probes
from robust_vit.evaluation.masking.findings import Finding
from robust_vit.evaluation.masking.program import lint, true_gradient
from robust_vit.program import loops
from robust_vit.typing import Array, LogitsFn

SWEEP = (0.25, 0.5, 1.0, 2.0, 4.0)  # multiples of epsilon, before the whole box
NOISE_DRAWS = 10
DIRECTIONS = 8
LENGTHS = (1 / 64, 1 / 8, 1 / 2)  # of finite differences, as fractions of epsilon
FEW_POINTS = 16  # for what is evaluated outside a compiled program
ROUNDS = 1000  # of a loop of unknown length, before it counts as one that never ends
# Numbers that keep the draws of the probes apart.
WALK, NOISE, DIFFERENCES, BLACK_BOX, TRANSFER, RETURNS = range(6)


def whole_box(norm: str, images: Array) -> float:
    """The radius from which on the ball around any image holds every image."""
    values = float(np.prod(images.shape[1:]))
    return {"linf": 1.0, "l2": values**0.5, "l1": values}[norm]


def program(points: probes.Sample, logits_fn: LogitsFn) -> tuple[list[Finding], float]:
    """The static check of `logits_fn`, the gradient it may hide, and the machine epsilon of the program."""
    shape = _shape(points)
    items = lint.check(logits_fn, shape)
    kinds = {item.kind for item in items}
    difference = None
    inside = "callback" not in kinds  # nobody can differentiate what has left JAX
    if inside and kinds & {"stop_gradient", "custom_gradient"} and not probes.has_gradient(logits_fn, shape):
        difference = points.run(jax.jit(true_gradient.compare), None)
    found = findings.static(items, difference)
    if difference is not None:
        found.append(findings.hidden_gradient(difference))
    return found, lint.precision(logits_fn, shape)


def ending(points: probes.Sample) -> probes.Sample:
    """The same points, and a classifier that returns whatever its loops do."""
    if not loops.has_while(points.logits_fn, _shape(points)):
        return points
    return points.against(loops.bounded(points.logits_fn, ROUNDS))


def endless_loop(points: probes.Sample, logits_fn: LogitsFn, norm: str, epsilon: float) -> list[Finding]:
    """Looks for images in the ball on which a loop of the classifier would not have ended.

    Args:
      points: with the classifier of `ending`.
      logits_fn: the classifier itself.
      norm, epsilon: of the ball.
    """
    if points.logits_fn is logits_fn:
        return []
    poisoned = attacks.straight_through(loops.bounded(logits_fn, ROUNDS, poison=True))
    walk = jax.jit(functools.partial(probes.walk, norm=norm, loss="cross_entropy", steps=10))
    loss = points.against(poisoned).run(walk, RETURNS, epsilon, 0.5 * epsilon, 0.0)["loss"]
    return [findings.endless_loop(np.isnan(loss).any(axis=0), ROUNDS)]


def _shape(points: probes.Sample) -> jax.ShapeDtypeStruct:
    """Of a batch of images."""
    return jax.ShapeDtypeStruct((points.batch_size, *points.images.shape[1:]), points.images.dtype)


def with_straight_through(
    points: probes.Sample, broken: np.ndarray, norm: str, epsilon: float, steps: int
) -> tuple[Finding, np.ndarray]:
    """The same walks where gradients pass what hides them; and the points that they broke, [N]."""
    kinds = passes(points.logits_fn, _shape(points))
    if not kinds:
        return findings.skipped("straight_through", "the program holds nothing to pass through"), np.zeros_like(broken)
    through = points.against(attacks.straight_through(points.logits_fn))
    by_through = np.zeros_like(broken)
    for loss in _losses(points):
        walk = jax.jit(functools.partial(probes.walk, norm=norm, loss=loss, steps=steps))
        by_through |= through.run(walk, WALK, epsilon, 0.5 * epsilon, 1.0)["wrong"].any(axis=0)
    return failures.straight_through(kinds, broken, by_through), by_through


def _losses(points: probes.Sample) -> tuple[str, str]:
    """Cross-entropy, and a loss without softmax."""
    classes = jax.eval_shape(points.logits_fn, jnp.asarray(points.images[:1])).shape[-1]
    return "cross_entropy", "dlr" if classes > 2 else "margin"


def repeats(points: probes.Sample, precision: float) -> list[Finding]:
    """Calls the model again, and in another order; as it is, because a compiled program would repeat itself."""
    images = jnp.asarray(points.images[:FEW_POINTS])
    first = _normalised(points.logits_fn(images))
    again = [_normalised(points.logits_fn(images)) for _ in range(3)]
    turned = np.roll(_normalised(points.logits_fn(jnp.roll(images, 1, axis=0))), -1, axis=0)
    apart = max(_distance(first, other) for other in again)
    flips = max(_flips(first, other) for other in again)
    found = [findings.repeatability(apart, flips, precision)]
    if found[0].verdict == findings.WARNING:
        return [*found, findings.skipped("batch_dependence", "the model does not repeat itself")]
    return [*found, findings.batch_dependence(_distance(first, turned), _flips(first, turned), precision)]


def _normalised(logits: Array) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits / np.maximum(np.linalg.norm(logits, axis=-1, keepdims=True), 1e-300)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.linalg.norm(a - b, axis=-1)))


def _flips(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.sum(a.argmax(-1) != b.argmax(-1)))


def first_order(
    points: probes.Sample, margin: np.ndarray, precision: float, norm: str, epsilon: float, steps: int, constant: bool
) -> tuple[list[Finding], np.ndarray]:
    """What follows the gradient, and the points it broke, [N]; `constant`: every point is given the same class."""
    first, second = _losses(points)
    walks = {
        loss: jax.jit(functools.partial(probes.walk, norm=norm, loss=loss, steps=steps)) for loss in (first, second)
    }
    walk = walks[first]
    ce = points.run(walk, WALK, epsilon, 0.5 * epsilon, 1.0)
    other = points.run(walks[second], WALK, epsilon, 0.5 * epsilon, 1.0)
    one = points.run(walk, WALK, epsilon, epsilon, 0.0)["wrong"][1]  # the first step of full length from the image
    by_ce, by_other = ce["wrong"].any(axis=0), other["wrong"].any(axis=0)
    broken = by_ce | by_other
    found = _gradients(points, ce, margin, precision, norm, epsilon)
    found += [
        failures.weaker_attack_wins(
            "one_step",
            "one step",
            one,
            by_ce,
            "many steps must do what one does: the gradient misleads, or the step is bad",
        ),
        failures.loss_gap(
            f"cross_entropy_against_{second}", second.upper() if second == "dlr" else second, by_ce, by_other
        ),
        failures.constant_prediction() if constant else _sweep(points, walk, norm, epsilon),
        failures.loss_against_steps(ce["loss"]),
        failures.silent_success(ce["wrong"]),
        failures.incomplete_optimisation(ce["loss"], by_ce),
    ]
    return found, broken | one


def _gradients(
    points: probes.Sample, ce: dict[str, np.ndarray], margin: np.ndarray, precision: float, norm: str, epsilon: float
) -> list[Finding]:
    """Are the gradients there, and are they those of the model?"""
    slope = points.run(
        jax.jit(functools.partial(probes.differences, norm=norm, directions=DIRECTIONS)),
        DIFFERENCES,
        epsilon * np.asarray(LENGTHS, np.float32),
    )
    standing = ~np.maximum.accumulate(ce["wrong"], axis=0)[:-1]  # a gradient may vanish once the point is broken
    zero = np.any(ce["zero"] & standing, axis=0)
    found = [
        findings.unavailable_gradients(zero, np.any(ce["nonfinite"] & standing, axis=0)),
        findings.saturated_loss(zero, slope["zero"], margin),
        findings.gradient_mismatch(slope["measured"], slope["predicted"], slope["scale"], precision),
    ]
    if found[0].verdict == findings.WARNING:
        images = jnp.asarray(points.images[:FEW_POINTS])
        found.append(findings.saturated_activation(true_gradient.saturation(points.logits_fn, images)))
    return found


def _sweep(points: probes.Sample, walk: Callable[..., Any], norm: str, epsilon: float) -> Finding:
    largest = whole_box(norm, points.images)
    epsilons = [*(multiple * epsilon for multiple in SWEEP if multiple * epsilon < largest), largest]
    wrong = [points.run(walk, WALK, e, 0.5 * e, 1.0)["wrong"].any(axis=0) for e in epsilons]
    return failures.epsilon_sweep(epsilons, [float(np.mean(~row)) for row in wrong])


def without_gradient(
    points: probes.Sample,
    margin: np.ndarray,
    broken: np.ndarray,
    norm: str,
    epsilon: float,
    steps: int,
    queries: int,
    transfer_from: LogitsFn | None,
) -> tuple[list[Finding], np.ndarray]:
    """Noise and attacks that ask for logits only, held against what the gradients broke, [N]; and what they broke."""
    shaken = points.run(jax.jit(functools.partial(probes.noise, norm=norm, draws=NOISE_DRAWS)), NOISE, epsilon)
    advice = "an attack without gradients must not win: the white-box gradients are masked"
    # The schedule of window sizes is stretched to the few queries: AutoAttack's is made for thousands.
    square = attacks.build("square", norm=norm, epsilon=epsilon, queries=queries, rescale_schedule=True)
    probe = jax.jit(functools.partial(probes.attacked, attack=square))
    by_square = points.run(probe, BLACK_BOX, points.logits_fn)["wrong"]
    found = [
        failures.noise(shaken["wrong"], broken),
        failures.unstable_predictions(margin, shaken["margin"], broken),
        failures.weaker_attack_wins("black_box", f"Square with {queries} queries", by_square, broken, advice),
    ]
    others = by_square | shaken["wrong"].any(axis=0)
    if transfer_from is None:
        return [*found, findings.skipped("transfer", "no other model was given (transfer_from)")], others
    pgd = attacks.pgd(norm=norm, epsilon=epsilon, steps=steps, keep="success")
    probe = jax.jit(functools.partial(probes.attacked, attack=pgd))
    by_transfer = points.run(probe, TRANSFER, as_logits_fn(transfer_from))["wrong"]
    found.append(failures.weaker_attack_wins("transfer", "PGD on another model", by_transfer, broken, advice))
    return found, others | by_transfer
