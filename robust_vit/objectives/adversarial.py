"""Adversarial training: the cross-entropy at the attack's images, and GradAlign, which keeps one step honest."""

import jax
import jax.numpy as jnp
import optax

from robust_vit.attacks import norms
from robust_vit.attacks.arguments import check_epsilon, per_example
from robust_vit.attacks.losses import cross_entropy
from robust_vit.objectives.passes import check_smoothing, check_weight, own_keys
from robust_vit.typing import NOTHING, Array, Forward, Objective, Outcome, Statistics


def adversarial(
    label_smoothing: float = 0.0, grad_align: float = 0.0, norm: str = "linf", epsilon: float = 8 / 255
) -> Objective:
    """Minimises CE(f(x'), y) + lambda * Omega(x, y), with x' = argmax over the ball of CE(f(x'), y).

    Without GradAlign (lambda = 0) one training pass, on the adversarial images alone: no clean forward is spent on a
    meter. With it, Omega = 1 - cos(g(x), g(x + eta)), g(x) the gradient of CE(f(x), y) in x and eta a random point of
    the ball: where the gradient turns inside the ball, one step of FGSM is no attack, and training overfits to it
    (catastrophic overfitting). Two input gradients and one second derivative more.

    Args:
      label_smoothing: mass in [0, 1) moved to the uniform distribution; the attack sees the labels as given.
      grad_align: lambda >= 0; the paper takes 0.2 on CIFAR-10 at epsilon 8/255, more for larger epsilon.
      norm, epsilon: of the ball that eta is drawn from, scaled by the strength; training hands on those of the attack.

    Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv 1706.06083;
    GradAlign: Andriushchenko & Flammarion, Understanding and Improving Fast Adversarial Training, NeurIPS 2020,
    arXiv 2007.02617; github.com/tml-epfl/understanding-fast-adv-training.
    """
    check_smoothing(label_smoothing)
    check_weight("grad_align", grad_align)
    check_epsilon(epsilon, norm)
    ball = norms.get(norm)

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        logits, after = forward(attacked, statistics)
        loss = cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        if grad_align:
            points = ball.start(own_keys(keys), images, epsilon * per_example(strength, images))
            loss = loss + grad_align * misalignment(forward, statistics, images, points, targets)
        return Outcome(loss, after, adversarial_logits=logits, attacked=attacked)

    return objective


def misalignment(forward: Forward, statistics: Statistics, images: Array, points: Array, targets: Array) -> Array:
    """1 - cos of the input gradients at two points of each example, [B]; 0 where one of them vanishes.

    The gradient at `images` is a constant, as in the code of the paper: weights learn through that at `points` alone.
    """

    def slope(x: Array) -> Array:
        g = jax.grad(lambda x: jnp.sum(cross_entropy(forward(x, statistics)[0], targets)))(x)
        return g.reshape(len(x), -1)

    g, g_eta = jax.lax.stop_gradient(slope(images)), slope(points)
    length = jnp.sum(g**2, -1) * jnp.sum(g_eta**2, -1)
    defined = length > 0
    cosine = jnp.sum(g * g_eta, -1) / jnp.sqrt(jnp.where(defined, length, 1.0))
    return jnp.where(defined, 1.0 - cosine, 0.0)
