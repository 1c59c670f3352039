"""Curves of a model under attack, as numbers: functions of a `walks.Walk`, or of logits; `curves_plots` draws them.

walked = walks.walk(classifier, images, labels, norm="linf", epsilon=0.1)
curves.by_step(walked)["accuracy"]               # share still right after 0, 1, ... T steps
curves_plots.plot_steps({"robust": walked})      # a Matplotlib figure, one line a model
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import randomness
from robust_vit.analysis.walks import Walk
from robust_vit.attacks import losses, norms
from robust_vit.errors import check
from robust_vit.evaluation import intervals
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.typing import Array, LogitsFn

BINS = 10  # of confidence
LOSS_BAND = (10, 90)  # percentiles


def by_step(walk: Walk) -> dict[str, list[float]]:
    """Accuracy while the attack walks.

    Returns:
      "step" [T+1], "accuracy" (share right without an attack and at every iterate so far), and "low", "high" of its
      95 % Wilson interval. The entry at step 0 is of the random start.
    """
    standing = walk.standing_by_step.sum(axis=1)
    ends = [intervals.wilson(int(n), len(walk.labels)) for n in standing]
    return {
        "step": list(range(walk.steps + 1)),
        "accuracy": (standing / len(walk.labels)).tolist(),
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }


def loss_by_step(walk: Walk) -> dict[str, list[float]]:
    """The cross-entropy in nats at each iterate over the examples: "step", "median", and percentiles 10 and 90 as "low"
    and "high".
    """
    low, median, high = np.percentile(np.asarray(walk.loss, np.float64), (LOSS_BAND[0], 50, LOSS_BAND[1]), axis=1)
    steps = list(range(walk.steps + 1))
    return {"step": steps, "median": median.tolist(), "low": low.tolist(), "high": high.tolist()}


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """How often a confidence is right: by bins ((b-1)/bins, b/bins] of the largest probability.

    The expected calibration error is sum_b n_b / N |accuracy_b - confidence_b|.

    Args:
      logits: [N,K].
      labels: [N].
      bins: how many, of equal width.

    Returns:
      "bins", rows of the bins that have examples {"from", "to", "examples", "confidence", "accuracy", "low", "high"};
      "error", the expected calibration error; "confidence" and "accuracy" over all.

    Reference: Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    check("bins", bins, bins >= 1, "at least 1")
    z = np.asarray(logits, np.float64)
    confidence = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    hits = z.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int), 1, bins)
    rows = []
    for b in range(1, bins + 1):
        here = place == b
        if here.any():
            low, high = intervals.wilson(int(hits[here].sum()), int(here.sum()))
            row = {"from": (b - 1) / bins, "to": b / bins, "examples": int(here.sum())}
            row |= {"confidence": float(confidence[here].mean()), "accuracy": float(hits[here].mean())}
            rows.append(row | {"low": low, "high": high})
    error = sum(row["examples"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(z)
    return {"bins": rows, "error": error, "confidence": float(confidence.mean()), "accuracy": float(hits.mean())}


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[K,K] counts: row the label, column the prediction."""
    classes = logits.shape[1]
    found = np.zeros((classes, classes), np.int64)
    np.add.at(found, (labels, logits.argmax(axis=1)), 1)
    return found


def by_class(walk: Walk) -> list[dict[str, Any]]:
    """Rows {"class", "examples", "clean", "robust", "low", "high"} of the classes that have examples; the interval is
    the robust accuracy's.
    """
    rows = []
    for k in np.unique(walk.labels):
        here = walk.labels == k
        count, standing = int(here.sum()), int(walk.standing[here].sum())
        low, high = intervals.wilson(standing, count)
        clean = float(walk.clean_right[here].mean())
        row = {"class": int(k), "examples": count, "clean": clean, "robust": standing / count}
        rows.append(row | {"low": low, "high": high})
    return rows


def surface(
    logits_fn: LogitsFn,
    image: np.ndarray,
    label: int,
    *,
    norm: str,
    epsilon: float,
    seed: int = 0,
    reach: float = 2.0,
    points: int = 25,
) -> dict[str, np.ndarray]:
    """The loss on a plane through an image: L(x + a g + b r), cut off at the pixel range.

    g is the steepest direction of the gradient and r that of normal noise, both of length 1 in the norm.

    Args:
      logits_fn: the classifier.
      image: [H,W,C] floats in [0,1].
      label: of the image.
      norm, epsilon: of the ball.
      seed: of the random direction.
      reach: how far a and b go, in multiples of epsilon.
      points: on each side, odd so that the image itself is one.

    Returns:
      "along" [P], a and b in units of the pixel range; "loss" [P,P] nats and "wrong" [P,P] bool, rows b, columns a.
    """
    check("points", points, points >= 3 and points % 2 == 1, "odd, at least 3")
    along = np.linspace(-reach * epsilon, reach * epsilon, points, dtype=np.float32)
    logits_fn, image = as_logits_fn(logits_fn), jnp.asarray(image, jnp.float32)
    loss, wrong = _plane(logits_fn, image, jnp.asarray(label), randomness.as_key(seed), jnp.asarray(along), norm=norm)
    return {"along": along, "loss": np.asarray(loss), "wrong": np.asarray(wrong)}


@functools.partial(jax.jit, static_argnames="norm")
def _plane(logits_fn: LogitsFn, image: Array, label: Array, key: Array, along: Array, *, norm: str) -> tuple:
    """([P,P], [P,P]) loss and error, one row of the plane a batch."""
    ball, batch, labels = norms.get(norm), image[None], label[None]
    slope = jax.grad(lambda x: jnp.sum(losses.cross_entropy(logits_fn(x), labels)))(batch)
    directions = (slope, jax.random.normal(key, batch.shape))
    g, r = (ball.steepest(direction, batch) for direction in directions)  # [1,H,W,C]

    def row(b: Array) -> tuple[Array, Array]:
        x = jnp.clip(batch + along[:, None, None, None] * g + b * r, 0.0, 1.0)  # [P,H,W,C]
        logits, all_labels = logits_fn(x), jnp.broadcast_to(label, along.shape)
        return losses.cross_entropy(logits, all_labels), jnp.argmax(logits, axis=-1) != label

    return jax.lax.map(row, along)
