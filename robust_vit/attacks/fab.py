"""FAB, the fast adaptive boundary attack: looks for the closest misclassified point, in the linf, l2 or l1 norm.

Each step linearises the model at the iterate, projects the iterate and the clean image onto the nearest decision
hyperplane inside the box, and goes a little beyond a mixture of both. A misclassified point is recorded if it is the
closest yet, and pulled back towards the clean image.

Reference: Croce & Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020
(https://arxiv.org/abs/1907.02044); https://github.com/fra31/auto-attack.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from robust_vit.attacks import hyperplanes, losses, norms, slots
from robust_vit.attacks.apgd import STOPS
from robust_vit.attacks.arguments import check_choice, check_count
from robust_vit.attacks.slots import expand, flat
from robust_vit.typing import Array, Keys, LogitsFn

ALPHA_MAX = 0.1  # the largest weight of the clean image's projection
ETA = 1.05  # overshoot beyond the hyperplane
BETA = 0.9  # how far a misclassified point is pulled back
FAR = 1e10  # the distance of an example for which nothing has been found
CHECKS = ("forward", "merged")
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@flax.struct.dataclass
class FABState:
    """The slots of a run; every leaf has the leading axis B. `adversarial` is the clean image while `broken` is
    false.
    """

    images: Array  # [B,H,W,C] clean
    labels: Array
    targets: Array
    epsilon: Array
    tick: Array
    step: Array  # steps taken
    current: Array
    unchecked: Array  # "merged": whether `current` is a step whose prediction is not known yet
    closest: Array  # the closest misclassified point, whatever its distance
    distance: Array  # and its distance; FAR when there is none
    adversarial: Array
    broken: Array
    done: Array
    non_finite: Array


@dataclasses.dataclass(frozen=True)
class FAB:
    """A run of FAB. See `fab_run` for the settings and `slots` for the protocol."""

    norm: str
    steps: int
    targeted: bool
    stop: str
    checks: str
    alpha_max: float
    eta: float
    beta: float
    draws: Callable[[Keys, Array], Array]

    @property
    def ticks(self) -> int:
        """How many ticks finish any slot (with checks "merged" most slots need fewer)."""
        return self.steps if self.checks == "forward" else 2 * self.steps

    @property
    def cost(self) -> slots.Cost:
        """Model evaluations of one tick; the untargeted attack takes one backward pass per class for its one forward
        pass.
        """
        return slots.Cost(forwards=int(self.checks == "forward"), gradients=1)

    def start(
        self,
        keys: Keys,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        targets: Array,
        epsilon: Array,
        restart: Array | int = 0,
    ) -> FABState:
        """Makes fresh slots; the model is not evaluated yet.

        Args:
          keys: [B] typed keys.
          logits_fn: not used.
          images: [B,H,W,C] in [0,1], classified correctly (FAB is defined for these only).
          labels: [B] int.
          targets: [B] int, the class whose boundary is sought; not used when untargeted.
          epsilon: [B] radii.
          restart: int or [B]; restart 0 starts at the image itself, later ones at a random point at half the radius.
        """
        del logits_fn
        images = images.astype(jnp.float32)
        batch = images.shape[0]
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), (batch,))
        noise = self.draws(keys, images)
        away = 0.5 * expand(epsilon / slots.length(noise, self.norm), images) * noise
        random = jnp.broadcast_to(jnp.asarray(restart) > 0, (batch,))
        zero, none = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)
        current = jnp.where(expand(random, images), norms.box(images + away), images)
        return FABState(
            images=images,
            labels=labels.astype(jnp.int32),
            targets=targets.astype(jnp.int32),
            epsilon=epsilon,
            tick=zero,
            step=zero,
            current=current,
            unchecked=none,
            closest=images,
            distance=jnp.full((batch,), FAR, jnp.float32),
            adversarial=images,
            broken=none,
            done=none,
            non_finite=none,
        )

    def advance(self, logits_fn: LogitsFn, state: FABState, ticks: int) -> FABState:
        """Runs `ticks` (static) ticks. With checks "forward" a tick is one step: a gradient evaluation and a forward
        pass.
        """
        return slots.advance(lambda s: self.tick(logits_fn, s), state, ticks)

    def tick(self, logits_fn: LogitsFn, s: FABState) -> FABState:
        """Takes a step from every slot's point, or with checks "merged" judges the last one and takes it back."""
        if self.checks == "merged":
            return self._merged_tick(logits_fn, s)
        _, gap, normal = self._linearise(logits_fn, s)
        s = s.replace(non_finite=s.non_finite | _non_finite(gap, normal))
        point = self._step(s, gap, normal)
        wrong = slots.misclassified(losses.in_float32(logits_fn(point)), s.labels)
        s = self._record(s, point, wrong)
        s = s.replace(current=jnp.where(expand(wrong, point), self._pull_back(s, point), point))
        return self._count(s, s.step + 1)

    def _merged_tick(self, logits_fn: LogitsFn, s: FABState) -> FABState:
        """One gradient evaluation: its forward pass judges the last step; where that is misclassified, the gradient is
        not used.
        """
        logits, gap, normal = self._linearise(logits_fn, s)
        s = s.replace(non_finite=s.non_finite | _non_finite(gap, normal))
        wrong = s.unchecked & slots.misclassified(logits, s.labels)
        s = self._record(s, s.current, wrong)
        last = s.unchecked & (s.step == self.steps)  # the last step is only judged
        point = jnp.where(expand(wrong, s.current), self._pull_back(s, s.current), self._step(s, gap, normal))
        stepped = ~wrong & ~last
        s = s.replace(current=point, unchecked=stepped)
        return self._count(s, s.step + stepped, over=last)

    def _count(self, s: FABState, step: Array, over: Array | None = None) -> FABState:
        over = step == self.steps if over is None else over
        done = over | s.broken if self.stop == "broken" else over
        return s.replace(step=step, tick=s.tick + 1, done=done)

    def _linearise(self, logits_fn: LogitsFn, s: FABState) -> tuple[Array, Array, Array]:
        """Returns logits [B,K], the gap f_c - f_y [B] to the class c sought, and its gradient [B,H,W,C]."""
        logits, pull = jax.vjp(lambda points: losses.in_float32(logits_fn(points)), s.current)
        label = jax.nn.one_hot(s.labels, logits.shape[-1], dtype=logits.dtype)

        def towards(target: Array) -> tuple[Array, Array]:
            direction = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype) - label
            return jnp.take_along_axis(logits - _at(logits, s.labels), target[:, None], axis=-1)[:, 0], pull(direction)[
                0
            ]

        if self.targeted:
            return logits, *towards(s.targets)

        def nearer(c: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            gap, normal = towards(jnp.full_like(s.labels, c))
            away = jnp.abs(gap) / (norms.TINY + slots.length(normal, _DUAL[self.norm]))
            wins = (away < best[0]) & (s.labels != c)
            return (
                jnp.where(wins, away, best[0]),
                jnp.where(wins, gap, best[1]),
                jnp.where(expand(wins, normal), normal, best[2]),
            )

        nothing = (jnp.full_like(s.epsilon, jnp.inf), jnp.zeros_like(s.epsilon), jnp.zeros_like(s.current))
        _, gap, normal = jax.lax.fori_loop(0, logits.shape[-1], nearer, nothing)
        return logits, gap, normal

    def _step(self, s: FABState, gap: Array, normal: Array) -> Array:
        """Projects the iterate and the clean image on the hyperplane, and goes beyond a mixture of both."""
        w, x, x0 = flat(normal), flat(s.current), flat(s.images)
        b = (w * x).sum(axis=-1) - gap
        both = hyperplanes.displacement(
            jnp.concatenate([x, x0]), jnp.concatenate([w, w]), jnp.concatenate([b, b]), self.norm
        )
        a = jnp.maximum(slots.length(both, self.norm), 1e-8)
        (d1, d2), (a1, a2) = jnp.split(both, 2), jnp.split(a, 2)
        alpha = jnp.clip(a1 / (a1 + a2), 0.0, self.alpha_max)[:, None]
        point = (x + self.eta * d1) * (1 - alpha) + (x0 + d2 * self.eta) * alpha
        return norms.box(point).reshape(s.current.shape)

    def _record(self, s: FABState, point: Array, wrong: Array) -> FABState:
        distance = slots.length(point - s.images, self.norm)
        closer = wrong & (distance < s.distance)
        inside = closer & (distance <= s.epsilon)  # no tolerance
        return s.replace(
            closest=jnp.where(expand(closer, point), point, s.closest),
            distance=jnp.where(closer, distance, s.distance),
            adversarial=jnp.where(expand(inside, point), point, s.adversarial),
            broken=s.broken | inside,
        )

    def _pull_back(self, s: FABState, point: Array) -> Array:
        return s.images + (point - s.images) * self.beta


def _at(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)


def _non_finite(gap: Array, normal: Array) -> Array:
    return ~jnp.isfinite(gap) | ~jnp.isfinite(normal).all(axis=norms.PIXELS)


def fab_run(
    norm: str = "linf",
    steps: int = 100,
    targeted: bool = True,
    stop: str = "broken",
    checks: str = "forward",
    alpha_max: float = ALPHA_MAX,
    eta: float = ETA,
    beta: float = BETA,
    draws: Callable[[Keys, Array], Array] | None = None,
) -> FAB:
    """Makes one run of FAB in the stepping protocol of `slots`.

    Args:
      norm: "linf", "l2" or "l1".
      steps: projections.
      targeted: seek the boundary to one class (FAB-T: one backward pass a step), or to the nearest of all classes (K
        backward passes).
      stop: "broken" ends a slot with its first misclassified point within epsilon, which changes no flag; "never" goes
        on to the closest point.
      checks: how a step is judged. "forward": by a forward pass of its own, so a step is always one gradient
        evaluation and one forward pass. "merged": by the forward pass of the next gradient evaluation; a misclassified
        step then costs a second evaluation. The iterates are the same.
      alpha_max: the largest weight of the clean image's projection.
      eta: overshoot.
      beta: the fraction of the perturbation that a misclassified point keeps.
      draws: (keys [B], images) -> noise [B,H,W,C] of a random start; uniform in [-1,1] (linf) or normal from the keys
        by default.

    Raises:
      ValueError: for a setting out of range.
    """
    check_choice("norm", norm, norms.BALLS)
    check_choice("stop", stop, STOPS)
    check_choice("checks", checks, CHECKS)
    check_count("steps", steps)
    return FAB(norm, steps, targeted, stop, checks, alpha_max, eta, beta, draws or slots.noise(norm))
