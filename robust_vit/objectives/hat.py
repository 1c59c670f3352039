"""HAT: TRADES, and a helper, trained without an attack, that labels points beyond the attacked image."""

import jax.numpy as jnp
import optax

from robust_vit.attacks.losses import cross_entropy
from robust_vit.errors import check
from robust_vit.objectives.passes import check_smoothing, check_weight, prediction, taught, two_passes, updates
from robust_vit.objectives.trades import kl_divergence
from robust_vit.typing import NOTHING, Objective, Outcome


def hat(
    beta: float = 2.5, gamma: float = 0.5, h: float = 2.0, label_smoothing: float = 0.0, statistics: str = "both"
) -> Objective:
    """Minimises CE(f(x), y) + beta * KL(f(x) || f(x')) + gamma * CE(f(x + h r), argmax g(x')), with r = x' - x.

    x' is that of TRADES; g, the teacher, is the helper: a classifier of the same data, trained without an attack and
    frozen. x + h r lies beyond x', is not clipped to [0,1], and is to be called what the helper calls x': that keeps
    the margin in the direction of the attack from growing further than it has to.

    Args:
      beta, gamma: weights >= 0; the paper has 2.5 and 0.5 on CIFAR-10, beta 3.5 with extra data.
      h: how far beyond, > 0, in units of r.
      label_smoothing: mass in [0, 1) moved to the uniform distribution in the clean term.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" and then that of
        the helper's points, as in its code.

    Reference: Rade & Moosavi-Dezfooli, Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off,
    ICLR 2022; github.com/imrahulr/hat.
    """
    check_weight("beta", beta)
    check_weight("gamma", gamma)
    check("objective.h", h, h > 0, "> 0")
    check_smoothing(label_smoothing)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, prediction(adversary, images), strength)
        named = jnp.argmax(taught(aside, attacked), -1)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        beyond, after = forward(images + h * (attacked - images), stats)
        loss = (
            cross_entropy(clean_logits, optax.smooth_labels(targets, label_smoothing))
            + beta * kl_divergence(clean_logits, adversarial_logits)
            + gamma * cross_entropy(beyond, named)
        )
        return Outcome(loss, after if all(moves) else stats, clean_logits, adversarial_logits, attacked)

    return objective
