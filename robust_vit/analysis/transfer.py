"""How far adversarial images go: made on each of some classifiers, shown to all of them.

    found = transfer.matrix({"robust": rv.load("runs/digits"), "plain": rv.load("runs/plain")}, images, labels,
                            threat="linf-0.1", diversity=0.5)
    transfer.plot(found).savefig("transfer.png")

An image counts where the victim is right about the clean one: the share of those that it is wrong about once they were
changed. The first row is noise, uniform in the same ball: what no surrogate earned.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import attacks, randomness
from robust_vit.attacks import norms
from robust_vit.errors import check
from robust_vit.evaluation import intervals
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.pixels import as_float
from robust_vit.threat import Threat
from robust_vit.typing import LogitsFn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE = "noise"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What transferred.

    Attributes:
      sources: names of the rows: "noise", then the surrogates.
      victims: names of the columns.
      fooled: [S,V] images that the victim is right about when clean, and wrong about when changed.
      right: [V] images that it is right about when clean.
      threat: the ball.
      attack: its name.
    """

    sources: tuple[str, ...]
    victims: tuple[str, ...]
    fooled: np.ndarray
    right: np.ndarray
    threat: Threat
    attack: str

    @property
    def rate(self) -> np.ndarray:
        """[S,V] the share fooled; NaN for a victim that is right about nothing."""
        return np.where(self.right > 0, self.fooled / np.maximum(self.right, 1), np.nan)

    def interval(self, source: str, victim: str) -> tuple[float, float]:
        """The 95 % Wilson interval of one cell."""
        row, column = self.sources.index(source), self.victims.index(victim)
        return intervals.wilson(int(self.fooled[row, column]), int(self.right[column]))

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        cells = {
            s: {v: {"rate": float(self.rate[i, j]), "interval": list(self.interval(s, v))} for j, v in self._columns()}
            for i, s in enumerate(self.sources)
        }
        right = {v: int(self.right[j]) for j, v in self._columns()}
        return {"threat": str(self.threat), "attack": self.attack, "right": right, "fooled": cells}

    def _columns(self) -> list[tuple[int, str]]:
        return [(j, v) for j, v in enumerate(self.victims) if self.right[j] > 0]


def matrix(
    classifiers: Mapping[str, LogitsFn],
    images: Any,
    labels: Any,
    *,
    threat: Threat | str,
    attack: str = "transfer",
    seed: int = 0,
    batch_size: int = 256,
    **keywords: Any,
) -> Matrix:
    """Makes adversarial images on every classifier and shows them to all.

    Args:
      classifiers: {name: classifier of images of one size}; a name is a row and a column.
      images: [N,H,W,C] uint8, or floats in [0,1].
      labels: [N] integers.
      threat: the ball, such as "linf-8/255".
      attack: of `attacks.names()`, or an alias.
      seed: of the attack's draws.
      batch_size: images at once; changes no draw.
      **keywords: of the attack.

    Raises:
      ValueError: for classifiers of other images or classes, a bad keyword, or arrays that do not fit.
    """
    threat, names = Threat.parse(threat), tuple(classifiers)
    check("classifiers", len(names), len(names) >= 1 and NOISE not in names, f"one at least, none of them {NOISE!r}")
    made = attacks.build(attack, threat=threat, **keywords)
    images, labels = np.asarray(images), np.asarray(labels)
    check("labels.shape", labels.shape, labels.shape == images.shape[:1] and len(labels) > 0, f"({len(images)},)")
    models = {name: as_logits_fn(one) for name, one in classifiers.items()}
    classes = {name: check_logits(one, images.shape[1:]) for name, one in models.items()}
    for name, count in classes.items():
        check(f"classes of {name}", count, count == classes[names[0]], f"{classes[names[0]]}, those of {names[0]}")
    noise = norms.get(threat.norm).start
    start = jax.jit(lambda keys, logits_fn, x, y: noise(keys, x, threat.epsilon))
    run, predicted = jax.jit(made), jax.jit(lambda logits_fn, x: jnp.argmax(logits_fn(x), -1))
    fooled, right = np.zeros((len(names) + 1, len(names)), int), np.zeros(len(names), int)
    for first in range(0, len(labels), batch_size):
        x = as_float(jnp.asarray(images[first : first + batch_size]))
        y = labels[first : first + batch_size]
        clean = np.stack([np.asarray(predicted(one, x)) == y for one in models.values()])  # [V,B]
        right += clean.sum(1)
        for row, (maker, surrogate) in enumerate([(start, None), *((run, one) for one in models.values())]):
            keys = randomness.example_keys(seed, first + np.arange(len(y)), randomness.EVALUATION_ATTACK)
            changed = maker(keys, surrogate, x, jnp.asarray(y))
            wrong = np.stack([np.asarray(predicted(one, changed)) != y for one in models.values()])
            fooled[row] += (wrong & clean).sum(1)
    return Matrix((NOISE, *names), names, fooled, right, threat, attack)


def plot(found: Matrix) -> "Figure":
    """The matrix as a picture, with the shares and their intervals written in the cells."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from robust_vit.analysis.plots import INK, STYLE

    rows, columns = found.fooled.shape
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.6 + 1.5 * columns, 1.6 + 0.75 * rows), layout="constrained")
        axes = figure.subplots()
        axes.imshow(found.rate, vmin=0, vmax=1, cmap="Reds", aspect="auto")
        for i, source in enumerate(found.sources):
            for j, victim in enumerate(found.victims):
                axes.text(j, i, _told(found, source, victim), ha="center", va="center", **_ink(found.rate[i, j], INK))
        axes.set_xticks(range(columns), [f"{v}\n({n} right)" for v, n in zip(found.victims, found.right)])
        axes.set_yticks(range(rows), [s if s == NOISE else f"made on {s}" for s in found.sources])
        axes.xaxis.tick_top()
        for side in axes.spines.values():
            side.set_visible(False)
        figure.suptitle(f"share fooled: {found.attack}, {found.threat.label}", x=0.02, ha="left", weight="bold")
    return figure


def _told(found: Matrix, source: str, victim: str) -> str:
    rate = found.rate[found.sources.index(source), found.victims.index(victim)]
    if np.isnan(rate):
        return "–"
    low, high = found.interval(source, victim)
    return f"{100 * rate:.1f} %\n{100 * low:.0f} – {100 * high:.0f}"


def _ink(rate: float, ink: str) -> dict[str, Any]:
    return {"color": "white" if rate > 0.55 else ink, "fontsize": 9}
