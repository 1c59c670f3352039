"""Sim-CLIP: an encoder that gives an image and its attacked view features of one direction; no labels, no teacher."""

import jax

from robust_vit.objectives.encoders.features import climb, cosine, distance_to
from robust_vit.typing import NOTHING, Objective, Outcome


def sim_clip() -> Objective:
    """Minimises -(cos(f(x'), sg f(x)) + cos(f(x), sg f(x'))) / 2, where sg stops the gradient, with
    x' = argmax over the ball of |f(x') - f(x)|^2.

    The stopped gradients keep the features from collapsing to one point (SimSiam). At x the attack's gradient is 0, so
    it needs a random start.

    Reference: Hossain and Imteaj, Sim-CLIP: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-
    Rich Vision-Language Models, 2024, arXiv 2407.14971; github.com/speedlab-git/SimCLIP (PGD-10; AdamW 1e-3, weight
    decay 1e-5, batch 64, 10,000 steps).
    """

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        attacked = climb(attack, keys, distance_to(adversary, adversary(images)), images, strength)
        clean, statistics = forward(images, statistics)
        adversarial, statistics = forward(attacked, statistics)
        stop = jax.lax.stop_gradient
        loss = -(cosine(adversarial, stop(clean)) + cosine(clean, stop(adversarial))) / 2
        return Outcome(loss, statistics, attacked=attacked)

    return objective
