"""DeiT: a transformer learns from a teacher, through a token of its own where it has one."""

import jax
import jax.numpy as jnp
import optax

from robust_vit.attacks.losses import cross_entropy, kl
from robust_vit.objectives.passes import check_share, check_smoothing, check_temperature, taught
from robust_vit.typing import NOTHING, Objective, Outcome


def deit_hard(alpha: float = 0.5, label_smoothing: float = 0.0) -> Objective:
    """Minimises (1 - a) CE(z_cls, y) + a CE(z_dist, y_t), with y_t = argmax of the teacher's logits Z_t.

    z_cls are the logits of the class token, z_dist those of the distillation token; a model without one learns both
    with its only head. What it answers later is the mean of the two.

    Args:
      alpha: a in [0, 1], the teacher's share.
      label_smoothing: mass in [0, 1) of the label moved to the uniform distribution; the teacher's stays hard.

    Reference: Touvron et al., Training Data-efficient Image Transformers & Distillation through Attention, ICML 2021,
    arXiv 2012.12877; github.com/facebookresearch/deit.
    """
    return _deit(alpha, label_smoothing, lambda z, teacher: cross_entropy(z, jnp.argmax(teacher, -1)))


def deit_soft(alpha: float = 0.1, temperature: float = 3.0, label_smoothing: float = 0.0) -> Objective:
    """Minimises (1 - a) CE(z_cls, y) + a t^2 KL(softmax(Z_t / t) || softmax(z_dist / t)).

    The code of the paper divides the divergence by the number of classes too; the paper, and this, do not.

    Args:
      alpha: a in [0, 1], the teacher's share (lambda in the paper).
      temperature: t > 0 of both.
      label_smoothing: mass in [0, 1) of the label moved to the uniform distribution.

    Reference: as `deit_hard`; Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
    """
    check_temperature(temperature)
    t = temperature
    return _deit(alpha, label_smoothing, lambda z, teacher: t**2 * kl(z / t, jax.nn.softmax(teacher / t)))


def _deit(alpha: float, label_smoothing: float, lesson) -> Objective:
    check_share("alpha", alpha)
    check_smoothing(label_smoothing)

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        z, stats = forward(images, stats, heads=True)  # [B,1,K] or [B,2,K]
        z_cls, z_dist = z[:, 0], z[:, -1]
        loss = (1.0 - alpha) * cross_entropy(z_cls, optax.smooth_labels(targets, label_smoothing))
        loss = loss + alpha * lesson(z_dist, taught(aside, images))
        return Outcome(loss, stats, clean_logits=(z_cls + z_dist) / 2)

    return objective
