"""The fast gradient sign method: one step of the size of the ball."""

from robust_vit.attacks import norms, updates
from robust_vit.attacks.arguments import check_epsilon, check_positive, is_concrete, is_zero
from robust_vit.attacks.pgd import check_targeted, inside, pgd
from robust_vit.errors import check
from robust_vit.typing import Array, Attack


def fgsm(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    step_size: float | Array | None = None,
    random_start: bool = False,
    noise: float | Array = 0.0,
    loss: str = "cross_entropy",
    targeted: bool | str = False,
    keep: str = "last",
    stochastic: bool = False,
) -> Attack:
    """Makes an FGSM attack: x + epsilon * steepest(gradient), clipped to [0,1]; deterministic unless random_start.

    Args:
      norm: "linf" (the original), "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      step_size: length of the step; epsilon by default. With a random start Wong et al. take 1.25 * epsilon.
      random_start: start at a uniform point of the ball, and project after the step.
      noise: above 0, N-FGSM: start from uniform noise of up to so many epsilon in every value (2 in the paper),
        whatever `random_start` says, step, and clip to [0,1] alone. The result LEAVES THE BALL, by up to `noise`
        epsilon: something to train on, and no evidence of robustness or its absence; no evaluation suite takes it.
      loss, targeted, stochastic: as in `pgd`.
      keep: "last" (the original: the step is returned whatever it does), or "loss" or "success" as in `pgd`, for one
        forward pass more.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype.

    Raises:
      ValueError: for a bad keyword, before anything is compiled.

    Reference: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572; random start: Wong et al. 2020,
      https://arxiv.org/abs/2001.03994; noise: de Jorge et al. 2022, https://arxiv.org/abs/2202.01181
    """
    step_size = epsilon if step_size is None else step_size
    given = dict(epsilon=epsilon, step_size=step_size, steps=1, loss=loss, targeted=targeted, stochastic=stochastic)
    if is_zero(noise):
        return pgd(norm=norm, random_start=random_start, keep=keep, **given)
    check_positive("noise", noise)
    check_targeted(targeted)
    check("norm", norm, norm == "linf", "'linf' with noise, which is drawn per value")
    check("keep", keep, keep == "last", "'last' with noise, which returns the step whatever it does")
    check_epsilon(epsilon, norm)
    if not (is_concrete(epsilon) and is_zero(epsilon)):
        check_positive("step_size", step_size)
    ball = norms.get(norm)._replace(
        start=lambda keys, images, radius: norms.linf_start(keys, images, noise * radius),
        project=lambda points, images, radius: norms.box(points),
    )
    return inside(ball, rule=updates.steepest(ball, 1, 0.0), keep=keep, **given)
