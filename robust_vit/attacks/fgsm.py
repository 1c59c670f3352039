"""The fast gradient sign method: one step of the size of the ball."""

from robust_vit.attacks.pgd import pgd
from robust_vit.typing import Array, Attack


def fgsm(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    step_size: float | Array | None = None,
    random_start: bool = False,
    loss: str = "cross_entropy",
    targeted: bool = False,
    keep: str = "last",
) -> Attack:
    """Makes an FGSM attack: x + epsilon * steepest(gradient), clipped to [0,1]; deterministic unless random_start.

    Args:
      norm: "linf" (the original), "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      step_size: length of the step; epsilon by default. With a random start Wong et al. take 1.25 * epsilon.
      random_start: start at a uniform point of the ball, and project after the step.
      loss, targeted: as in `pgd`.
      keep: "last" (the original: the step is returned whatever it does), or "loss" or "success" as in `pgd`, for one
        forward pass more.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype.

    Raises:
      ValueError: for a bad keyword, before anything is compiled.

    Reference: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572; random start: Wong et al. 2020,
      https://arxiv.org/abs/2001.03994
    """
    step_size = epsilon if step_size is None else step_size
    return pgd(
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        steps=1,
        random_start=random_start,
        loss=loss,
        targeted=targeted,
        keep=keep,
    )
