"""What suites measure, and how: checked when it is made, before anything compiles."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import attacks, errors, parallel, randomness
from robust_vit.attacks import norms
from robust_vit.evaluation import fingerprint
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.measure import Batch, Measurer, padded
from robust_vit.threat import Threat, resolve
from robust_vit.typing import LogitsFn, Variables

ADAPTIVE = ("straight_through",)


@dataclasses.dataclass
class Context:
    """What suites measure, and how.

    Attributes:
      logits_fn: the classifier: any callable, best a pytree that carries its weights.
      batches: gives the whole split anew at each call, as this host's slices of masked batches.
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, a fraction of the [0,1] pixel range.
      steps: of PGD.
      restarts: of PGD.
      step_size: of PGD; None takes 2.5 epsilon / steps (Madry et al.), so that the walk can cross the ball.
      seed: of the attacks' random starts.
      mesh: devices; all by default.
      module, variables: the model behind `logits_fn`, where there is one.
      workdir: where a suite may keep files of its own (ledgers, images); None keeps nothing.
      class_names: for tables and pictures.
      num_classes: of the data, which the logits have to cover; None does not know.
      dataset: name of the data, for files that name it.
      transfer_from: another classifier of the same images, whose adversarial images the masking report tries.
      adaptive: "straight_through" lets attacks differentiate `attacks.straight_through(logits_fn)`, whose logits are
        the same to the bit; "" differentiates the classifier as it is.
      options: what single suites take besides, see `suites.OPTIONS`.
      say: takes one line of progress.
      threat: a `Threat` or its text, "linf-8/255", in place of norm and epsilon, which then hold what it says.

    Raises:
      ValueError: for a field out of its range.
    """

    logits_fn: LogitsFn
    batches: Callable[[], Iterable[Batch]]
    norm: str | None = None
    epsilon: float | None = None
    steps: int = 50
    restarts: int = 5
    step_size: float | None = None
    seed: int = 0
    mesh: Mesh | None = None
    module: Any = None
    variables: Variables | None = None
    workdir: pathlib.Path | None = None
    class_names: Sequence[str] | None = None
    num_classes: int | None = None
    dataset: str | None = None
    transfer_from: LogitsFn | None = None
    adaptive: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None
    threat: Threat | str | None = None

    def __post_init__(self) -> None:
        self.norm, self.epsilon = resolve(self.threat, self.norm, self.epsilon)
        self.threat = None  # said by norm and epsilon from here on, also in copies
        errors.lookup("norm", self.norm, norms.BALLS)
        largest = 1.0 if self.norm == "linf" else math.inf
        within = 0 <= self.epsilon <= largest and math.isfinite(self.epsilon)
        bound = " and at most 1 (8/255, not 8)" if self.norm == "linf" else ""
        errors.check("epsilon", self.epsilon, within, f"a number, at least 0{bound}, in units of the [0,1] pixel range")
        for name in ("steps", "restarts"):
            count = getattr(self, name)
            whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
            errors.check(name, count, whole and count >= 1, "a whole number, at least 1")
        size = self.step_size
        errors.check("step_size", size, size is None or 0 < size < math.inf, "a positive number")
        randomness.check_seed(self.seed)
        if self.adaptive:
            errors.lookup("adaptive", self.adaptive, dict.fromkeys(ADAPTIVE))

    @functools.cached_property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the split's images."""
        return tuple(np.shape(next(iter(self.batches()))["image"])[1:])

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the classifier: of its weights and of what it computes."""
        return identify(self.logits_fn, self.image_shape)

    def differentiated(self, logits_fn: LogitsFn | None = None) -> LogitsFn:
        """What attacks differentiate: the classifier (or another form of it), adapted if that was asked for."""
        logits_fn = as_logits_fn(self.logits_fn if logits_fn is None else logits_fn)
        return attacks.straight_through(logits_fn) if self.adaptive else logits_fn

    def step_size_for(self, epsilon: float, steps: int) -> float:
        """The step size of a PGD of so many steps in a ball of that radius; a given one belongs to `epsilon`."""
        if self.step_size is None:
            return 2.5 * epsilon / steps
        return self.step_size * (epsilon / self.epsilon if self.epsilon else 1.0)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The split in memory, without padding: images [N,H,W,C] as stored, labels [N], dataset indices [N]."""
        return self.first(None)

    def first(self, count: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first so many examples; see `arrays`."""
        return self._first(count, lambda values: values)

    def everywhere(self, count: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`first` of the examples of all hosts, the same on each, in the order of a single host. All have to ask."""
        return self._first(count, parallel.gather_rows)

    def _first(self, count: int | None, joined: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
        parts: list[dict[str, np.ndarray]] = []
        for batch in padded(self.batches()):
            whole = {name: joined(value) for name, value in batch.items()}
            parts.append({name: value[whole["mask"]] for name, value in whole.items()})
            if count is not None and sum(len(part["label"]) for part in parts) >= count:
                break
        return tuple(np.concatenate([part[name] for part in parts])[:count] for name in ("image", "label", "index"))

    def measurer(self, attack: Any = None) -> Measurer:
        """A Measurer on this context's devices and seed."""
        return Measurer(attack, self.mesh, self.seed)


def identify(logits_fn: LogitsFn, image_shape: Sequence[int]) -> str:
    """The hash of a classifier: of its weights, also of those that a plain function holds as constants, and of what it
    computes.
    """
    return fingerprint.identify(as_logits_fn(logits_fn), jax.ShapeDtypeStruct((1, *image_shape), np.float32))
