"""SCORE: squared distances between probabilities, which obey the triangle inequality, in place of KL divergences."""

import jax

from robust_vit.attacks.losses import as_distribution, in_float32, squared_error
from robust_vit.errors import check
from robust_vit.objectives.passes import check_smoothing, check_weight, prediction, two_passes, updates
from robust_vit.typing import NOTHING, Array, Objective, Outcome


def score_adversarial(clip: float = 0.0, label_smoothing: float = 0.0) -> Objective:
    """Minimises max(0, |p(x') - y~|^2 - c), with x' = argmax over the ball of |p(x') - y|^2; p is the softmax.

    What the attack maximises belongs to the attack: the paper's is `attack.loss = "squared_error"`.

    Args:
      clip: c >= 0, a squared distance that counts as none. The code of the paper is told a missing confidence l
        instead, and takes c = l^2 K / (K - 1): 0.178 for its 0.4 on 10 classes.
      label_smoothing: s in y~ = (1 - s K / (K - 1)) y + s / (K - 1), the mass moved from the label to the others.

    Reference: Pang et al., Robustness and Accuracy Could Be Reconcilable by (Proper) Definition, ICML 2022,
    arXiv 2202.10103; github.com/P2333/SCORE.
    """
    _check(clip, label_smoothing)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        logits, stats = forward(attacked, stats)
        distance = squared_error(logits, smoothed(targets, logits.shape[-1], label_smoothing))
        return Outcome(jax.nn.relu(distance - clip), stats, adversarial_logits=logits, attacked=attacked)

    return objective


def score_trades(
    beta: float = 4.0, clip: float = 0.0, label_smoothing: float = 0.0, statistics: str = "both"
) -> Objective:
    """Minimises |p(x) - y~|^2 + beta * max(0, |p(x') - p(x)|^2 - c).

    x' = argmax over the ball of |p(x') - p(x)|^2: the attack gets the clean prediction as its targets, and that it
    maximises the squared distance from it is said by `attack.loss = "squared_error"`. As in TRADES the start is random.

    Args:
      beta: >= 0; the paper has 4 with generated data, 6 without.
      clip: c >= 0, a squared distance that counts as none; 0 with generated data.
      label_smoothing: as in `score_adversarial`.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order.

    Reference: as `score_adversarial`.
    """
    check_weight("beta", beta)
    _check(clip, label_smoothing)
    moves = updates(statistics)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, prediction(adversary, images), strength)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        y = smoothed(targets, clean_logits.shape[-1], label_smoothing)
        distance = squared_error(adversarial_logits, jax.nn.softmax(in_float32(clean_logits)))
        loss = squared_error(clean_logits, y) + beta * jax.nn.relu(distance - clip)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective


def smoothed(targets: Array, classes: int, label_smoothing: float) -> Array:
    """y~ = (1 - s K / (K - 1)) y + s / (K - 1): the label keeps 1 - s, each other class gets s / (K - 1)."""
    y = as_distribution(targets, classes)
    allowed = 1.0 - 1.0 / classes
    check("objective.label_smoothing", label_smoothing, label_smoothing <= allowed, f"at most 1 - 1/K = {allowed:g}")
    return (1.0 - label_smoothing * classes / (classes - 1)) * y + label_smoothing / (classes - 1)


def _check(clip: float, label_smoothing: float) -> None:
    check_weight("clip", clip)
    check_smoothing(label_smoothing)
