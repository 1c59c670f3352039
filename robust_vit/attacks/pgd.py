"""Projected gradient descent: many small steps, each put back into the ball."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms, patch_masks, updates
from robust_vit.attacks.arguments import (
    as_seen,
    check_count,
    check_epsilon,
    check_inputs,
    check_positive,
    detach,
    expand,
    finish,
    is_concrete,
    is_zero,
    per_example,
    working,
)
from robust_vit.errors import check, check_choice, lookup
from robust_vit.typing import Array, Attack, Keys, LogitsFn

KEEP = ("loss", "success", "last")
STARTS = ("uniform", "normal")
START_SCALE = 1e-3  # of TRADES, https://arxiv.org/abs/1901.08573

LEAST_LIKELY = "least_likely"

View = Callable[[Keys, Array], Array]  # (keys [B], points) -> what the model is shown of them
Verdict = tuple[Array, Array]  # the loss [B] that the adversary maximises, and whether it has succeeded [B] bool


class Best(NamedTuple):
    """The best point seen so far, with what it was judged by."""

    points: Array  # [B,H,W,C]
    loss: Array  # [B]
    success: Array  # [B] bool; always False when only the loss is judged


def pgd(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    step_size: float | Array | None = None,
    steps: int = 10,
    random_start: bool = True,
    start: str = "uniform",
    start_scale: float | Array = START_SCALE,
    restarts: int = 1,
    loss: str = "cross_entropy",
    targeted: bool | str = False,
    update: str = "steepest",
    momentum: float = 0.0,
    keep: str = "loss",
    patch_keep: float | Array | None = None,
    patch_size: int | None = None,
    stochastic: bool = False,
    eot: int = 1,
) -> Attack:
    """Makes a PGD attack: x <- project(x + step_size * steepest(gradient of the loss)), from a random start.

    Args:
      norm: "linf", "l2" or "l1". An L1 step moves the 1 % of values with the largest gradient, which is not the best
        sparsity for every radius: evaluate L1 with an attack that adapts it (APGD).
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      step_size: length of a step in the same norm and units; 2.5 * epsilon / steps by default (Madry et al.). Of
        "adam": its learning rate, 0.1 by default.
      steps: gradient evaluations a restart; part of the program's shape only as a loop bound.
      random_start: start at a random point of the ball; otherwise at the clean image.
      start: how that point is drawn: "uniform" in the ball, or "normal" around the image, put into the ball.
      start_scale: standard deviation of "normal", in units of the [0,1] pixel range; TRADES' by default.
      restarts: independent starts; the best point over all of them is returned.
      loss: what is maximised: a name of `losses.LOSSES`.
      targeted: True: `targets` are the classes to reach, and the loss is minimised. "least_likely": the class of each
        clean image's lowest logit is to be reached, whatever `targets` says (Kurakin et al. 2017).
      update: the rule that makes steps of gradients, see `updates`: "steepest", "heavy_ball" (FARE's), "nesterov" or
        "adam".
      momentum: of "steepest" and "nesterov": decay of the accumulated, L1-normalised gradients; 0 is plain PGD, 1 is
        MI-FGSM's default. Of "heavy_ball": decay of the steps, 0.9 in the paper.
      keep: "loss" returns the point of highest loss among all iterates, the start included; "success" prefers
        misclassified points, then the loss (for evaluation); "last" returns the last iterate and saves the forward pass
        that judges it (for training).
      patch_keep: perturbation random masking: before every gradient the perturbation is set to 0 on all but this
        fraction of the image's patches, drawn anew; in [0,1], may be traced. None or 1 for none.
      patch_size: side of those patches in pixels.
      stochastic: the model is called as logits_fn(images, keys [B]), with fresh keys for every evaluation.
      eot: evaluations of a stochastic model that are averaged for a step's gradient and for a verdict, which counts as
        a success what most of them misclassify: expectation over transformation (`expectation.under`).

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype.

    Raises:
      ValueError: for a bad keyword, before anything is compiled.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083; masking: Mo et al. 2022,
      https://arxiv.org/abs/2210.07540; eot: Athalye et al. 2018, https://arxiv.org/abs/1707.07397
    """
    check_epsilon(epsilon, norm)
    check_count("steps", steps)
    check_count("eot", eot)
    check("eot", eot, eot == 1 or stochastic, "1 without stochastic: every evaluation would be the same")
    check_targeted(targeted)
    check_count("restarts", restarts)
    check_choice("keep", keep, KEEP)
    check_choice("start", start, STARTS)
    if step_size is not None and not is_zero(epsilon):  # a ball of radius 0 needs no step
        check_positive("step_size", step_size)
    _check_momentum(momentum, update)
    _check_start(random_start, start, start_scale)
    _check_masks(patch_keep, patch_size)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts = {restarts}: must be 1 without random_start, all restarts would be the same")
    if restarts > 1 and keep == "last":
        raise ValueError(f"restarts = {restarts}: must be 1 with keep = 'last', which compares no points")
    if step_size is None:
        step_size = updates.ADAM_STEP_SIZE if update == "adam" else 2.5 * epsilon / steps
    ball = norms.get(norm)
    if start == "normal":
        ball = ball._replace(start=norms.normal_start(ball, start_scale))
    if not random_start:
        ball = ball._replace(start=lambda keys, images, epsilon: images)
    return inside(
        ball,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        restarts=restarts,
        rule=lookup("update", update, updates.UPDATES)(ball, steps, momentum),
        loss=loss,
        targeted=targeted,
        keep=keep,
        masks=None if patch_keep is None else lambda keys, x: patch_masks.kept(keys, x, patch_keep, patch_size),
        stochastic=stochastic,
        eot=eot,
    )


def inside(
    ball: norms.Ball,
    *,
    epsilon: float | Array,
    step_size: float | Array,
    steps: int,
    rule: updates.Update,
    restarts: int = 1,
    loss: str = "cross_entropy",
    targeted: bool | str = False,
    keep: str = "last",
    masks: Callable[[Keys, Array], Array] | None = None,
    stochastic: bool = False,
    eot: int = 1,
    views: tuple[View, ...] = (),
) -> Attack:
    """`pgd` in any ball, which says where to start and what to project on, by any rule; keywords are checked already.

    Args:
      masks: (keys [B], images) -> [B,H,W,1] booleans, where the perturbation is kept before a gradient is taken; None
        keeps it everywhere.
      views: (keys [B], points) -> what the model is shown of them; gradient and verdict are the means over all views,
        each drawn `eot` times. None is the points themselves.
    """
    objective = losses.get(loss)
    drawing = stochastic or bool(views)

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength, stochastic)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        step = per_example(step_size, images) * per_example(strength, images)
        clean = working(images)
        if targeted == LEAST_LIKELY:
            targets = least_likely(logits_fn, images, *((_folded(keys, 2 * restarts),) if stochastic else ()))
        looks = [seen_through(view, logits_fn, stochastic) for view in views] or [logits_fn]
        sides = [judged(look, images, targets, objective, bool(targeted), keep == "success") for look in looks]
        gradient, verdict = (mean_of(functions, eot) for functions in zip(*sides))

        def move(points: Array, direction: Array) -> Array:
            points = points + expand(step, clean) * direction
            return ball.project(points, clean, radius)

        def restart(best: Best, index: Array) -> tuple[Best, None]:
            points = ball.start(_folded(keys, index), clean, radius)
            noise, masked = draws(_folded(keys, restarts + index), clean, drawing, masks)

            def one_step(carry: tuple, number: Array) -> tuple[tuple, None]:
                points, memory, best = carry
                points = masked(points, number)
                if rule.ahead is not None:
                    points, here = move(points, rule.ahead(memory)), points
                slope, judgement = gradient(points, *noise(number))
                best = better(best, points, *judgement) if keep != "last" else best
                points = points if rule.ahead is None else here
                direction, memory = rule.step(slope, points, memory, number)
                return (move(points, direction), memory, best), None

            at_rest = points - points  # not zeros_like: under shard_map it varies over devices as the carry does
            # A step's gradient comes with the loss of the point it starts from: keeping the best costs no further pass.
            (points, _, best), _ = jax.lax.scan(one_step, (points, rule.start(at_rest), best), jnp.arange(steps))
            if keep == "last":
                return best._replace(points=points), None
            return better(best, points, *verdict(points, *noise(steps))), None

        best, _ = jax.lax.scan(restart, nothing_yet(clean), jnp.arange(restarts))
        return finish(best.points, images, radius)

    return attack


def seen_through(view: View, logits_fn: LogitsFn, stochastic: bool) -> LogitsFn:
    """The model behind a view: (points, keys) -> logits."""

    def look(points: Array, keys: Keys) -> Array:
        own, models = norms.split(keys)
        return logits_fn(view(own, points), *((models,) if stochastic else ()))

    return look


def mean_of(functions: Sequence[Callable[..., Any]], eot: int) -> Callable[..., Any]:
    """The mean of what functions of (points, keys) return, over them and over `eot` draws of each; truth by majority.

    One after the other, so that many draws need the memory of one.
    """
    if len(functions) == 1 and eot == 1:
        return functions[0]

    def mean(points: Array, keys: Keys) -> Any:
        def one_draw(total: Any, number: Array) -> tuple[Any, None]:
            for place, function in enumerate(functions):
                found = function(points, _folded(keys, number * len(functions) + place))
                total = jax.tree.map(lambda sum, new: sum + new.astype(sum.dtype), total, found)
            return total, None

        kinds = jax.eval_shape(functions[0], points, keys)
        at_rest = points[:, 0, 0, 0] * 0  # not zeros: under shard_map it varies over devices as the sum does
        nothing = jax.tree.map(
            lambda kind: jnp.zeros(kind.shape, at_rest.dtype) + at_rest.reshape(-1, *(1,) * (len(kind.shape) - 1)),
            kinds,
        )
        total, _ = jax.lax.scan(one_draw, nothing, jnp.arange(eot))
        count = eot * len(functions)
        return jax.tree.map(lambda sum, kind: sum > count / 2 if kind.dtype == bool else sum / count, total, kinds)

    return mean


def least_likely(logits_fn: LogitsFn, images: Array, *keys: Keys) -> Array:
    """The class of each image's lowest logit, [B] int32.

    Reference: Kurakin et al. 2017, https://arxiv.org/abs/1611.01236
    """
    return jnp.argmin(logits_fn(images, *keys), axis=-1).astype(jnp.int32)


def check_targeted(targeted: bool | str) -> None:
    """Raises ValueError unless it is True, False or "least_likely"."""
    known = isinstance(targeted, bool) or targeted == LEAST_LIKELY
    check("targeted", targeted, known, f"True, False or {LEAST_LIKELY!r}")


def draws(
    keys: Keys, clean: Array, stochastic: bool, masks: Callable[[Keys, Array], Array] | None
) -> tuple[Callable[..., tuple[Keys, ...]], Callable[..., Array]]:
    """What is drawn anew at a step: two functions, number -> the model's keys, none where it takes none, and
    (points, number) -> the points with part of their perturbation set to 0.
    """

    def noise(number: Array | int) -> tuple[Keys, ...]:
        return (norms.split(_folded(keys, number))[0],) if stochastic else ()

    def masked(points: Array, number: Array) -> Array:
        if masks is None:
            return points
        return jnp.where(masks(norms.split(_folded(keys, number))[1], clean), points, clean)

    return noise, masked


def _folded(keys: Keys, number: Array | int) -> Keys:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _check_momentum(momentum: float | Array, update: str) -> None:
    if not is_concrete(momentum):
        return
    if not 0 <= momentum < float("inf"):
        raise ValueError(f"momentum = {momentum}: must be at least 0")
    usual = {"heavy_ball": 0.9, "nesterov": 1}  # of their papers
    if update in usual and momentum == 0:
        raise ValueError(
            f"momentum = {momentum}: must be above 0 with update = {update!r}, {usual[update]} in its paper"
        )
    if update == "adam" and momentum != 0:
        raise ValueError(f"momentum = {momentum}: must be 0 with update = 'adam', which has its own")


def _check_start(random_start: bool, start: str, start_scale: float | Array) -> None:
    if start == "normal":
        check_positive("start_scale", start_scale)
        if not random_start:
            raise ValueError("start = 'normal': must be left out without random_start, which starts at the clean image")
    elif is_concrete(start_scale) and start_scale != START_SCALE:
        raise ValueError(f"start_scale = {start_scale}: must be left out with start = {start!r}")


def _check_masks(patch_keep: float | Array | None, patch_size: int | None) -> None:
    if (patch_keep is None) != (patch_size is None):
        raise ValueError(f"patch_size = {patch_size!r}: must be given with patch_keep, and only then")
    if patch_keep is None:
        return
    check_count("patch_size", patch_size)
    if is_concrete(patch_keep) and not 0 <= patch_keep <= 1:
        raise ValueError(f"patch_keep = {patch_keep}: must be in [0, 1]")


def judged(
    logits_fn: LogitsFn,
    images: Array,
    targets: Array,
    objective: Callable[[Array, Array], Array],
    targeted: bool,
    by_success: bool,
) -> tuple[Callable[..., tuple[Array, Verdict]], Callable[..., Verdict]]:
    """Returns two functions, points -> (gradient, verdict) and points -> verdict; the adversary wants a larger loss.
    Keys [B] after the points go to the model.

    The losses of a batch are summed, not averaged: the gradient of one image does not depend on the batch it sits in.
    """
    sign = -1.0 if targeted else 1.0

    def total(seen: Array, *keys: Keys) -> tuple[Array, Verdict]:
        logits = logits_fn(seen, *keys)
        loss = sign * objective(logits, targets)
        hit = jnp.argmax(logits, axis=-1) == losses.as_labels(targets)
        return jnp.sum(loss), (loss, hit == targeted if by_success else jnp.zeros_like(hit))

    def gradient(points: Array, *keys: Keys) -> tuple[Array, Verdict]:
        slope, verdict = jax.grad(total, has_aux=True)(as_seen(points, images), *keys)
        return working(slope), verdict

    def verdict(points: Array, *keys: Keys) -> Verdict:
        return total(as_seen(points, images), *keys)[1]

    return gradient, verdict


def nothing_yet(clean: Array) -> Best:
    """A best point that any judged point beats: the clean image, so that a loss of NaN returns it."""
    first = clean[:, 0, 0, 0]
    return Best(clean, jnp.full_like(first, -jnp.inf), jnp.zeros_like(first, dtype=bool))


def better(best: Best, points: Array, loss: Array, success: Array) -> Best:
    """Replaces the best point of an example where the new one succeeds and the old did not, or is as successful and has
    a higher loss.
    """
    wins = (success & ~best.success) | ((success == best.success) & (loss > best.loss))  # [B]
    return Best(
        jnp.where(wins[:, None, None, None], points, best.points),
        jnp.where(wins, loss, best.loss),
        best.success | (wins & success),
    )
