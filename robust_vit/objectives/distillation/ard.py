"""ARD, adversarially robust distillation: the student at the attacked image says what the teacher says of the clean."""

import jax
import optax

from robust_vit.attacks.losses import cross_entropy, kl
from robust_vit.objectives.passes import check_share, check_smoothing, check_temperature, taught, two_passes, updates
from robust_vit.typing import NOTHING, Objective, Outcome


def ard(
    alpha: float = 1.0, temperature: float = 30.0, label_smoothing: float = 0.0, statistics: str = "both"
) -> Objective:
    """Minimises a t^2 KL(T_t(x) || S_t(x')) + (1 - a) CE(S(x), y), with x' = argmax over the ball of CE(S(x'), y).

    T_t and S_t are the softmax at temperature t of a robust teacher and of the student. The code of the paper divides
    the divergence by the number of classes too. (Attention random dropping, which also goes by ARD, is an attack's.)

    Args:
      alpha: a in [0, 1].
      temperature: t > 0 of both.
      label_smoothing: mass in [0, 1) moved to the uniform distribution in the clean term.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Goldblum et al., Adversarially Robust Distillation, AAAI 2020, arXiv 1905.09747;
    github.com/goldblum/AdversariallyRobustDistillation.
    """
    check_share("alpha", alpha)
    check_temperature(temperature)
    check_smoothing(label_smoothing)
    moves, t = updates(statistics), temperature

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        lesson = t**2 * kl(adversarial_logits / t, jax.nn.softmax(taught(aside, images) / t))
        loss = alpha * lesson
        loss = loss + (1.0 - alpha) * cross_entropy(clean_logits, optax.smooth_labels(targets, label_smoothing))
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective
