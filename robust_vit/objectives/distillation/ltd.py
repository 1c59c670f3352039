"""LTD, low-temperature distillation: TRADES with the soft labels of a teacher in place of the given ones."""

import jax

from robust_vit.attacks.losses import cross_entropy
from robust_vit.objectives.passes import check_temperature, check_weight, prediction, taught, two_passes, updates
from robust_vit.objectives.trades import kl_divergence
from robust_vit.typing import NOTHING, Objective, Outcome


def ltd(beta: float = 6.0, temperature: float = 1.0, statistics: str = "both") -> Objective:
    """Minimises CE(f(x), softmax(Z_t(x) / tau)) + beta * KL(f(x) || f(x')), with x' that of TRADES.

    Z_t are the logits of a teacher trained without an attack. A low temperature tau keeps its labels near the given
    ones and yet says which image is ambiguous. The student's temperature is 1, in training as afterwards: defensive
    distillation, which trains at a high one and evaluates at 1, only hides the gradient.

    Args:
      beta: weight of the divergence, >= 0.
      temperature: tau > 0 of the teacher alone; at 1 its labels are its own prediction.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: Chen & Lee, LTD: Low Temperature Distillation for Robust Adversarial Training, 2021, arXiv 2111.02331.
    Its code is not published; the objective is built from what the paper says of it.
    """
    check_weight("beta", beta)
    check_temperature(temperature)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, prediction(adversary, images), strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        label = jax.nn.softmax(taught(aside, images) / temperature)
        loss = cross_entropy(clean_logits, label) + beta * kl_divergence(clean_logits, adversarial_logits)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective
