"""Kurakin's destruction rates: how many adversarial images stop working once they were printed and photographed.

    found = destruction.measure({"fgsm": attack, "pgd": other}, logits_fn, images, labels, physical.camera())
    found["fgsm"].rate, found["fgsm"].interval

Counted among the images that the classifier is right about when clean, still right about when only photographed, and
wrong about when attacked: the share of those that it is right about once the attacked image was photographed.

Reference: Kurakin et al. 2017, https://arxiv.org/abs/1607.02533 (who do not ask for the second condition, as their
photographs of clean images were mostly recognised)
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import randomness
from robust_vit.attacks import expectation
from robust_vit.errors import check
from robust_vit.evaluation import intervals
from robust_vit.typing import Array, Attack, Keys, LogitsFn

SEEN = "photograph"  # of the rows: no attack at all


@dataclasses.dataclass(frozen=True)
class Destruction:
    """One attack.

    Attributes:
      counted: pairs of an image and a photograph of it that count.
      images: different images among them.
      destroyed: pairs in which the photograph is seen as the label again.
      fooled: share of all images that the attack fools before any photograph.
    """

    counted: int
    images: int
    destroyed: int
    fooled: float

    @property
    def rate(self) -> float:
        """The destruction rate; NaN where the attack fools nothing."""
        return self.destroyed / self.counted if self.counted else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval for as many draws as there are images: photographs of one are not independent."""
        if not self.counted:
            return 0.0, 1.0
        return intervals.wilson(round(self.rate * self.images), self.images)


def measure(
    attacks: Mapping[str, Attack],
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    transform: Callable[[Keys, Array], Array],
    *,
    stochastic: tuple[str, ...] = (),
    photographs: int = 4,
    seed: int = 0,
) -> dict[str, Destruction]:
    """Attacks images, and shows what came of it through a transformation.

    Args:
      attacks: {name: attack}.
      logits_fn: the classifier.
      images: [N,H,W,C] floats in [0,1], all at once.
      labels: [N] integers.
      transform: (keys [N], images) -> images, such as `physical.camera()`.
      stochastic: names of the attacks that were made with `stochastic=True`: they attack the classifier behind the
        transformation, other draws of it than those they are judged by.
      photographs: draws an image.
      seed: of all draws.

    Raises:
      ValueError: for a name that is no attack's.
    """
    for name in stochastic:
        check("stochastic", name, name in attacks, f"one of {', '.join(attacks)}")
    images, labels, count = jnp.asarray(images), jnp.asarray(labels), len(labels)
    judge = jax.jit(lambda f, x: jnp.argmax(f(x), -1) == labels)
    through = jax.jit(lambda keys, f, x: jnp.argmax(f(transform(keys, x)), -1) == labels)

    def photographed(x: Array) -> np.ndarray:
        """[photographs, N] whether each is seen as its label."""
        draws = [randomness.example_keys(seed, np.arange(count), randomness.MODEL, n) for n in range(photographs)]
        return np.stack([np.asarray(through(keys, logits_fn, x)) for keys in draws])

    clean, seen = np.asarray(judge(logits_fn, images)), photographed(images)
    found = {}
    for name, attack in attacks.items():
        behind = expectation.under(logits_fn, transform) if name in stochastic else logits_fn
        keys = randomness.example_keys(seed, np.arange(count), randomness.EVALUATION_ATTACK)
        changed = jax.jit(attack)(keys, behind, images, labels)
        fooled = ~np.asarray(judge(logits_fn, changed))
        counts = seen & (clean & fooled)[None]
        destroyed = int((counts & photographed(changed)).sum())
        found[name] = Destruction(int(counts.sum()), int(counts.any(0).sum()), destroyed, float(fooled.mean()))
    return found
