"""What the masking report says of an attack's means: the program, its gradients, and whether predictions repeat.

Each function takes what was measured and returns one `Finding` with its threshold; `failures.py` holds
those that look at how attacks fared.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_vit.evaluation.masking.program import lint

# Thresholds. A share is a fraction of the points that are classified correctly without an attack.
ZERO = 0.01  # share of points without a gradient (Pintor et al. accept none)
LARGE_MARGIN = 40.0  # float32 loses the wrong classes' probabilities from a margin of about 88 on, e^-88 = 2^-126
MISMATCH = 0.5  # relative error of the gradient against central differences, median over points
HIDDEN = 0.05  # relative difference between the gradient and the true one, per point
REPEAT = 1e-4  # distance of normalised logits between two calls (AutoAttack's figure)
FEW = 8  # points below which a rule about surviving points does not judge

OK, WARNING, SKIPPED = "ok", "warning", "skipped"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question and its answer.

    Attributes:
      name: of the question, stable.
      verdict: "ok", "warning", or "skipped" where it could not be asked (`saw` says why).
      saw: what was seen, in words and numbers.
      threshold: the rule.
      advice: what to do.
      numbers: the figures of `saw`.
    """

    name: str
    verdict: str
    saw: str
    threshold: str
    advice: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)


def finding(name: str, bad: bool, saw: str, threshold: str, advice: str, **numbers: float) -> Finding:
    """A finding that judged."""
    told = {key: round(float(value), 6) for key, value in numbers.items()}
    return Finding(name, WARNING if bad else OK, saw, threshold, advice, told)


def skipped(name: str, why: str, advice: str = "") -> Finding:
    """A finding that could not be judged."""
    return Finding(name, SKIPPED, why, "", advice)


def percent(share: float) -> str:
    """0.125 -> "12.5 %"."""
    return f"{100 * share:.1f} %"


def static(items: Sequence[lint.Item], difference: np.ndarray | None) -> list[Finding]:
    """The static check, one finding a kind of operation.

    Args:
      items: of `lint.check`.
      difference: [N] between the gradient and the true one, where the program has a stop_gradient or a custom
        derivative: those that change nothing are no warning.
    """
    if not any(item.severity == "warning" for item in items):
        notes = "; ".join(f"{item.kind}: {item.place}" for item in items)
        saw = f"nothing between image and logits hides a gradient{f' (note: {notes})' if notes else ''}"
        return [finding("static_check", False, saw, "no such operation", "")]
    harmless = difference is not None and np.mean(difference > HIDDEN) <= ZERO
    found = []
    for kind in dict.fromkeys(item.kind for item in items if item.severity == "warning"):
        places = [item for item in items if item.kind == kind and item.severity == "warning"]
        excused = harmless and kind in ("stop_gradient", "custom_gradient")
        saw = ", ".join(item.place for item in places[:3]) + (f", {len(places) - 3} more" if len(places) > 3 else "")
        saw += "; it changes no gradient" if excused else ""
        found.append(
            finding(
                kind,
                not excused,
                saw,
                "no such operation between image and logits",
                places[0].advice,
                places=len(places),
            )
        )
    return found


def hidden_gradient(difference: np.ndarray) -> Finding:
    """Does the gradient differ from that of the program without stop_gradient and rules written by hand?"""
    share = np.mean(difference > HIDDEN)
    return finding(
        "hidden_gradient",
        share > ZERO,
        f"the gradient is not the derivative of the function at {percent(share)} of points (median difference"
        f" {np.median(difference):.2f})",
        f"different by more than {percent(HIDDEN)} at no more than {percent(ZERO)} of points",
        "attack the program without its stop_gradient and custom derivatives",
        share=share,
        median=np.median(difference),
    )


def finite_logits(finite: np.ndarray) -> Finding:
    """NaN and infinite logits are neither robust nor broken."""
    share = np.mean(~finite)
    return finding(
        "nonfinite_logits",
        share > 0,
        f"{int(np.sum(~finite))} points have NaN or infinite logits",
        "none",
        "repair the model: an argmax of NaN is no prediction",
        share=share,
    )


def probabilities(total: np.ndarray, least: np.ndarray) -> Finding:
    """Are the outputs probabilities? A loss that takes them for logits puts a second softmax behind the first.

    Args:
      total, least: [N] sum and smallest of each image's outputs.
    """
    share = np.mean((np.abs(total - 1) < 1e-3) & (least >= 0))
    return finding(
        "probabilities_as_logits",
        share > 0.99,
        f"the outputs of {percent(share)} of images are at least 0 and sum to 1",
        "logits are unbounded, and hardly any image's sum to 1",
        "hand on the logits, before the softmax (or the logarithm of its result): gradients vanish where it saturates",
        share=share,
    )


def endless_loop(lost: np.ndarray, rounds: int) -> Finding:
    """Does a loop in the model end, on every image that an attack may show it?"""
    share = np.mean(lost)
    return finding(
        "endless_loop",
        share > 0,
        f"at {percent(share)} of points a loop of the model still runs after {rounds} rounds, on images in the ball",
        f"every loop ends within {rounds} rounds",
        "a model that does not answer is not robust: bound its loops, and count what they leave open as errors",
        share=share,
    )


def repeatability(distance: float, flips: int, precision: float) -> Finding:
    """Does the same batch give the same logits twice? (AutoAttack's check of randomised defences.)"""
    limit = max(REPEAT, 4 * precision)
    return finding(
        "repeatability",
        distance > limit or flips > 0,
        f"repeated calls move the normalised logits by {distance:.1e} and flip {flips} predictions",
        f"at most {limit:.0e} and 0",
        "the model is stochastic: average gradients and predictions over draws (EOT, version='rand')",
        distance=distance,
        flips=flips,
    )


def batch_dependence(distance: float, flips: int, precision: float) -> Finding:
    """Do logits depend on the place in the batch, as with a dropout of fixed key or a batch norm in training?"""
    limit = max(REPEAT, 4 * precision)
    return finding(
        "batch_dependence",
        distance > limit,
        f"reordering the batch moves the normalised logits by {distance:.1e} and flips {flips} predictions",
        f"at most {limit:.0e}",
        "noise with a fixed key or statistics of the batch: switch them off, or attack each image in several batches",
        distance=distance,
        flips=flips,
    )


def unavailable_gradients(zero: np.ndarray, nonfinite: np.ndarray) -> Finding:
    """Indicator 1 of Pintor et al.: points where the loss has no usable gradient, at any step before success."""
    shares = np.mean(zero), np.mean(nonfinite)
    return finding(
        "unavailable_gradients",
        max(shares) > ZERO,
        f"the gradient of the cross-entropy is exactly zero at {percent(shares[0])} of points, not finite at"
        f" {percent(shares[1])}",
        f"at most {percent(ZERO)} of points",
        "attack a loss of the logits (DLR, margin), or through a differentiable substitute (BPDA)",
        zero=shares[0],
        nonfinite=shares[1],
    )


def saturated_loss(zero: np.ndarray, zero_of_logits: np.ndarray, margin: np.ndarray) -> Finding:
    """Is it the softmax that has lost the gradient, while the logits still have theirs?"""
    share = np.mean(zero & ~zero_of_logits & (margin > LARGE_MARGIN))
    return finding(
        "saturated_loss",
        share > ZERO,
        f"at {percent(share)} of points the logits have a gradient and the cross-entropy has none; median margin"
        f" {np.median(margin):.3g}",
        f"at most {percent(ZERO)} of points, with margins above {LARGE_MARGIN:.0f}",
        "the logits are too large for a softmax: divide them by a temperature, or attack the margin or DLR",
        share=share,
        median_margin=np.median(margin),
    )


def saturated_activation(rows: Sequence[tuple[str, str, float]]) -> Finding:
    """Names the bounded activations that are flat almost everywhere, where gradients are missing."""
    flat = [row for row in rows if row[2] > 0.9]
    saw = "; ".join(f"{name}{f' at {line}' if line else ''}: {percent(share)} flat" for name, line, share in flat[:3])
    return finding(
        "saturated_activation",
        bool(flat),
        saw or "no activation is flat at more than 90 % of its values",
        "derivative exactly zero at no more than 90 % of an activation's values, where gradients vanish",
        "attack with a wider activation of the same shape in the backward pass (BPDA)",
        share=flat[0][2] if flat else 0.0,
    )


def gradient_mismatch(measured: np.ndarray, predicted: np.ndarray, scale: np.ndarray, precision: float) -> Finding:
    """Does the gradient predict what the logits do? Central differences at several lengths; the best length counts.

    Args:
      measured, predicted: [S,R,N].
      scale: [N] largest logit, which sets the rounding error of a difference.
      precision: machine epsilon of the coarsest type in the program.
    """
    length = lambda v: np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=1))  # noqa: E731
    signal = np.maximum(length(measured), length(predicted))  # [S,N]
    floor = 32 * precision * np.sqrt(measured.shape[1]) * scale
    error = np.where(signal > floor, length(measured - predicted) / np.maximum(signal, 1e-300), np.nan)
    judged = error[:, np.any(np.isfinite(error), axis=0)]
    name = "gradient_mismatch"
    if judged.shape[1] < FEW:
        return skipped(name, f"only {judged.shape[1]} points move the logits above rounding error", "use more points")
    best = np.nanmin(judged, axis=0)
    return finding(
        name,
        np.median(best) > MISMATCH,
        f"the gradient misses the finite differences of the logits by {percent(np.median(best))} (median of"
        f" {len(best)} points)",
        f"at most {percent(MISMATCH)}",
        "the gradient is not the slope of the model: find the operation that breaks it (static check) and replace it",
        median=np.median(best),
        points=len(best),
    )


def no_gradient(trouble: str) -> Finding:
    """Indicator 1 at its worst: JAX refuses to differentiate the model."""
    return Finding(
        "unavailable_gradients",
        WARNING,
        f"the model cannot be differentiated: {trouble}",
        "a reverse-mode derivative exists",
        "no gradient attack has run: make the model differentiable (static check), or report black-box attacks only",
    )
