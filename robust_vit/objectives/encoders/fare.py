"""FARE: an encoder whose features under attack stay where the original encoder puts the clean images; no labels."""

import jax

from robust_vit.errors import check
from robust_vit.objectives.encoders.features import climb, distance_to, squared_distance
from robust_vit.typing import NOTHING, Objective, Outcome


def fare(clean_weight: float = 0.0) -> Objective:
    """Minimises |f(x') - f0(x)|^2, with x' = argmax over the ball of |f(x') - f0(x)|^2 and f0 the frozen original.

    Features are not normalised and the distance is summed over their dimensions. At the first step f is f0 and the
    gradient at x is 0, so the attack needs a random start. `aside.teacher` is f0.

    Args:
      clean_weight: w in [0, 1): the loss is (1 - w) of the above and w |f(x) - f0(x)|^2.

    Reference: Schlarmann et al., Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust
    Large Vision-Language Models, ICML 2024, arXiv 2402.12336; github.com/chs20/RobustVLM (PGD-10, step 1/255, epsilon 2
    or 4/255, momentum 0.9 into the sign; AdamW 1e-5, weight decay 1e-4, batch 128, 20,000 steps).
    """
    check("objective.options.clean_weight", clean_weight, 0 <= clean_weight < 1, "in [0, 1)")

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        original = jax.lax.stop_gradient(aside.teacher(images))  # [B,D]
        attacked = climb(attack, keys, distance_to(adversary, original), images, strength)
        features, statistics = forward(attacked, statistics)
        loss = squared_distance(features, original)
        if clean_weight:
            features, statistics = forward(images, statistics)
            loss = (1 - clean_weight) * loss + clean_weight * squared_distance(features, original)
        return Outcome(loss, statistics, attacked=attacked)

    return objective
