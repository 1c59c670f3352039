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

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import check_count
from robust_vit.attacks.autoattack import hyperplanes, protocol
from robust_vit.attacks.autoattack.protocol import expand, flat
from robust_vit.errors import check_choice
from robust_vit.typing import Array, Keys, LogitsFn

ALPHA_MAX = 0.1  # the largest weight of the clean image's projection
ETA = 1.05  # overshoot beyond the hyperplane
BETA = 0.9  # how far a misclassified point is pulled back
FAR = 1e10  # the distance of an example for which nothing has been found
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
    tick: Array  # steps taken
    current: Array
    closest: Array  # the closest misclassified point, whatever its distance
    distance: Array  # and its distance; FAR when there is none
    adversarial: Array
    broken: Array
    done: Array
    non_finite: Array


@dataclasses.dataclass(frozen=True)
class FAB:
    """A run of FAB. See `fab_run` for the settings and `protocol` for what a scheduler may do."""

    norm: str
    steps: int
    targeted: bool
    stop: str
    alpha_max: float
    eta: float
    beta: float
    draws: Callable[[Keys, Array], Array]

    @property
    def ticks(self) -> int:
        """How many ticks finish any slot."""
        return self.steps

    @property
    def cost(self) -> protocol.Cost:
        """Model evaluations of one tick (untargeted, each gradient is one forward and K backward passes)."""
        return protocol.Cost(forwards=1, gradients=1)

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
          labels: [B] int; of distributions [B,K] the most probable class.
          targets: [B] int, the class whose boundary is sought; not used when untargeted.
          epsilon: [B] radii.
          restart: int or [B]; restart 0 starts at the image itself, later ones at a random point at half the radius.
        """
        del logits_fn
        images = images.astype(jnp.float32)
        batch = images.shape[0]
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), (batch,))
        noise = self.draws(keys, images)
        away = 0.5 * expand(epsilon / protocol.length(noise, self.norm), images) * noise
        random = jnp.broadcast_to(jnp.asarray(restart) > 0, (batch,))
        labels = losses.as_labels(labels)
        zero = protocol.zeros(labels)
        none = zero > 0
        current = jnp.where(expand(random, images), norms.box(images + away), images)
        return FABState(
            images=images,
            labels=labels,
            targets=targets.astype(jnp.int32),
            epsilon=epsilon,
            tick=zero.astype(jnp.int32),
            current=current,
            closest=images,
            distance=zero + FAR,
            adversarial=images,
            broken=none,
            done=none,
            non_finite=none,
        )

    def advance(self, logits_fn: LogitsFn, state: FABState, ticks: int) -> FABState:
        """Runs `ticks` (static) ticks: one gradient evaluation and one forward pass each."""
        return protocol.advance(lambda s: self.tick(logits_fn, s), state, ticks)

    def tick(self, logits_fn: LogitsFn, s: FABState) -> FABState:
        """Takes one step in every slot and judges it.

        The step gets a forward pass of its own: nearly every step ends misclassified (it overshoots the boundary) and
        is pulled back, so the next gradient is needed at another point, and judging by its forward pass would cost
        more.
        """
        gap, normal = self._linearise(logits_fn, s)
        point = self._step(s, gap, normal)
        wrong = protocol.misclassified(losses.in_float32(logits_fn(point)), s.labels)
        s = self._record(s, point, wrong)
        pulled_back = s.images + (point - s.images) * self.beta
        tick = s.tick + 1
        done = tick == self.steps
        return s.replace(
            current=jnp.where(expand(wrong, point), pulled_back, point),
            tick=tick,
            done=done | s.broken if self.stop == "broken" else done,
            non_finite=s.non_finite | ~jnp.isfinite(gap) | ~jnp.isfinite(normal).all(axis=norms.PIXELS),
        )

    def _linearise(self, logits_fn: LogitsFn, s: FABState) -> tuple[Array, Array]:
        """Returns the gap f_c - f_y [B] to the class c sought, and its gradient [B,H,W,C]."""
        logits, pull = jax.vjp(lambda points: losses.in_float32(logits_fn(points)), s.current)
        classes = logits.shape[-1]

        def towards(target: Array) -> tuple[Array, Array]:
            f_c, f_y = (jnp.take_along_axis(logits, c[:, None], axis=-1)[:, 0] for c in (target, s.labels))
            direction = jax.nn.one_hot(target, classes) - jax.nn.one_hot(s.labels, classes)
            return f_c - f_y, pull(direction.astype(logits.dtype))[0]

        if self.targeted:
            return towards(s.targets)

        def nearer(c: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            gap, normal = towards(jnp.full_like(s.labels, c))
            away = jnp.abs(gap) / (norms.TINY + protocol.length(normal, _DUAL[self.norm]))
            wins = (away < best[0]) & (s.labels != c)
            return (
                jnp.where(wins, away, best[0]),
                jnp.where(wins, gap, best[1]),
                jnp.where(expand(wins, normal), normal, best[2]),
            )

        nothing = (jnp.full_like(s.epsilon, jnp.inf), jnp.zeros_like(s.epsilon), jnp.zeros_like(s.current))
        return jax.lax.fori_loop(0, classes, nearer, nothing)[1:]

    def _step(self, s: FABState, gap: Array, normal: Array) -> Array:
        """Projects the iterate and the clean image on the hyperplane, and goes beyond a mixture of both."""
        w, x, x0 = flat(normal), flat(s.current), flat(s.images)
        b = (w * x).sum(axis=-1) - gap
        both = hyperplanes.displacement(
            jnp.concatenate([x, x0]), jnp.concatenate([w, w]), jnp.concatenate([b, b]), self.norm
        )
        a = jnp.maximum(protocol.length(both, self.norm), 1e-8)
        (d1, d2), (a1, a2) = jnp.split(both, 2), jnp.split(a, 2)
        alpha = jnp.clip(a1 / (a1 + a2), 0.0, self.alpha_max)[:, None]
        point = (x + self.eta * d1) * (1 - alpha) + (x0 + d2 * self.eta) * alpha
        return norms.box(point).reshape(s.current.shape)

    def _record(self, s: FABState, point: Array, wrong: Array) -> FABState:
        distance = protocol.length(point - s.images, self.norm)
        closer = wrong & (distance < s.distance)
        inside = closer & (distance <= s.epsilon)  # no tolerance
        return s.replace(
            closest=jnp.where(expand(closer, point), point, s.closest),
            distance=jnp.where(closer, distance, s.distance),
            adversarial=jnp.where(expand(inside, point), point, s.adversarial),
            broken=s.broken | inside,
        )


def fab_run(
    norm: str = "linf",
    steps: int = 100,
    targeted: bool = True,
    stop: str = "broken",
    alpha_max: float = ALPHA_MAX,
    eta: float = ETA,
    beta: float = BETA,
    draws: Callable[[Keys, Array], Array] | None = None,
) -> FAB:
    """Makes one run of FAB in the stepping protocol of `protocol`.

    Args:
      norm: "linf", "l2" or "l1".
      steps: projections.
      targeted: seek the boundary to one class (FAB-T: one backward pass a step), or to the nearest of all classes (K
        backward passes).
      stop: "broken" ends a slot with its first misclassified point within epsilon, which changes no flag; "never" goes
        on to the closest point.
      alpha_max: the largest weight of the clean image's projection.
      eta: overshoot.
      beta: the fraction of the perturbation that a misclassified point keeps.
      draws: (keys [B], images) -> noise [B,H,W,C] of a random start; uniform in [-1,1] (linf) or normal from the keys
        by default.

    Raises:
      ValueError: for a setting out of range.
    """
    check_choice("norm", norm, norms.BALLS)
    check_choice("stop", stop, protocol.STOPS)
    check_count("steps", steps)
    return FAB(norm, steps, targeted, stop, alpha_max, eta, beta, draws or protocol.noise(norm))
