"""Training without an attack: the cross-entropy of the clean images."""

import jax
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.typing import Array, Objective, Outcome


def smooth(targets: Array, smoothing: float) -> Array:
    """Label smoothing: (1 - s) * targets + s / K, for targets [B,K] (Szegedy et al. 2016)."""
    return (1.0 - smoothing) * targets + smoothing / targets.shape[-1]


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Returns -sum_k t_k log p_k per example, in float32 at least: [B] from logits [B,K] and targets [B,K]."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def standard(label_smoothing: float = 0.0) -> Objective:
    """Minimises CE(f(x), y).

    Args:
      label_smoothing: mass in [0, 1) moved from the label to the uniform distribution.
    """
    check("objective.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")

    def objective(forward, statistics, adversary, attack, keys, images, targets, strength=1.0) -> Outcome:
        logits, statistics = forward(images, statistics)
        return Outcome(cross_entropy(logits, smooth(targets, label_smoothing)), statistics, clean_logits=logits)

    return objective
