"""RSLAD: the soft labels of a robust teacher, for the student and for its attack."""

import jax

from robust_vit.attacks.losses import kl
from robust_vit.objectives.passes import check_share, taught, two_passes, updates
from robust_vit.typing import NOTHING, Objective, Outcome


def rslad(alpha: float = 5 / 6, statistics: str = "both") -> Objective:
    """Minimises (1 - a) KL(T(x) || S(x)) + a KL(T(x) || S(x')), with x' = argmax over the ball of KL(T(x) || S(x')).

    T(x) is the softmax of the robust teacher at the clean image: no hard label is used, not in the attack either. The
    code of the paper divides the divergences by the number of classes too.

    Args:
      alpha: a in [0, 1].
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Zi et al., Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better,
    ICCV 2021, arXiv 2108.07969; github.com/zibojia/RSLAD.
    """
    check_share("alpha", alpha)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        label = jax.nn.softmax(taught(aside, images))
        attacked = attack(keys, adversary, images, label, strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        loss = (1.0 - alpha) * kl(clean_logits, label) + alpha * kl(adversarial_logits, label)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective
