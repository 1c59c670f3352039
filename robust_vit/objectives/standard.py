"""Training without an attack: the cross-entropy of the clean images."""

import optax

from robust_vit.attacks.losses import cross_entropy
from robust_vit.objectives.passes import check_smoothing
from robust_vit.typing import NOTHING, Objective, Outcome


def standard(label_smoothing: float = 0.0) -> Objective:
    """Minimises CE(f(x), y).

    Args:
      label_smoothing: mass in [0, 1) moved from the label to the uniform distribution (Szegedy et al. 2016).
    """
    check_smoothing(label_smoothing)

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        logits, statistics = forward(images, statistics)
        loss = cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        return Outcome(loss, statistics, clean_logits=logits)

    return objective
