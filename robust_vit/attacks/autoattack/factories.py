"""The parts of AutoAttack as plain attacks: `apgd`, `fab` and `square` run their targets and restarts in turn, each on
the examples that still stand.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks.arguments import (
    as_seen,
    check_count,
    check_epsilon,
    check_inputs,
    detach,
    finish,
    per_example,
)
from robust_vit.attacks.autoattack.apgd import FIRST_FRACTION, apgd_run
from robust_vit.attacks.autoattack.fab import fab_run
from robust_vit.attacks.autoattack.protocol import complete, expand, misclassified, no_noise, select, zeros
from robust_vit.attacks.autoattack.square.search import square_run
from robust_vit.attacks.losses import as_labels
from robust_vit.errors import check_choice
from robust_vit.typing import Array, Attack, Keys, LogitsFn

UNTARGETED = -1  # the target of an untargeted slot
KEEP = ("success", "loss")


class Turns(NamedTuple):
    """What `in_turn` runs: target classes [T,B], restarts per target, which examples [B] to attack, what to keep."""

    classes: Array
    restarts: int
    standing: Array
    keep: str
    last_gradient: bool = True


def turns(logits: Array | None, labels: Array, targets: int, restarts: int, keep: str) -> Turns:
    """The runs, from the clean logits [B,K].

    Args:
      logits: [B,K] of the clean images; None where neither `targets` nor `keep` asks for them.
      labels: [B] int.
      targets: 0 for an untargeted attack; else the classes of rank 2 .. targets + 1 in the clean logits, at most K - 1.
      restarts: runs per target.
      keep: "success" attacks only what is classified correctly; "loss" attacks everything.
    """
    (batch,) = labels.shape
    if targets:
        count = min(targets, logits.shape[-1] - 1)
        order = jax.lax.top_k(logits, count + 1)[1][:, 1:].T  # [T,B]
    else:
        order = jnp.full((1, batch), UNTARGETED)
    standing = ~misclassified(logits, labels) if keep == "success" else zeros(labels) == 0
    return Turns(order.astype(jnp.int32), restarts, standing, keep)


def in_turn(
    run: Any, keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array, turns: Turns
) -> Array:
    """Runs an attack once per (target, restart), each from the clean image, on the examples that still stand.

    Args:
      run: an `APGD`, `FAB` or `Square` (`protocol`).
      keys: [B] typed keys, folded with the number of the run.
      logits_fn: the model.
      images: [B,H,W,C] float32.
      labels: [B] int, or distributions [B,K] (see `APGD.start`).
      epsilon: [B] radii.
      turns: what to run (`turns`).

    Returns:
      [B,H,W,C]: for turns.keep "success" the adversarial image found first, the clean image where there is none or
      where it is misclassified already; for "loss" the point of highest loss over all runs.
    """

    def one(carry: tuple[Array, Array, Array], i: Array):
        adversarial, standing, best_loss = carry
        target = turns.classes[i // turns.restarts]
        state = run.start(_folded(keys, i), logits_fn, images, labels, target, epsilon, restart=i % turns.restarts)
        state = finished(run, logits_fn, state.replace(done=state.done | ~standing), turns)
        if turns.keep == "loss":
            won = state.best_loss > best_loss
            return (
                jnp.where(expand(won, images), state.best, adversarial),
                standing,
                jnp.where(won, state.best_loss, best_loss),
            ), None
        won = standing & state.broken
        return (jnp.where(expand(won, images), state.adversarial, adversarial), standing & ~won, best_loss), None

    start = (images, turns.standing, jnp.where(turns.standing, -jnp.inf, 0.0))
    (adversarial, _, _), _ = jax.lax.scan(one, start, jnp.arange(turns.classes.shape[0] * turns.restarts))
    return adversarial


def finished(run: Any, logits_fn: LogitsFn, state: Any, turns: Turns) -> Any:
    """Ticks until every slot is done. Where none stops early their number is known, and no device has to ask the others
    whether they are.
    """

    def tick(state: Any) -> Any:
        return run.tick(logits_fn, state)

    ticks = run.ticks - (not turns.last_gradient)
    if getattr(run, "stop", "broken") == "never":
        state = jax.lax.fori_loop(0, ticks, lambda _, s: tick(s), state)
    else:
        state = complete(lambda s: (t := tick(s)).replace(done=t.done | (t.tick >= ticks)), state)
    if turns.last_gradient:
        return state
    judged = run.judge(logits_fn, state)
    return select(~state.broken, judged, state) if turns.keep == "success" else judged


def plain(
    run: Any,
    *,
    epsilon: float | Array,
    norm: str,
    targets: int = 0,
    restarts: int = 1,
    keep: str = "success",
    stochastic: bool = False,
    last_gradient: bool = True,
) -> Attack:
    """Makes an attack with the common signature from a run."""
    check_epsilon(epsilon, norm)
    check_count("restarts", restarts)
    check_choice("keep", keep, KEEP)
    classes = targets

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength, stochastic)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        labels = as_labels(targets)
        model = functools.partial(_seen, logits_fn, images)
        more = (_folded(keys, jnp.int32(-1)),) if stochastic else ()
        logits = model(images, *more) if classes or keep == "success" else None
        todo = turns(logits, labels, classes, restarts, keep)._replace(last_gradient=last_gradient)
        adversarial = in_turn(run, keys, model, images.astype(jnp.float32), targets, radius, todo)
        return finish(adversarial, images, radius)

    return attack


def _seen(logits_fn: LogitsFn, images: Array, points: Array, *more: Array) -> Array:
    """The model on points rounded to the dtype of the images: what is judged is what is returned."""
    fixed = jax.lax.stop_gradient(points)
    return logits_fn(as_seen(fixed, images) + (points - fixed).astype(images.dtype), *more)


def _folded(keys: Keys, number: Array) -> Keys:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def apgd(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    steps: int = 100,
    loss: str = "cross_entropy",
    targets: int = 9,
    restarts: int = 1,
    keep: str = "success",
    large_radii: bool = False,
    eot: int = 1,
    stochastic: bool = False,
    rho: float = 0.75,
    reference_quirks: bool = True,
    random_start: bool = True,
    first_fraction: float = FIRST_FRACTION,
    last_gradient: bool = True,
) -> Attack:
    """Makes an APGD attack: PGD without a step size to choose.

    To train on (Singh et al. 2023): `apgd(steps=2, random_start=False, keep="loss", last_gradient=False)` spends three
    forward and two backward passes.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      steps: gradient steps per run.
      loss: "cross_entropy", "dlr" (3 classes or more), "margin", "probability_margin", "squared_error"; or
        "targeted_dlr" (4 or more), "targeted_cross_entropy": one run for each of the `targets` classes that follow the
        first in the clean logits. Every wrong class is a success.
      targets: classes to push to with a targeted loss; at most the number of classes less 1 is used.
      restarts: runs from independent random starts (per target).
      keep: "success" attacks what is classified correctly and returns the first success, and the clean image where
        there is none; "loss" attacks everything and returns the point of highest loss.
      large_radii: l1 only: stages of radius 3, 2 and 1 epsilon.
      eot: gradients averaged per step.
      stochastic: the model is called as logits_fn(images, keys [B]).
      rho: a window of steps with at most this fraction of increases of the loss halves the step size; in [0,1].
      reference_quirks: see `apgd_run`.
      random_start: start at a random point of the ball; otherwise at the clean image.
      first_fraction: l1: of the coordinates, that the first steps move; Singh et al. train with 0.05.
      last_gradient: False judges the last point by a forward pass alone, since its gradient would move nothing: one
        backward pass less, to the same result, for a larger program.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype. A distribution enters the loss as it is; a success is another class than its most probable.

    Raises:
      ValueError: for a bad keyword, or a loss that needs more classes than the model has, before anything is compiled.

    Reference: https://arxiv.org/abs/2003.01690, https://arxiv.org/abs/2103.01208; in training: Singh et al. 2023,
      https://arxiv.org/abs/2303.01870
    """
    check_count("targets", targets)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts = {restarts}: must be 1 without random_start, all restarts would be the same")
    run = apgd_run(
        norm=norm,
        steps=steps,
        loss=loss,
        stop="broken" if keep == "success" else "never",
        large_radii=large_radii,
        eot=eot,
        stochastic=stochastic,
        rho=rho,
        reference_quirks=reference_quirks,
        draws=None if random_start else no_noise,
        first_fraction=first_fraction,
    )
    return plain(
        run,
        epsilon=epsilon,
        norm=norm,
        targets=targets if loss.startswith("targeted") else 0,
        restarts=restarts,
        keep=keep,
        stochastic=stochastic,
        last_gradient=last_gradient,
    )


def fab(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    steps: int = 100,
    targeted: bool = True,
    targets: int = 9,
    restarts: int = 1,
) -> Attack:
    """Makes a FAB attack (FAB-T if `targeted`): looks for the closest misclassified point, and returns one inside the
    ball if there is one.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      steps: projections per run.
      targeted: one run for each of the `targets` classes that follow the first in the clean logits; otherwise each
        step takes the gradient of every class.
      targets: classes whose boundaries are sought; at most the number of classes less 1 is used.
      restarts: runs (per target); the first starts at the image, later ones at a random point.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype; the clean image where no success was found.

    Raises:
      ValueError: for a bad keyword.

    Reference: https://arxiv.org/abs/1907.02044
    """
    check_count("targets", targets)
    run = fab_run(norm, steps, targeted)
    return plain(run, epsilon=epsilon, norm=norm, targets=targets if targeted else 0, restarts=restarts)


def square(
    *,
    norm: str = "linf",
    epsilon: float | Array,
    queries: int = 5000,
    p_init: float = 0.8,
    rescale_schedule: bool = False,
    restarts: int = 1,
    keep: str = "success",
    reference_quirks: bool = True,
    shared_square: bool = False,
) -> Attack:
    """Makes a Square attack: random search that sees only the logits.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range; scalar or [B], may be traced.
      queries: forward passes per run, after the initial one.
      p_init: the fraction of pixels that the first windows cover.
      rescale_schedule: stretch the schedule of window sizes to `queries`.
      restarts: independent runs.
      keep: "success" attacks what is classified correctly and returns the clean image where it fails; "loss" attacks
        everything and returns the point of lowest margin.
      reference_quirks: see `square_run`.
      shared_square: see `square_run`.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images, same
      shape and dtype.

    Raises:
      ValueError: for a bad keyword.

    Reference: https://arxiv.org/abs/1912.00049
    """
    run = square_run(norm, queries, p_init, rescale_schedule, reference_quirks, shared_square)
    return plain(run, epsilon=epsilon, norm=norm, restarts=restarts, keep=keep)
