"""Accuracy, clean or under attack, over exactly all examples of a split.

`correct` judges one batch and is a pure function of arrays; `Measurer` compiles it once over a mesh and adds up whole
splits. A padded last batch is masked, so that the denominator is the number of real examples; keys come from the
dataset index, so that the figure does not depend on batch size, order or devices.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel, randomness
from robust_vit.errors import check
from robust_vit.evaluation import intervals, pairs
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.pixels import as_float
from robust_vit.typing import Array, Attack, Keys, LogitsFn

PROBABILITIES = (
    "the model returns probabilities where logits are expected: losses see vanishing gradients and the accuracy under "
    "attack is too high; remove the softmax"
)
SOFTMAX_TOLERANCE = 1e-2  # of the sum of probabilities, also of bfloat16

Batch = Mapping[str, Any]  # {"image" [B,H,W,C], "label" [B], "index" [B], "mask" [B]}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was counted over a split.

    Attributes:
      examples: number of real (unmasked) examples.
      correct: how many of them were classified as their label, with finite logits.
      class_examples: [K] examples of each class.
      class_correct: [K] correct ones of each class.
      loss: mean cross-entropy in nats; not a number where some logits were not finite.
      nonfinite: examples with a NaN or an infinity among their logits; they count as wrong.
      probabilities: examples whose logits are a distribution: none is negative, and they sum to 1.
      outcomes: {"index" [N], "right" [N] bool}: each example's dataset index, and whether it was classified correctly.
    """

    examples: int
    correct: int
    class_examples: np.ndarray
    class_correct: np.ndarray
    loss: float
    nonfinite: int
    probabilities: int = 0
    outcomes: Mapping[str, np.ndarray] | None = None

    @property
    def accuracy(self) -> float:
        """correct / examples; not a number when nothing was measured."""
        return self.correct / self.examples if self.examples else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return intervals.wilson(self.correct, self.examples)

    @property
    def notes(self) -> list[str]:
        """What a reader of the figure must know."""
        softmax = self.examples and self.probabilities == self.examples
        return [PROBABILITIES] if softmax else []

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `per_class` has one {"examples", "correct", "accuracy"} a class, and NaN becomes None. "notes"
        is there where there are any.
        """
        per_class = [
            {"examples": int(n), "correct": int(k), "accuracy": int(k) / int(n) if n else None}
            for n, k in zip(self.class_examples, self.class_correct)
        ]
        return {
            "accuracy": _number(self.accuracy),
            "interval": list(self.interval),
            "examples": self.examples,
            "correct": self.correct,
            "loss": _number(self.loss),
            "nonfinite": self.nonfinite,
            "per_class": per_class,
            **self._packed(),
            **({"notes": self.notes} if self.notes else {}),
        }

    def _packed(self) -> dict[str, Any]:
        """The outcomes as result.json keeps them, where there are any."""
        packed = self.outcomes and pairs.pack(self.outcomes["index"], self.outcomes["right"])
        return {"outcomes": packed} if packed else {}


def correct(
    keys: Keys,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    attack: Attack | None = None,
    strength: Array | float = 1.0,
) -> dict[str, Array]:
    """Judges one batch, attacked first if an attack is given; every result is per example.

    Args:
      keys: [B] keys of the attack.
      logits_fn: the classifier.
      images: [B,H,W,C] uint8, or floats in [0,1].
      labels: [B] integers.
      attack: None measures the clean accuracy.
      strength: scales the attack's epsilon; traced.

    Returns:
      Arrays [B]: "correct" bool, "prediction" int32, "confidence" of that prediction, "loss" (cross-entropy of the
      label), "finite" bool (all logits are numbers). Logits that are not finite are never correct. Under "logits" the
      [B,K] logits themselves.
    """
    images = as_float(images)
    if attack is not None:
        images = attack(keys, logits_fn, images, labels, strength)
    logits = logits_fn(images).astype(jnp.float32)  # [B,K]
    log_p = jax.nn.log_softmax(logits)
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return {
        "correct": finite & (prediction == labels),
        "prediction": prediction,
        "confidence": jnp.exp(jnp.max(log_p, axis=-1)),
        "loss": -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0],
        "finite": finite,
        "logits": logits,
    }


class Measurer:
    """Measures accuracies over whole splits with one compiled program.

    The program is compiled at the first batch and serves every later batch of that shape, every weight of that model,
    and every strength: construct it once and keep it.

    Args:
      attack: what is done to the images first; None for the clean accuracy.
      mesh: the devices that share each batch; all by default.
      seed: an integer (or typed key) from which, with the dataset index, each example's key is derived.

    Example:
      >>> clean = Measurer()
      >>> robust = Measurer(attacks.pgd(norm="linf", epsilon=0.1, step_size=0.025, steps=20))
      >>> clean.measure(logits_fn, batches()).accuracy, robust.measure(logits_fn, batches()).accuracy
    """

    def __init__(self, attack: Attack | None = None, mesh: Mesh | None = None, seed: int | Array = 0):
        self.attack = attack
        self.mesh = parallel.mesh() if mesh is None else mesh
        self.key = parallel.replicate(self.mesh, randomness.as_key(seed))
        self._classes: dict[Any, int] = {}
        self._count = parallel.compile(self._count_batch, self.mesh, arguments="rrbr", results="r")

    def measure(self, logits_fn: LogitsFn, batches: Iterable[Batch], strength: float = 1.0) -> Measurement:
        """Measures every unmasked example of `batches` once.

        Args:
          logits_fn: any callable; a pytree that holds its weights, so that new ones do not recompile, is best.
          batches: this host's slice of each batch: "image", "label", and where present "index" and "mask". A last batch
            that is shorter than the first is padded here.
          strength: in [0,1].

        Raises:
          ValueError: if there is no batch, labels are outside the model's classes, float images or strength outside
            [0,1], or the function returns no logits [B,K].
        """
        return self.sweep(logits_fn, batches, (strength,))[0]

    def sweep(self, logits_fn: LogitsFn, batches: Iterable[Batch], strengths: Sequence[float]) -> list[Measurement]:
        """`measure` at several strengths, with one compilation and one pass over the data."""
        for strength in strengths:
            if not 0.0 <= strength <= 1.0:
                raise ValueError(f"strength = {strength}: must lie in [0, 1]")
        logits_fn = jax.device_put(as_logits_fn(logits_fn), parallel.replicated(self.mesh))
        structure = jax.tree.structure(logits_fn)
        totals: list[Any] = [None] * len(strengths)
        pending: tuple[int, Any] | None = None  # one batch in flight: the host prepares the next while devices work
        for batch in padded(batches, self._multiple()):
            check_batch(batch, self._classes_of(logits_fn, structure, batch["image"].shape))
            placed = parallel.global_batch(self.mesh, batch)
            for i, strength in enumerate(strengths):
                launched = (i, self._count(self.key, logits_fn, placed, np.float32(strength)))
                _collect(totals, pending)
                pending = launched
        _collect(totals, pending)
        if pending is None:
            raise ValueError("batches: there is nothing to measure, the iterable gave no batch")
        return [_measurement(total) for total in totals]

    def _classes_of(self, logits_fn: LogitsFn, structure: Any, shape: tuple[int, ...]) -> int:
        """How many classes the model tells apart, looked up once for each model and shape of batch."""
        if (structure, shape) not in self._classes:
            self._classes[structure, shape] = check_logits(logits_fn, shape[1:], max(2, shape[0]))
        return self._classes[structure, shape]

    def _multiple(self) -> int:
        """This host's share of a batch must be a multiple of this host's devices on the mesh."""
        return sum(d.process_index == jax.process_index() for d in self.mesh.devices.flat)

    def _count_batch(self, key: Array, logits_fn: LogitsFn, batch: Batch, strength: Array) -> dict[str, Array]:
        keys = randomness.example_keys(key, batch["index"], randomness.EVALUATION_ATTACK)
        labels, mask = batch["label"], batch["mask"]
        result = correct(keys, logits_fn, batch["image"], labels, self.attack, strength)
        classes = result["logits"].shape[-1]
        one_hot = (labels[:, None] == jnp.arange(classes)[None]) & mask[:, None]  # [B,K]
        return {
            "examples": jnp.sum(mask),
            "correct": jnp.sum(result["correct"] & mask),
            "class_examples": jnp.sum(one_hot, axis=0),
            "class_correct": jnp.sum(one_hot & result["correct"][:, None], axis=0),
            "loss": jnp.sum(jnp.where(mask, result["loss"], 0.0)),
            "nonfinite": jnp.sum(~result["finite"] & mask),
            "outcomes": {"index": batch["index"], "right": result["correct"], "mask": mask},  # whole on every host
            "probabilities": jnp.sum(_is_distribution(result["logits"]) & mask),
        }


def _is_distribution(logits: Array) -> Array:
    """[B] bool: whether a row of logits [B,K] looks like the output of a softmax."""
    return (logits.min(-1) >= 0) & (jnp.abs(logits.sum(-1) - 1) < SOFTMAX_TOLERANCE)


def check_batch(batch: Batch, classes: int) -> None:
    """Looks at a batch on the host, where its values are known; masked examples may hold anything.

    Args:
      batch: from `padded`.
      classes: of the model.

    Raises:
      ValueError: for labels outside [0, classes), or float images outside [0,1] or not finite.
    """
    mask = batch["mask"]
    labels, images = batch["label"][mask], batch["image"]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        count, first = int(outside.sum()), int(labels[outside][0])
        raise ValueError(f"label = {first}: {count} of {len(labels)} examples are outside the {classes} classes")
    if images.dtype.kind not in "iu" and mask.any():
        low, high = float(images[mask].min()), float(images[mask].max())  # NaN if there is one
        check("images", [low, high], low >= 0 and high <= 1, "floats in [0, 1] (uint8 is divided by 255)")


def padded(batches: Iterable[Batch], multiple: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Completes batches: adds missing "mask" and "index", and pads with masked copies of row 0 to the first batch's
    size, rounded up to `multiple`.

    Without "index" the examples are numbered as they come, which names them only as long as their order is the same.
    """
    size, seen = 0, 0
    for batch in batches:
        labels = np.asarray(batch["label"])
        integers = labels.ndim == 1 and labels.dtype.kind in "iu"
        check("label", f"{labels.dtype}{list(labels.shape)}", integers, "integers [B]")
        labels, count = labels.astype(np.int32), len(labels)
        size = size or -(-count // multiple) * multiple
        if count > size:
            raise ValueError(f"batch of {count} examples: must not be larger than the first batch ({size})")
        if "index" not in batch and jax.process_count() > 1:
            raise ValueError("batch without 'index': with several hosts every example must carry its dataset index")
        whole = {
            "image": np.asarray(batch["image"]),
            "label": labels,
            "index": randomness.indices(batch.get("index", np.arange(seen, seen + count))),
            "mask": np.asarray(batch.get("mask", np.ones(count)), bool),
        }
        seen += count
        rows = np.r_[np.arange(count), np.zeros(size - count, int)]
        short = {name: value[rows] for name, value in whole.items()} if count < size else whole
        short["mask"] = short["mask"] & (np.arange(size) < count)
        yield short


def _collect(totals: list[Any], pending: tuple[int, Any] | None) -> None:
    """Adds a batch's sums to those of its strength, in int64 and float64, and joins the outcomes."""
    if pending is None:
        return
    i, counts = pending
    outcomes = jax.tree.map(np.asarray, counts.pop("outcomes"))
    kept = {name: outcomes[name][outcomes["mask"]] for name in ("index", "right")}
    counts = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else np.int64), counts)
    if totals[i] is None:
        totals[i] = counts | {"outcomes": kept}
        return
    earlier = totals[i].pop("outcomes")
    joined = {name: np.concatenate([earlier[name], kept[name]]) for name in kept}
    totals[i] = jax.tree.map(np.add, totals[i], counts) | {"outcomes": joined}


def _measurement(total: dict[str, np.ndarray]) -> Measurement:
    examples, named = int(total["examples"]), int(total["class_examples"].sum())
    if named != examples:
        classes = len(total["class_examples"])
        raise ValueError(f"label: {examples - named} of {examples} examples are outside the {classes} classes")
    return Measurement(
        examples=examples,
        correct=int(total["correct"]),
        class_examples=total["class_examples"],
        class_correct=total["class_correct"],
        loss=float(total["loss"]) / examples if examples else float("nan"),
        nonfinite=int(total["nonfinite"]),
        probabilities=int(total["probabilities"]),
        outcomes=total["outcomes"],
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
