"""Projected gradient descent: many small steps, each put back into the ball."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
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
from robust_vit.errors import check_choice
from robust_vit.typing import Array, Attack, Keys, LogitsFn

KEEP = ("loss", "success", "last")

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
    restarts: int = 1,
    loss: str = "cross_entropy",
    targeted: bool = False,
    momentum: float = 0.0,
    keep: str = "loss",
) -> Attack:
    """Makes a PGD attack: x <- project(x + step_size * steepest(gradient of the loss)), from a random start.

    Args:
      norm: "linf", "l2" or "l1". An L1 step moves the 1 % of values with the largest gradient, which is not the best
        sparsity for every radius: evaluate L1 with an attack that adapts it (APGD).
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      step_size: length of a step in the same norm and units; 2.5 * epsilon / steps by default (Madry et al.).
      steps: gradient evaluations a restart; part of the program's shape only as a loop bound.
      random_start: start at a uniform point of the ball; otherwise at the clean image.
      restarts: independent starts; the best point over all of them is returned.
      loss: what is maximised: "cross_entropy", "kl", "margin" or "dlr".
      targeted: `targets` are the classes to reach, and the loss is minimised.
      momentum: decay of the accumulated, L1-normalised gradients; 0 is plain PGD, 1 is MI-FGSM's default.
      keep: "loss" returns the point of highest loss among all iterates, the start included; "success" prefers
        misclassified points, then the loss (for evaluation); "last" returns the last iterate and saves the forward pass
        that judges it (for training).

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype.

    Raises:
      ValueError: for a bad keyword, before anything is compiled.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083; momentum: Dong et al. 2018,
      https://arxiv.org/abs/1710.06081
    """
    check_epsilon(epsilon, norm)
    check_count("steps", steps)
    check_count("restarts", restarts)
    check_choice("keep", keep, KEEP)
    if step_size is not None and not is_zero(epsilon):  # a ball of radius 0 needs no step
        check_positive("step_size", step_size)
    if is_concrete(momentum) and not 0 <= momentum < float("inf"):
        raise ValueError(f"momentum = {momentum}: must be at least 0")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts = {restarts}: must be 1 without random_start, all restarts would be the same")
    if restarts > 1 and keep == "last":
        raise ValueError(f"restarts = {restarts}: must be 1 with keep = 'last', which compares no points")
    ball, objective = norms.get(norm), losses.get(loss)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        step = per_example(step_size, images) * per_example(strength, images)
        clean = working(images)
        gradient, verdict = judged(logits_fn, images, targets, objective, targeted, by_success=keep == "success")

        def move(points: Array, direction: Array) -> Array:
            points = points + expand(step, clean) * ball.steepest(direction, points)
            return ball.project(points, clean, radius)

        def restart(best: Best, index: Array) -> tuple[Best, None]:
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
            points = ball.start(folded, clean, radius) if random_start else clean
            points, best = ascend(gradient, move, points, best, steps, momentum, keep_best=keep != "last")
            if keep == "last":
                return best._replace(points=points), None
            return better(best, points, *verdict(points)), None

        best, _ = jax.lax.scan(restart, nothing_yet(clean), jnp.arange(restarts))
        return finish(best.points, images, radius)

    return attack


def judged(
    logits_fn: LogitsFn,
    images: Array,
    targets: Array,
    objective: Callable[[Array, Array], Array],
    targeted: bool,
    by_success: bool,
) -> tuple[Callable[[Array], tuple[Array, Verdict]], Callable[[Array], Verdict]]:
    """Returns two functions, points -> (gradient, verdict) and points -> verdict; the adversary wants a larger loss.

    The losses of a batch are summed, not averaged: the gradient of one image does not depend on the batch it sits in.
    """
    sign = -1.0 if targeted else 1.0

    def total(seen: Array) -> tuple[Array, Verdict]:
        logits = logits_fn(seen)
        loss = sign * objective(logits, targets)
        hit = jnp.argmax(logits, axis=-1) == losses.as_labels(targets)
        return jnp.sum(loss), (loss, hit == targeted if by_success else jnp.zeros_like(hit))

    def gradient(points: Array) -> tuple[Array, Verdict]:
        slope, verdict = jax.grad(total, has_aux=True)(as_seen(points, images))
        return working(slope), verdict

    def verdict(points: Array) -> Verdict:
        return total(as_seen(points, images))[1]

    return gradient, verdict


def ascend(
    gradient: Callable[[Array], tuple[Array, Verdict]],
    move: Callable[[Array, Array], Array],
    points: Array,
    best: Best,
    steps: int,
    momentum: float,
    keep_best: bool,
) -> tuple[Array, Best]:
    """Moves `steps` times from `points`; returns the last point, not judged yet, and the best one before it.

    A step's gradient comes with the loss of the point it starts from, so keeping the best costs no further forward pass
    here.
    """
    plain = is_concrete(momentum) and momentum == 0

    def one_step(carry: tuple[Array, Array, Best], _: None) -> tuple[tuple[Array, Array, Best], None]:
        points, direction, best = carry
        slope, verdict = gradient(points)
        best = better(best, points, *verdict) if keep_best else best
        direction = slope if plain else momentum * direction + l1_normalised(slope)
        return (move(points, direction), direction, best), None

    at_rest = points - points  # not zeros_like: under shard_map it varies over devices as the carry does
    (points, _, best), _ = jax.lax.scan(one_step, (points, at_rest, best), None, length=steps)
    return points, best


def l1_normalised(gradient: Array) -> Array:
    """gradient / |gradient|_1 per example, zero for a zero gradient."""
    total = jnp.sum(jnp.abs(gradient), axis=norms.PIXELS, keepdims=True)
    return gradient / jnp.where(total > 0, total, 1.0)


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
