"""Adversarial training: the cross-entropy at the attack's images."""

import optax

from robust_vit.attacks.losses import cross_entropy
from robust_vit.errors import check
from robust_vit.typing import NOTHING, Objective, Outcome


def adversarial(label_smoothing: float = 0.0) -> Objective:
    """Minimises CE(f(x'), y) with x' = argmax over the ball of CE(f(x'), y).

    One training pass, on the adversarial images alone: no clean forward is spent on a meter.

    Args:
      label_smoothing: mass in [0, 1) moved to the uniform distribution; the attack sees the labels as given.

    Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv 1706.06083.
    """
    check("objective.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        logits, statistics = forward(attacked, statistics)
        loss = cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        return Outcome(loss, statistics, adversarial_logits=logits, attacked=attacked)

    return objective
