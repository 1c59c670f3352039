"""APGD: projected gradient descent that chooses its own step size (Auto-PGD), for the linf, l2 and l1 ball.

The start counts as an iterate, so a run of `steps` steps takes steps + 1 gradient evaluations; one evaluation is one
tick. A tick judges the current point, halves the step size where the schedule says so, and moves on.

Reference: Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks, 2020 (https://arxiv.org/abs/2003.01690); l1: Mind the box, 2021 (https://arxiv.org/abs/2103.01208);
https://github.com/fra31/auto-attack.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from robust_vit.attacks import l1_ball, losses, norms
from robust_vit.attacks.arguments import check_count
from robust_vit.attacks.autoattack import protocol
from robust_vit.attacks.autoattack.protocol import expand
from robust_vit.attacks.autoattack.timetable import RHO, Timetable, timetable
from robust_vit.errors import check, check_choice
from robust_vit.typing import Array, Keys, LogitsFn

FIRST_FRACTION = 0.2  # l1: of the coordinates, that the first steps move
MOMENTUM = 0.75  # the weight of the new step against the last displacement

# (logits [B,K], labels [B] or distributions [B,K], target classes [B]) -> [B], maximised
LOSSES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "cross_entropy": lambda z, y, t: losses.cross_entropy(z, y),
    "dlr": lambda z, y, t: losses.dlr(z, y),
    "margin": lambda z, y, t: losses.margin(z, y),
    "probability_margin": lambda z, y, t: losses.probability_margin(z, y),
    "squared_error": lambda z, y, t: losses.squared_error(z, y),
    "targeted_cross_entropy": lambda z, y, t: -losses.cross_entropy(z, t),
    "targeted_dlr": losses.targeted_dlr,
}
_FEWEST_CLASSES = {"dlr": (3, "margin"), "targeted_dlr": (4, "targeted_cross_entropy")}


@flax.struct.dataclass
class APGDState:
    """The slots of a run; every leaf has the leading axis B. `adversarial` is the clean image while `broken` is
    false.
    """

    images: Array  # [B,H,W,C] clean
    labels: Array
    targets: Array
    epsilon: Array
    key: Array  # raw key data, used by stochastic models only
    tick: Array  # evaluations so far
    current: Array  # the point to evaluate next
    previous: Array | None  # the iterate before it (momentum; none in l1)
    best: Array  # the point of highest loss
    best_gradient: Array
    best_loss: Array
    adversarial: Array  # the last misclassified iterate
    broken: Array
    done: Array
    non_finite: Array  # a loss or gradient that was not finite has been met
    step_size: Array
    last_loss: Array
    increases: Array  # of the loss since the last check
    checked_loss: Array  # the best loss at the last check
    reduced: Array  # whether the last check reduced the step size
    fraction: Array | None  # l1: the fraction of coordinates a step moves
    support: Array | None  # l1: non-zero coordinates of the best perturbation at the last check
    soft: Array | None = None  # [B,K] distributions that the loss takes in place of the labels
    implementation: str = flax.struct.field(pytree_node=False, default="threefry2x32")


@dataclasses.dataclass(frozen=True)
class APGD:
    """A run of APGD. See `apgd_run` for the settings and `protocol` for what a scheduler may do."""

    norm: str
    steps: int
    loss: str
    untargeted_loss: str | None
    stop: str
    large_radii: bool
    eot: int
    stochastic: bool
    rho: float
    reference_quirks: bool
    draws: Callable[[Keys, Array], Array]
    first_fraction: float

    @property
    def ticks(self) -> int:
        """How many ticks finish any slot."""
        return len(self._timetable.start)

    @property
    def cost(self) -> protocol.Cost:
        """Model evaluations of one tick."""
        return protocol.Cost(forwards=0, gradients=self.eot)

    @property
    def _timetable(self) -> Timetable:
        return timetable(self.norm, self.steps, self.large_radii, self.rho)

    def start(
        self,
        keys: Keys,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        targets: Array,
        epsilon: Array,
        restart: Array | int = 0,
    ) -> APGDState:
        """Makes fresh slots at random points; the model is not evaluated yet. The keys tell restarts apart.

        Args:
          keys: [B] typed keys.
          logits_fn: not used.
          images: [B,H,W,C] in [0,1].
          labels: [B] int; or distributions [B,K], which the loss takes, while their most probable class is what a
            success is told from.
          targets: [B] int, the class to push to, for targeted losses; any other number (-1) for the others.
          epsilon: [B] radii.
          restart: not used.
        """
        del logits_fn, restart
        images = images.astype(jnp.float32)
        key, implementation = protocol.key_data(keys)
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), images.shape[:1])
        labels, soft = losses.as_labels(labels), None if jnp.issubdtype(labels.dtype, jnp.integer) else labels
        zero = protocol.zeros(labels)
        count, none = zero.astype(jnp.int32), zero > 0
        current = self._first_point(keys, images, epsilon)
        l1 = self.norm == "l1"
        return APGDState(
            images=images,
            labels=labels,
            targets=targets.astype(jnp.int32),
            epsilon=epsilon,
            key=key,
            tick=count,
            current=current,
            previous=None if l1 else current,
            best=current,
            best_gradient=jnp.broadcast_to(expand(zero, images), images.shape),
            best_loss=zero - jnp.inf,
            adversarial=images,
            broken=none,
            done=none,
            non_finite=none,
            step_size=zero,
            last_loss=zero,
            increases=count,
            checked_loss=zero,
            reduced=none,
            fraction=zero if l1 else None,
            support=zero if l1 else None,
            soft=None if soft is None else losses.in_float32(soft),
            implementation=implementation,
        )

    def advance(self, logits_fn: LogitsFn, state: APGDState, ticks: int) -> APGDState:
        """Runs `ticks` (static) ticks: one gradient evaluation (`eot` of them) each."""
        return protocol.advance(lambda s: self.tick(logits_fn, s), state, ticks)

    def tick(self, logits_fn: LogitsFn, s: APGDState) -> APGDState:
        """Judges the current point of every slot and moves on."""
        now = self._now(s)
        loss, logits, gradient = self._evaluate(logits_fn, s)
        s = self._record(s, now, loss, logits, gradient)
        s, back = self._control(s, now)
        # A reduced step size restarts from the best point, with the gradient found there.
        point = jnp.where(expand(back, s.current), s.best, s.current)
        gradient = jnp.where(expand(back, gradient), s.best_gradient, gradient)
        following = self._move(s, now, point, gradient)
        tick = s.tick + 1
        done = tick == self.ticks
        if self.stop == "broken":
            done = done | s.broken
        return s.replace(current=following, previous=None if s.previous is None else point, tick=tick, done=done)

    def judge(self, logits_fn: LogitsFn, s: APGDState) -> APGDState:
        """The last tick by a forward pass alone: records what it finds, to the same result, and moves no more."""
        loss, logits = self._loss_of(logits_fn, s, s.current, self.eot - 1)
        return self._record(s, self._now(s), loss, logits, None)

    def _now(self, s: APGDState) -> Timetable:
        return jax.tree.map(lambda column: jnp.asarray(column)[s.tick], self._timetable)

    def _first_point(self, keys: Keys, images: Array, epsilon: Array) -> Array:
        noise = self.draws(keys, images)
        if self.norm != "l1":
            size = protocol.length(noise, self.norm) + norms.TINY
            return norms.box(images + expand(epsilon, images) * (noise / expand(size, images)))
        return norms.box(l1_ball.project(images, images + noise, epsilon * self._timetable.radius[0]))

    def _evaluate(self, logits_fn: LogitsFn, s: APGDState) -> tuple[Array, Array, Array]:
        """Returns loss [B] and logits [B,K] of the last draw, and the gradient averaged over all draws."""

        def total(points: Array, draw: Array):
            loss, logits = self._loss_of(logits_fn, s, points, draw)
            return loss.sum(), (loss, logits)

        differentiate = jax.grad(total, has_aux=True)
        if self.eot == 1:
            gradient, (loss, logits) = differentiate(s.current, 0)
            return loss, logits, gradient

        def add(gradient: Array, draw: Array):
            more, aux = differentiate(s.current, draw)
            return gradient + more, aux

        gradient, (loss, logits) = jax.lax.scan(add, jnp.zeros_like(s.current), jnp.arange(self.eot))
        return loss[-1], logits[-1], gradient / self.eot

    def _loss_of(self, logits_fn: LogitsFn, s: APGDState, points: Array, draw: Array | int) -> tuple[Array, Array]:
        """Loss [B] and logits [B,K] of points."""
        logits = logits_fn(points, self._draw_keys(s, draw)) if self.stochastic else logits_fn(points)
        logits = losses.in_float32(logits)
        return self._loss(logits, s.labels if s.soft is None else s.soft, s.targets), logits

    def _loss(self, logits: Array, labels: Array, targets: Array) -> Array:
        """[B] what each slot maximises."""
        names = [self.loss] if self.untargeted_loss is None else [self.loss, self.untargeted_loss]
        for name in names:
            _check_classes(name, logits)
        loss, *untargeted = (LOSSES[name](logits, labels, targets) for name in names)
        return jnp.where(targets < 0, *untargeted, loss) if untargeted else loss

    def _draw_keys(self, s: APGDState, draw: Array) -> Keys:
        return protocol.folded_keys(s.key, s.implementation, s.tick * self.eot + draw + 1)

    def _record(self, s: APGDState, now: Timetable, loss: Array, logits: Array, gradient: Array | None) -> APGDState:
        """Keeps what the evaluation found: a success, a new best point with its gradient, whether the loss rose."""
        wrong = protocol.misclassified(logits, s.labels) & now.final
        better = now.start | (loss > s.best_loss)
        # The reference's history of losses starts with a zero row, so the first step is compared with 0.
        reference = jnp.zeros_like(loss) if self.reference_quirks else loss
        if gradient is not None:
            s = s.replace(
                best_gradient=jnp.where(expand(better, gradient), gradient, s.best_gradient),
                non_finite=s.non_finite | ~jnp.isfinite(gradient).all(axis=norms.PIXELS),
            )
        return s.replace(
            adversarial=jnp.where(expand(wrong, s.current), norms.box(s.current), s.adversarial),
            broken=s.broken | wrong,
            best=jnp.where(expand(better, s.current), s.current, s.best),
            best_loss=jnp.where(better, loss, s.best_loss),
            increases=jnp.where(now.start, 0, s.increases + (loss > s.last_loss)),
            last_loss=jnp.where(now.start, reference, loss),
            non_finite=s.non_finite | ~jnp.isfinite(loss),
        )

    def _control(self, s: APGDState, now: Timetable) -> tuple[APGDState, Array]:
        """Sets the step size; returns the state and which slots [B] go back to their best point."""
        if self.norm == "l1":
            return self._control_l1(s, now)
        few = s.increases <= now.limit
        stuck = ~s.reduced & (s.checked_loss >= s.best_loss)
        halve = now.check & (few | stuck)
        s = s.replace(
            step_size=jnp.where(
                now.start, 2.0 * s.epsilon * now.radius, jnp.where(halve, s.step_size / 2.0, s.step_size)
            ),
            reduced=jnp.where(now.check, halve, s.reduced | now.start),  # counts as reduced before the first check
            checked_loss=jnp.where(now.check | now.start, s.best_loss, s.checked_loss),
            increases=jnp.where(now.check, 0, s.increases),
        )
        return s, halve

    def _control_l1(self, s: APGDState, now: Timetable) -> tuple[APGDState, Array]:
        """In l1 the sparsity of the best perturbation sets how many coordinates move, and the step size with it."""
        n = s.images[0].size
        longest = s.epsilon * now.radius
        support = l1_ball.support(s.best - s.images)
        sparser = now.check & (support / s.support < 0.95)
        step_size = jnp.clip(jnp.where(sparser, longest, s.step_size / 1.5), longest / 10.0, longest)
        first_fraction = support / n / 1.5 if self.large_radii else self.first_fraction
        first_support = support if self.large_radii else n
        s = s.replace(
            step_size=jnp.where(now.start, longest, jnp.where(now.check, step_size, s.step_size)),
            fraction=jnp.where(now.start, first_fraction, jnp.where(now.check, support / n / 1.5, s.fraction)),
            support=jnp.where(now.start, first_support, jnp.where(now.check, support, s.support)),
        )
        return s, sparser

    def _move(self, s: APGDState, now: Timetable, point: Array, gradient: Array) -> Array:
        """Returns the next point to evaluate."""
        step_size, radius = expand(s.step_size, point), s.epsilon * now.radius
        if self.norm == "l1":
            return self._move_l1(s, now, point + step_size * l1_ball.sparse_direction(gradient, s.fraction), radius)
        weight = expand(jnp.where(now.start, 1.0, MOMENTUM), point)
        step = _project(point + step_size * _direction(gradient, self.norm), s.images, radius, self.norm)
        momentum = (point - s.previous) * (1.0 - weight)
        return _project(point + (step - point) * weight + momentum, s.images, radius, self.norm)

    def _move_l1(self, s: APGDState, now: Timetable, point: Array, radius: Array) -> Array:
        """Projects a step; a new stage starts from the best point instead, projected to its own radius.

        Sums are formed as the reference forms them: coordinates that go back to zero keep a rounding residue, and it
        counts them.
        """
        end = expand(now.end, point)
        delta = jnp.where(end, s.best, point) - s.images
        correction = l1_ball.correction(s.images, delta, jnp.where(now.end, s.epsilon * now.next_radius, radius))
        return jnp.where(end, norms.box(s.best + correction), s.images + delta + correction)


def _direction(gradient: Array, norm: str) -> Array:
    if norm == "linf":
        return jnp.sign(gradient)
    return gradient / expand(protocol.length(gradient, "l2") + norms.TINY, gradient)


def _project(points: Array, images: Array, radius: Array, norm: str) -> Array:
    """Projects as the reference does: in l2 the length is cut first, then the box."""
    if norm == "linf":
        return norms.linf_project(points, images, radius)
    delta = points - images
    size = protocol.length(delta, "l2")
    return norms.box(images + delta / expand(size + norms.TINY, delta) * expand(jnp.minimum(radius, size), delta))


def _check_classes(loss: str, logits: Array) -> None:
    fewest, instead = _FEWEST_CLASSES.get(loss, (2, ""))
    if logits.shape[-1] < fewest:
        raise ValueError(
            f"loss = {loss!r}: needs at least {fewest} classes, the model has {logits.shape[-1]}; use {instead!r}"
        )


def apgd_run(
    norm: str = "linf",
    steps: int = 100,
    loss: str = "cross_entropy",
    stop: str = "broken",
    large_radii: bool = False,
    eot: int = 1,
    stochastic: bool = False,
    rho: float = RHO,
    reference_quirks: bool = True,
    untargeted_loss: str | None = None,
    draws: Callable[[Keys, Array], Array] | None = None,
    first_fraction: float = FIRST_FRACTION,
) -> APGD:
    """Makes one run of APGD in the stepping protocol of `protocol`.

    Args:
      norm: "linf", "l2" or "l1".
      steps: gradient steps; the run evaluates steps + 1 gradients (one more per further stage).
      loss: a name of `LOSSES`. A targeted one only steers: every wrong class counts as a success.
      stop: "broken" ends a slot with its first success, which changes no flag; "never" goes on, and returns the last
        misclassified iterate, as the reference.
      large_radii: l1 only: three stages of radius 3, 2 and 1 epsilon.
      eot: gradient evaluations averaged per step (expectation over transformation). Loss, success and step size follow
        the last one alone, as in the reference.
      stochastic: the model is called as logits_fn(images, keys [B]) with fresh keys for every evaluation.
      rho: a window with at most this fraction of increases reduces the step size; in [0,1].
      reference_quirks: compare the loss after the first step with 0 instead of the loss at the start, as the reference
        does (it matters to a few trajectories of the DLR loss, never seen to change a flag).
      untargeted_loss: what slots without a target (-1) maximise instead of `loss`, so that a targeted and an
        untargeted attack share one compiled program.
      draws: (keys [B], images) -> start noise [B,H,W,C]; uniform in [-1,1] (linf) or normal from the keys by default.
      first_fraction: l1 without large_radii: of the coordinates, in (0,1], that the first steps move.

    Raises:
      ValueError: for a setting out of range.
    """
    check_choice("norm", norm, norms.BALLS)
    check_choice("loss", loss, LOSSES)
    if untargeted_loss is not None:
        check_choice("untargeted_loss", untargeted_loss, LOSSES)
    check_choice("stop", stop, protocol.STOPS)
    check_count("steps", steps)
    check_count("eot", eot)
    check("rho", rho, 0 <= rho <= 1, "in [0, 1], a fraction of the steps")
    if large_radii and norm != "l1":
        raise ValueError(f"large_radii = True: must be False for norm {norm}, the stages of larger radius are for l1")
    check("first_fraction", first_fraction, 0 < first_fraction <= 1, "in (0, 1], a fraction of the coordinates")
    return APGD(
        norm=norm,
        steps=steps,
        loss=loss,
        untargeted_loss=untargeted_loss,
        stop=stop,
        large_radii=large_radii,
        eot=eot,
        stochastic=stochastic,
        rho=rho,
        reference_quirks=reference_quirks,
        draws=draws or protocol.noise(norm),
        first_fraction=first_fraction,
    )
