"""MI, NI, DI, TI, SI and the filters of transformers as one attack, whose keywords combine them."""

from robust_vit.attacks import norms, patch_masks, updates
from robust_vit.attacks.arguments import check_count, check_epsilon, check_positive, is_concrete, is_zero
from robust_vit.attacks.pgd import KEEP, check_targeted, inside
from robust_vit.attacks.transferable import filters, views
from robust_vit.errors import check, check_choice, lookup
from robust_vit.typing import Array, Attack, Keys, LogitsFn


def transfer(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    step_size: float | Array | None = None,
    steps: int = 10,
    momentum: float | Array = 1.0,
    nesterov: bool = False,
    diversity: float | Array = 0.0,
    translation: int = 1,
    scales: int = 1,
    tokens: str = "none",
    keep_tokens: float | Array = 1.0,
    keep_heads: float | Array = 1.0,
    patch_keep: float | Array | None = None,
    patch_size: int | None = None,
    loss: str = "cross_entropy",
    targeted: bool | str = False,
    keep: str = "last",
    eot: int = 1,
) -> Attack:
    """Makes an attack whose images are meant for another classifier than the one it differentiates; from the clean
    image, with momentum.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      step_size: epsilon / steps by default.
      steps: steps.
      momentum: decay of the accumulated gradients (MI); 0 for none.
      nesterov: take the gradient where the accumulated ones lead (NI).
      diversity: probability of a random size and place (DI); 0.5 in its paper.
      translation: width in pixels of the Gaussian that smooths the gradient (TI), odd; 1 for none, 7 or 15 at 224.
      scales: copies of the image, each half as bright as the one before, whose gradients are averaged (SI); 1 for
        none, 5 in its paper. Each costs a pass.
      tokens: what is done to gradients inside of a transformer of `models`: "none", "pna" or "tgr".
      keep_tokens, keep_heads: shares of the tokens and heads that let gradients pass, drawn for every step.
      patch_keep, patch_size: PatchOut: the share of the image's patches whose perturbation each step starts from, and
        their side in pixels; 130 / 196 in its paper.
      loss, targeted: as in `pgd`.
      keep: "last"; or "loss" or "success", judged on what the surrogate is shown.
      eot: draws of the random parts that are averaged for each step.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images.

    Raises:
      ValueError: for a bad keyword; when called, for a surrogate without what `tokens` filters.

    Reference: Dong et al. 2018 (MI), https://arxiv.org/abs/1710.06081; Xie et al. 2019 (DI); Dong et al. 2019 (TI);
      Lin et al. 2020 (NI, SI); Wei et al. 2022 (PNA, PatchOut), https://arxiv.org/abs/2109.04176; Zhang et al. 2023
      (TGR), https://arxiv.org/abs/2303.15754
    """
    check_epsilon(epsilon, norm)
    check_count("steps", steps)
    check_count("scales", scales)
    check_count("translation", translation)
    check("translation", translation, translation % 2 == 1, "odd")
    check_count("eot", eot)
    check_choice("keep", keep, KEEP)
    check_targeted(targeted)
    lookup("tokens", tokens, filters.TOKENS)
    for field, value in {"diversity": diversity, "keep_tokens": keep_tokens, "keep_heads": keep_heads}.items():
        check(field, value, not is_concrete(value) or 0 <= value <= 1, "in [0, 1]")
    check(
        "patch_size", patch_size, (patch_size is None) == (patch_keep is None), "given with patch_keep, and only then"
    )
    check("nesterov", nesterov, not (nesterov and is_zero(momentum)), "False with momentum = 0.0")
    if step_size is not None and not is_zero(epsilon):
        check_positive("step_size", step_size)
    dropping = not (filters.is_one(keep_tokens) and filters.is_one(keep_heads))
    check("eot", eot, eot == 1 or dropping or not is_zero(diversity), "1: nothing is drawn")
    ball = norms.get(norm)._replace(start=lambda keys, images, epsilon: images)
    rule = updates.nesterov if nesterov else updates.steepest
    walk = inside(
        ball,
        epsilon=epsilon,
        step_size=epsilon / steps if step_size is None else step_size,
        steps=steps,
        rule=rule(ball, steps, momentum),
        loss=loss,
        targeted=targeted,
        keep=keep,
        masks=None if patch_keep is None else lambda keys, x: patch_masks.kept(keys, x, patch_keep, patch_size),
        stochastic=dropping,
        eot=eot,
        views=_views(diversity, scales),
    )

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        surrogate = logits_fn if translation == 1 else filters.smoothed(logits_fn, translation)
        surrogate = filters.through_tokens(surrogate, tokens, keep_tokens, keep_heads)
        return walk(keys, surrogate, images, targets, strength)

    return attack


def _views(diversity: float | Array, scales: int) -> tuple:
    """What the surrogate is shown; () for the point itself."""
    copies = [views.fainter(number) for number in range(scales)] if scales > 1 else []
    if is_zero(diversity):
        return tuple(copies)
    first = views.diverse(diversity)
    return tuple(views.both(first, copy) for copy in copies) or (first,)
