"""TRADES: clean cross-entropy plus the divergence between the clean and the adversarial prediction."""

import jax
import optax

from robust_vit.attacks.losses import cross_entropy, in_float32
from robust_vit.objectives.passes import check_smoothing, check_weight, prediction, two_passes, updates
from robust_vit.typing import NOTHING, Array, Objective, Outcome


def kl_divergence(clean_logits: Array, adversarial_logits: Array) -> Array:
    """Returns KL(p || q) per example, p and q the softmax of the two [B,K] logits; gradients flow through both."""
    log_p, log_q = (jax.nn.log_softmax(in_float32(logits)) for logits in (clean_logits, adversarial_logits))
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def trades(beta: float = 6.0, label_smoothing: float = 0.0, statistics: str = "both") -> Objective:
    """Minimises CE(f(x), y) + beta * KL(f(x) || f(x')), with x' = argmax over the ball of KL(f(x) || f(x')).

    The attack gets the clean prediction as its targets: cross-entropy to a fixed distribution and the KL divergence
    from it have the same input gradient. That gradient vanishes at x itself, so the attack needs a random start; which
    one belongs to the attack: uniform in the ball, or, as in the code of the paper, x + 0.001 N(0,1) (options of pgd).

    Args:
      beta: weight of the divergence (1 / lambda in the paper), >= 0.
      label_smoothing: mass in [0, 1) moved to the uniform distribution in the clean term.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019,
    arXiv 1901.08573; github.com/yaodongyu/TRADES.
    """
    check_weight("beta", beta)
    check_smoothing(label_smoothing)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, prediction(adversary, images), strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        divergence = kl_divergence(clean_logits, adversarial_logits)
        loss = cross_entropy(clean_logits, optax.smooth_labels(targets, label_smoothing)) + beta * divergence
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective
