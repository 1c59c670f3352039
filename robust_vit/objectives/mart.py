"""MART: boosted cross-entropy at the attacked images, and a divergence that weighs what is misclassified."""

import jax
import jax.numpy as jnp

from robust_vit.attacks.losses import as_distribution, as_labels, cross_entropy, in_float32
from robust_vit.objectives.passes import check_weight, two_passes, updates
from robust_vit.objectives.trades import kl_divergence
from robust_vit.typing import NOTHING, Array, Objective, Outcome


def mart(beta: float = 5.0, statistics: str = "both") -> Objective:
    """Minimises BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)).

    x' = argmax over the ball of CE(f(x'), y), p is the softmax, and BCE(p, y) = - log p_y - log(1 - max over k != y of
    p_k). For soft targets y is their most probable class in the second logarithm, and p_y the mean of p under them.

    The code of the paper adds 1e-4 inside the second logarithm, which bounds it by 9.2 and takes away its gradient
    where the model is surest and wrong; here it is taken of the logits and needs no bound.

    Args:
      beta: lambda in the paper, >= 0.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020;
    github.com/YisenWang/MART.
    """
    check_weight("beta", beta)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        y = as_distribution(targets, clean_logits.shape[-1])
        p_y = jnp.sum(y * jax.nn.softmax(in_float32(clean_logits)), -1)
        divergence = kl_divergence(clean_logits, adversarial_logits)
        loss = boosted_cross_entropy(adversarial_logits, targets) + beta * divergence * (1.0 - p_y)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective


def boosted_cross_entropy(logits: Array, targets: Array) -> Array:
    """- log p_y - log(1 - max over k != y of p_k), [B]."""
    log_p = jax.nn.log_softmax(in_float32(logits))
    classes = log_p.shape[-1]
    is_y = jax.nn.one_hot(as_labels(targets), classes, dtype=bool)
    strongest = jnp.argmax(jnp.where(is_y, -jnp.inf, log_p), -1)
    others = jnp.where(jax.nn.one_hot(strongest, classes, dtype=bool), -jnp.inf, log_p)
    return cross_entropy(logits, targets) - jax.nn.logsumexp(others, axis=-1)  # log(1 - p_k) = log of the other p
