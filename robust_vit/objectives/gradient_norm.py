"""Training without an attack that yet asks for robustness: the norm of the input gradient is penalised."""

import jax
import jax.numpy as jnp
import optax

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import check_epsilon, per_example
from robust_vit.attacks.losses import cross_entropy
from robust_vit.objectives.passes import check_smoothing, check_weight
from robust_vit.typing import NOTHING, Array, Objective, Outcome

TINY = 1e-12  # keeps the derivative of a length defined at 0
DUALS = {
    "linf": lambda g: jnp.sum(jnp.abs(g), -1),
    "l2": lambda g: jnp.sqrt(jnp.sum(g**2, -1) + TINY**2),
    "l1": lambda g: jnp.max(jnp.abs(g), -1),
}


def gradient_norm(
    weight: float = 1.0, label_smoothing: float = 0.0, norm: str = "linf", epsilon: float = 8 / 255
) -> Objective:
    """Minimises CE(f(x), y) + lambda * epsilon * |grad_x CE(f(x), y)|_*, with |.|_* the dual of the ball's norm.

    epsilon |g|_* is how far the loss can rise inside the ball if it is linear there: at lambda = 1 this is the
    worst case of first order. The norm is L1 for linf, L2 for l2, L-infinity for l1. It calls no attack; the price is
    that of one step, but the backward pass is differentiated: it takes attention that has second derivatives, and
    activations that are smooth (with ReLU the paper sees little of the effect).

    Args:
      weight: lambda >= 0.
      label_smoothing: mass in [0, 1) moved to the uniform distribution in the first term.
      norm, epsilon: of the threat, the latter scaled by the strength; training hands on those of the attack.

    Reference: Rodriguez-Munoz, Wang & Torralba, Characterizing Model Robustness via Natural Input Gradients, ECCV 2024,
    arXiv 2409.20139; the idea: Drucker & LeCun, Improving Generalization Performance Using Double Backpropagation,
    IEEE Transactions on Neural Networks 1992.
    """
    check_weight("weight", weight)
    check_smoothing(label_smoothing)
    norms.get(norm)
    check_epsilon(epsilon, norm)
    length = DUALS[norm]

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        def total(x: Array):
            logits, after = forward(x, stats)
            return jnp.sum(cross_entropy(logits, targets)), (logits, after)

        slope, (logits, after) = jax.grad(total, has_aux=True)(images)
        steepness = length(slope.reshape(len(images), -1))
        loss = cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        loss = loss + weight * epsilon * per_example(strength, images) * steepness
        return Outcome(loss, after, clean_logits=logits)

    return objective
