"""What an evaluation by an ensemble of attacks found: figures with intervals, a row an attack, a table, JSON."""

import dataclasses
from typing import Any

import numpy as np

from robust_vit.evaluation import intervals
from robust_vit.evaluation.scheduling.machine import Tally
from robust_vit.evaluation.scheduling.scheduler import BROKEN, NONFINITE
from robust_vit.evaluation.verification import Verification


@dataclasses.dataclass
class AttackRow:
    """What one attack did and spent.

    Attributes:
      attack: its name; "clean" for the pass without an attack.
      points: how many points it was given: the robust ones.
      broken: how many of them it broke.
      seconds: wall time, compilation included; of this session, where an evaluation was resumed.
      compile_seconds: tracing and compilation alone.
      forwards: forward passes without a backward pass, in images.
      gradients: forward passes with a backward pass to the image, in images.
      occupancy: share of the computed slots that had work.
      zero_gradients: runs that ended unbroken with a gradient of exactly zero.
    """

    attack: str
    points: int
    broken: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0
    occupancy: float = 0.0
    zero_gradients: int = 0

    def add(self, tally: Tally, cost: tuple[float, float], judging: float) -> None:
        """Adds what a schedule spent; `cost` is forwards and gradients of one tick, `judging` seconds of compiling
        the judge.
        """
        busy = self.forwards + self.gradients
        self.forwards += round(tally.ticks * cost[0])
        self.gradients += round(tally.ticks * cost[1])
        spent = self.forwards + self.gradients - busy
        share = tally.ticks / max(1, tally.slot_ticks)
        self.occupancy = (self.occupancy * busy + share * spent) / max(1, busy + spent)
        self.compile_seconds += tally.compile_seconds + judging
        self.zero_gradients += tally.zero_gradients


@dataclasses.dataclass(frozen=True)
class Result:
    """An evaluation: N points under one ensemble.

    Attributes:
      version: name of the ensemble, or the list of its attacks.
      norm, epsilon: the threat model; epsilon is [N].
      indices: [N] dataset indices.
      clean_correct: [N] classified correctly without an attack, with finite logits.
      robust: [N] classified correctly, and broken by nothing.
      status: [N] "robust", "broken", "misclassified" (without an attack) or "non-finite logits" (neither robust nor
        broken).
      broken_by: [N] name of the attack that broke the point, or "".
      adversarial: [N,H,W,C] float32: the image that broke the point, the clean one elsewhere.
      rows: a row for the clean pass and one an attack.
      notes: what a reader of the figures must know: what was replaced, what looked suspicious.
      verification: the float32 check of every claim.
      header: hashes of weights and data, configuration, package versions.
      claimed_robust: points that the model in low precision would have called robust; None for an evaluation in
        float32.
      canary: how far the compiled program is from the plain one (`canary.Canary.to_dict`).
    """

    version: str | list[str]
    norm: str
    epsilon: np.ndarray
    indices: np.ndarray
    clean_correct: np.ndarray
    robust: np.ndarray
    status: np.ndarray
    broken_by: list[str]
    adversarial: np.ndarray
    rows: list[AttackRow]
    notes: list[str]
    verification: Verification
    header: dict[str, Any]
    claimed_robust: int | None = None
    canary: dict[str, Any] | None = None

    @property
    def examples(self) -> int:
        """N."""
        return len(self.robust)

    @property
    def clean_accuracy(self) -> float:
        """Share of the points that are classified correctly without an attack."""
        return float(self.clean_correct.mean())

    @property
    def clean_interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return intervals.wilson(int(self.clean_correct.sum()), self.examples)

    @property
    def robust_accuracy(self) -> float:
        """Share of the points that stand: of the pointwise worst case over the ensemble."""
        return float(self.robust.mean())

    @property
    def robust_interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return intervals.wilson(int(self.robust.sum()), self.examples)

    @property
    def seconds(self) -> float:
        """Wall time of all rows."""
        return sum(row.seconds for row in self.rows)

    def title(self) -> str:
        """The threat model in a line."""
        name = self.version if isinstance(self.version, str) else ", ".join(self.version)
        radii = np.unique(self.epsilon)
        radius = f"{radii[0]:.6g}" if len(radii) == 1 else f"{radii[0]:.6g} to {radii[-1]:.6g}"
        if self.norm == "linf" and len(radii) == 1 and abs(radii[0] * 255 - round(radii[0] * 255)) < 1e-4:
            radius += f" ({round(radii[0] * 255)}/255)"
        return f"AutoAttack {name}, {self.norm}, epsilon {radius}, {self.examples} points"

    def table(self) -> str:
        """The result as text: a row an attack, the two accuracies with their intervals, the check of the claims, the
        notes.
        """
        heads = ("attack", "points", "broken", "robust %", "seconds", "compiling", "forwards", "gradients", "busy %")
        lines = [heads]
        for row in self.rows:
            standing = row.points - row.broken
            seconds = (f"{row.seconds:.1f}", f"{row.compile_seconds:.1f}")
            passes = (f"{row.forwards:,}", f"{row.gradients:,}", f"{100 * row.occupancy:.0f}")
            counts = (row.attack, f"{row.points}", f"{row.broken}", f"{100 * standing / self.examples:.2f}")
            lines.append((*counts, *seconds, *passes))
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        text = [self.title(), ""]
        for line in lines:
            text.append("  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:]))]))
        text += ["", _figure("clean accuracy ", self.clean_accuracy, self.clean_interval)]
        text.append(_figure("robust accuracy", self.robust_accuracy, self.robust_interval))
        if self.claimed_robust is not None:
            share = 100 * self.claimed_robust / self.examples
            dtype = self.header["config"]["compute_dtype"]
            text.append(f"robust accuracy claimed in {dtype}, before verification in float32: {share:.2f} %")
        text += [str(self.verification), *_agreement(self.canary)]
        return "\n".join(text + [f"note: {note}" for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: everything but the images."""
        radii = [float(str(radius)) for radius in np.unique(self.epsilon)]  # 0.03, not 0.029999999329447746
        return {
            "version": self.version,
            "norm": self.norm,
            "epsilon": radii[0] if len(radii) == 1 else [float(str(radius)) for radius in self.epsilon],
            "examples": self.examples,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(self.clean_interval),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": list(self.robust_interval),
            "claimed_robust_accuracy": None if self.claimed_robust is None else self.claimed_robust / self.examples,
            "counts": {
                name: int((self.status == name).sum()) for name in ("robust", BROKEN, "misclassified", NONFINITE)
            },
            "seconds": self.seconds,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "verification": {
                "claimed": self.verification.claimed,
                "confirmed": int(self.verification.confirmed.sum()),
                "faults": self.verification.faults,
                "largest_distance_over_epsilon": self.verification.largest,
            },
            "canary": self.canary,
            "header": self.header,
            "points": [
                {"index": int(index), "status": str(status), "broken_by": name}
                for index, status, name in zip(self.indices, self.status, self.broken_by)
            ],
        }


def _agreement(canary: dict[str, Any] | None) -> list[str]:
    """A line on the compiled program and the plain one."""
    if canary is None:
        return []
    names = ("forward_difference", "gradient_difference")
    logits, gradient = ("not comparable" if canary[name] is None else f"{canary[name]:.0e}" for name in names)
    shape = "x".join(map(str, canary["shape"]))
    return [f"compiled for {shape}, compared with the same operations one by one: logits {logits}, gradient {gradient}"]


def _figure(name: str, value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{name} {100 * value:6.2f} %   95 % interval [{100 * low:.2f}, {100 * high:.2f}]"
