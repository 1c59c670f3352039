"""PGD that knows when it is done: it stops, exactly, as soon as its iterates repeat.

Sign steps of fixed size in a Linf ball land on the same points again and again. The next iterate is a function of the
current one, so once an iterate repeats nothing new follows, and stopping changes no verdict. One stored iterate finds
any cycle (Brent's algorithm): it is compared with every following one, and replaced by the current one after 1, 2, 4,
8, ... steps.

Reference: PGD cycle detection, https://arxiv.org/abs/2503.19347; R. P. Brent, An improved Monte Carlo factorization
algorithm, BIT 20 (1980).
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from robust_vit import errors
from robust_vit.attacks import losses, norms
from robust_vit.attacks.autoattack import protocol
from robust_vit.typing import Array, Keys, LogitsFn


@flax.struct.dataclass
class PGDState:
    """The slots of a run; every leaf has the leading axis B."""

    images: Array
    labels: Array
    epsilon: Array
    tick: Array
    current: Array  # the point to evaluate next
    anchor: Array  # an earlier iterate; meeting it again closes a cycle
    adversarial: Array
    broken: Array
    done: Array
    cycled: Array  # done because the iterates repeat
    non_finite: Array


@dataclasses.dataclass(frozen=True)
class PGD:
    """A run of PGD with cycle detection; see `pgd_run`."""

    steps: int
    step_size: float
    detect: bool

    @property
    def cost(self) -> protocol.Cost:
        """Model evaluations of one tick."""
        return protocol.Cost(forwards=0, gradients=1)

    def start(
        self,
        keys: Keys,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        targets: Array,
        epsilon: Array,
        restart: Any = 0,
    ) -> PGDState:
        """Fresh slots at uniform points of the ball; nothing is evaluated yet."""
        del logits_fn, targets, restart
        noise = protocol.uniform_noise(keys, images)
        current = norms.box(images + protocol.expand(epsilon, images) * noise)
        none = jnp.zeros(len(labels), bool)
        anchor = jnp.full_like(images, jnp.inf)  # met by no iterate
        return PGDState(images, labels, epsilon, 0 * labels, current, anchor, images, none, none, none, none)

    def advance(self, logits_fn: LogitsFn, state: PGDState, ticks: int) -> PGDState:
        """Runs `ticks` (static) ticks: one gradient each."""
        return protocol.advance(lambda s: self._tick(logits_fn, s), state, ticks)

    def _tick(self, logits_fn: LogitsFn, s: PGDState) -> PGDState:
        def total(points: Array) -> tuple[Array, Array]:
            logits = losses.in_float32(logits_fn(points))
            return losses.cross_entropy(logits, s.labels).sum(), logits

        gradient, logits = jax.grad(total, has_aux=True)(s.current)
        wrong = protocol.misclassified(logits, s.labels)
        step = protocol.expand(self.step_size * s.epsilon, s.current) * jnp.sign(gradient)
        following = norms.linf_project(s.current + step, s.images, s.epsilon)
        tick = s.tick + 1
        power = (tick & (tick - 1)) == 0  # 1, 2, 4, 8, ...
        anchor = jnp.where(protocol.expand(power, s.current), s.current, s.anchor)
        cycled = self.detect & (following == anchor).all(axis=norms.PIXELS)
        finite = jnp.isfinite(logits).all(-1) & jnp.isfinite(gradient).all(axis=norms.PIXELS)
        return s.replace(
            tick=tick,
            current=following,
            anchor=anchor,
            cycled=cycled,
            broken=wrong,
            done=wrong | cycled | (tick > self.steps),
            adversarial=jnp.where(protocol.expand(wrong, s.current), s.current, s.adversarial),
            non_finite=s.non_finite | ~finite,
        )


def pgd_run(norm: str = "linf", steps: int = 40, step_size: float = 0.25, detect: bool = True) -> PGD:
    """Makes one run of Linf PGD on cross-entropy in the stepping protocol.

    Args:
      norm: "linf", the only ball in which fixed sign steps repeat.
      steps: most steps; the run evaluates at most steps + 1 gradients.
      step_size: in units of epsilon.
      detect: stop where the iterates repeat; False runs all steps, to the same verdict.

    Raises:
      ValueError: for another norm or a setting out of range.
    """
    errors.check("norm", norm, norm == "linf", "'linf' for the attack pgd: fixed sign steps repeat in no other ball")
    errors.check("steps", steps, steps >= 1, "at least 1")
    errors.check("step_size", step_size, step_size > 0, "above 0")
    return PGD(steps, step_size, detect)
