"""IKL and GKL: the KL divergence taken apart into a weighted squared error of logits and a soft cross-entropy.

The weights are what a class is confused with on the mean, which both remember: class by class, over the epoch before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_vit.attacks.losses import as_distribution, cross_entropy, in_float32
from robust_vit.objectives.passes import (
    check_smoothing,
    check_temperature,
    check_weight,
    prediction,
    two_passes,
    updates,
)
from robust_vit.typing import NOTHING, Array, Objective, Outcome


class ClassMeans(NamedTuple):
    """What a model answers to each class on the mean: of the last epoch, and of this one so far."""

    means: Array  # [K,K], row y: mean over the last epoch's examples of class y of softmax(f(x) / T)
    sums: Array  # [K,K], of this epoch
    counts: Array  # [K], examples of this epoch
    epoch: Array  # [], which epoch that is


def class_means(num_classes: int) -> ClassMeans:
    """What is remembered at the first step: every class is confused with all alike."""
    k = num_classes
    return ClassMeans(jnp.full((k, k), 1.0 / k), jnp.zeros((k, k)), jnp.zeros(k), jnp.zeros(()))


def at_epoch(memory: ClassMeans, epoch: Array | float) -> ClassMeans:
    """The memory as a step of that epoch finds it: when one has ended its means count, and sums begin anew.

    A class that the epoch did not show keeps the means it had.
    """
    now = jnp.floor(jnp.asarray(epoch, jnp.float32))
    seen = memory.counts[:, None]
    collected = jnp.where(seen > 0, memory.sums / jnp.where(seen > 0, seen, 1.0), memory.means)
    fresh = ClassMeans(collected, jnp.zeros_like(memory.sums), jnp.zeros_like(memory.counts), now)
    return jax.tree.map(lambda new, old: jnp.where(now > memory.epoch, new, old), fresh, memory)


def collected(memory: ClassMeans, logits: Array, y: Array, temperature: float) -> ClassMeans:
    """Adds a batch: logits [B,K] of the clean images, targets y [B,K]."""
    p = jax.nn.softmax(jax.lax.stop_gradient(in_float32(logits)) / temperature)
    sums = jnp.einsum("bk,bj->kj", y, p, precision="highest")
    return memory._replace(sums=memory.sums + sums, counts=memory.counts + jnp.sum(y, 0))


def weighted_squared_error(clean_logits: Array, adversarial_logits: Array, s: Array) -> Array:
    """1/4 sum_ij s_i s_j (dN_ij - dA_ij)^2 [B], with dN_ij = z_i - z_j of the clean logits and dA of the adversarial.

    Taken as S/2 sum_i s_i (d_i - m)^2, with d = z(x) - z(x'), S = sum_i s_i and m the mean of d under s: K terms, not
    K^2, which 1000 classes could not hold.

    Args:
      clean_logits, adversarial_logits: [B,K].
      s: weights of the classes [B,K], >= 0.
    """
    d = in_float32(clean_logits) - in_float32(adversarial_logits)
    total = jnp.sum(s, -1, keepdims=True)
    m = jnp.sum(s * d, -1, keepdims=True) / total
    return 0.5 * total[:, 0] * jnp.sum(s * (d - m) ** 2, -1)


def ikl(
    beta: float = 20.0,
    alpha: float = 4.0,
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
    statistics: str = "both",
) -> Objective:
    """Minimises CE(f(x), y) + beta * wMSE + alpha * SCE, with x' = argmax over the ball of SCE.

    wMSE = 1/4 sum_ij w_ij (dN_ij - dA_ij)^2, dN_ij = z_i - z_j of the clean logits and dA of the adversarial, gradients
    through both; SCE = - sum_k p_k log q_k, q = softmax(f(x')), p = softmax(f(x)) fixed. These are the two parts of
    the KL divergence's gradient; the improvement is in w: w_ij = s_i s_j, with s the mean of softmax(f / T) over the
    examples of class y in the epoch before, in place of p itself.

    Args:
      beta, alpha: weights >= 0, those of the paper on CIFAR-10.
      temperature: T > 0 of the class means alone.
      label_smoothing: mass in [0, 1) moved to the uniform distribution in the clean term.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, arXiv 2305.13948;
    github.com/jiequancui/DKL, DKLv1.
    """
    return _objective(beta, alpha, temperature, label_smoothing, statistics, lambda s: s, normalised=False)


def gkl(
    beta: float = 20.0,
    alpha: float = 4.0,
    temperature: float = 4.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    statistics: str = "both",
) -> Objective:
    """Minimises what `ikl` does with s := s^gamma and w divided by its sum.

    With gamma below 1 the classes that are seldom confused count too. Each example divides by the sum of its own w; the
    code divides by that of the batch, which is the same at gamma = 1, and otherwise would make an example's loss depend
    on its batch.

    Args:
      beta, alpha, temperature, label_smoothing, statistics: as in `ikl`.
      gamma: exponent >= 0 of the class means; the paper has 1 with T = 4, or 0.2 with T = 1.

    Reference: Cui et al., Generalized Kullback-Leibler Divergence Loss, 2025, arXiv 2503.08038;
    github.com/jiequancui/DKL, DKLv2.
    """
    check_weight("gamma", gamma)
    return _objective(beta, alpha, temperature, label_smoothing, statistics, lambda s: s**gamma, normalised=True)


def _objective(beta, alpha, temperature, label_smoothing, statistics, weights, normalised) -> Objective:
    check_weight("beta", beta)
    check_weight("alpha", alpha)
    check_temperature(temperature)
    check_smoothing(label_smoothing)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, prediction(adversary, images), strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        y = as_distribution(targets, clean_logits.shape[-1])
        memory = at_epoch(aside.memory, aside.epoch)
        s = weights(y @ memory.means)
        s = s / jnp.sum(s, -1, keepdims=True) if normalised else s
        p = jax.lax.stop_gradient(jax.nn.softmax(in_float32(clean_logits)))
        loss = (
            cross_entropy(clean_logits, optax.smooth_labels(y, label_smoothing))
            + beta * weighted_squared_error(clean_logits, adversarial_logits, s)
            + alpha * cross_entropy(adversarial_logits, p)
        )
        memory = collected(memory, clean_logits, y, temperature)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked, memory)

    return objective
