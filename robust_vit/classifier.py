"""One classifier with what belongs to it: weights, the threat it was made for, its data, the names of its classes.

    classifier = load("runs/digits")          # ViT, 201k weights, step 234, Linf 0.1
    adversarial = classifier.attack("pgd", images, labels, steps=20)
    result = classifier.evaluate("clean,pgd", "test")

Everything here is a short way to the functions of `attacks`, `evaluation` and `models`, which take a classifier as
their `logits_fn` too.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import attacks, models, randomness
from robust_vit.errors import check
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.pixels import as_float
from robust_vit.threat import Threat
from robust_vit.typing import Array, LogitsFn, Variables

BATCH = 256  # images a compiled call; changes no result


class Classifier(jax.tree_util.Partial):
    """A `LogitsFn` that knows where it is from.

    A pytree whose leaves are the weights: compiled functions take it as an argument, and compile once for all
    classifiers of equal modules and threats.

    Args:
      logits_fn: images [B,H,W,C] in [0,1] -> logits [B,K]; a pytree that holds its weights, or a plain function.
      threat: a `Threat` or its text, such as "linf-8/255"; what `attack` and `evaluate` take by default.
      name: of the model.
      step: training step of the weights.
      class_names: K names; by default those of the run's data.
      config: of the run; names the data of `evaluate("...", "test")`.
    """

    def __new__(cls, logits_fn: LogitsFn, **_: Any) -> "Classifier":
        partial = as_logits_fn(logits_fn)
        if not isinstance(partial, functools.partial):  # another library's model, itself a pytree
            partial = jax.tree_util.Partial(_call, partial)
        return functools.partial.__new__(cls, partial.func, *partial.args, **partial.keywords)

    def __init__(
        self,
        logits_fn: LogitsFn,
        *,
        threat: Threat | str | None = None,
        name: str | None = None,
        step: int | None = None,
        class_names: Sequence[str] | None = None,
        config: Any = None,
    ):
        self.threat = None if threat is None else Threat.parse(threat)
        self.name, self.step, self.config = name or _title(logits_fn), step, config
        self._class_names = None if class_names is None else tuple(class_names)

    def __call__(self, images: Array) -> Array:
        """Logits [B,K] of images [B,H,W,C]: floats in [0,1], or uint8."""
        images = jnp.asarray(images)
        integers = jnp.issubdtype(images.dtype, jnp.integer)
        return super().__call__(as_float(images) if integers else images)

    def __repr__(self) -> str:
        said = [self.name, f"{_short(self.weights)} weights"]
        said += [] if self.step is None else [f"step {self.step}"]
        return ", ".join(said + ([] if self.threat is None else [self.threat.label]))

    @property
    def module(self) -> Any:
        """The Flax module behind it; None where there is none."""
        return getattr(self.func, "module", None)

    @property
    def variables(self) -> Variables | None:
        """The module's variables."""
        return self.args[0] if self.module is not None else None

    @property
    def weights(self) -> int:
        """How many numbers it learned: its parameters, without running statistics."""
        if hasattr(self.func, "weights"):  # a network of another library, behind a callback
            return self.func.weights
        held = self.variables["params"] if self.module is not None else (self.args, self.keywords)
        return sum(leaf.size for leaf in jax.tree.leaves(held) if hasattr(leaf, "size"))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, from the run's data; None where it has none."""
        if self._class_names is None and self.config is not None:
            from robust_vit.training import experiment

            self._class_names = experiment.build_data(self.config).class_names
        return self._class_names

    def predict(self, images: Any, batch_size: int = BATCH) -> np.ndarray:
        """The most likely class of each image.

        Args:
          images: [N,H,W,C] uint8, or floats in [0,1].
          batch_size: images at once.

        Returns:
          [N] integers.
        """
        images = self._checked(images)
        return np.asarray(_in_batches(_predict, batch_size, (self,), (images,)))

    def attack(
        self,
        name: str,
        images: Any,
        labels: Any,
        *,
        threat: Threat | str | None = None,
        seed: int = 0,
        indices: Any = None,
        batch_size: int = BATCH,
        **keywords: Any,
    ) -> Array:
        """Adversarial images.

        Args:
          name: of `attacks.names()`.
          images: [N,H,W,C] uint8, or floats in [0,1].
          labels: [N] integers or [N,K] distributions; what a targeted attack wants to reach.
          threat: a `Threat` or its text; the classifier's own by default.
          seed: of the random draws.
          indices: [N] dataset indices, which name the examples in the draws; 0 .. N-1 by default.
          batch_size: images at once; changes no draw.
          **keywords: of the attack (`steps=20`); `norm` and `epsilon` go before the threat's.

        Returns:
          [N,H,W,C] floats in [0,1], inside the ball.

        Raises:
          ValueError: an unknown attack, a bad keyword, images that do not fit, or no threat.
        """
        images, labels = self._checked(images), jnp.asarray(labels)
        images = as_float(images) if jnp.issubdtype(images.dtype, jnp.integer) else images
        count = len(images)
        check("labels.shape", labels.shape, labels.shape[:1] == (count,), f"[{count}] or [{count},K]")
        known = {} if {"norm", "epsilon"} <= keywords.keys() else self._threat(threat).keywords
        run = _compiled(name, tuple(sorted((known | keywords).items())))
        indices = jnp.arange(count) if indices is None else jnp.asarray(indices)
        return _in_batches(run, batch_size, (randomness.as_key(seed), self), (indices, images, labels))

    def evaluate(
        self,
        suites: str | Sequence[str] = "clean,pgd",
        data: Any = "test",
        *,
        threat: Threat | str | None = None,
        seed: int | None = None,
        limit: int | None = None,
        steps: int | None = None,
        restarts: int | None = None,
        batch_size: int | None = None,
        workdir: str | pathlib.Path | None = None,
        say: Callable[[str], None] = print,
        **options: Any,
    ) -> dict[str, Any]:
        """Measures accuracies, clean and under attack.

        Args:
          suites: names of `evaluation.suites.SUITES`, in a list or joined by commas.
          data: "train", "validation" or "test" of the run's own data; a `data.Dataset` (its test split); a source; or
            (images [N,H,W,C], labels [N]).
          threat: a `Threat` or its text; the classifier's own by default.
          seed: of the attacks; the run's by default, or 0.
          limit: at most so many examples, always the same ones.
          steps, restarts: of PGD; the run's by default.
          batch_size: examples at once.
          workdir: a folder to keep `result.json` and ledgers in, where a later call continues; None keeps nothing.
          say: takes one line of progress.
          **options: of single suites, see `evaluation.suites.OPTIONS`.

        Returns:
          {suite: {"accuracy", "interval", ...}} with what was measured, as in `result.json`.

        Raises:
          ValueError: an unknown suite, data that do not fit, or no threat.
        """
        from robust_vit.evaluation import record
        from robust_vit.evaluation import suites as suites_lib

        names = suites_lib.parse(suites)
        batches = self._batches(data, batch_size, limit)
        first = next(iter(batches))
        self._checked(first["image"])
        run = {"seed": self.config.seed, "steps": self.config.evaluation.steps} if self.config is not None else {}
        run |= {"restarts": self.config.evaluation.restarts} if self.config is not None else {}
        given = {"seed": seed, "steps": steps, "restarts": restarts}
        context = suites_lib.Context(
            logits_fn=self,
            batches=lambda: batches,
            **self._threat(threat).keywords,
            **(run | {name: value for name, value in given.items() if value is not None}),
            module=self.module,
            variables=self.variables,
            workdir=None if workdir is None else pathlib.Path(workdir),
            class_names=self.class_names,
            options=options,
            say=say,
        )
        split = data if isinstance(data, str) else "given"
        if workdir is None:
            return suites_lib.evaluate(names, context, None, split=split, step=self.step)
        split = split if isinstance(data, str) and limit is None else f"{split}, {_named(context.arrays())}"
        return suites_lib.evaluate(names, context, context.workdir / record.RESULT, split=split, step=self.step)

    def attention(self, images: Any) -> list[Array]:
        """The attention maps of every block, in the order they run.

        Args:
          images: [B,H,W,C] uint8, or floats in [0,1].

        Returns:
          One array [B,A,Q,K] a block: heads, queries, keys; each row sums to 1.

        Raises:
          ValueError: if the model has no attention maps.
        """
        check("attention", self.name, self.module is not None, "asked of a model of robust_vit.models")
        _, found = models.capture(self.module, self.variables, as_float(self._checked(images)), ["attention"])
        check("attention", self.name, bool(found["attention"]), "asked of a model that has attention maps")
        return found["attention"]

    def _threat(self, given: Threat | str | None) -> Threat:
        threat = self.threat if given is None else Threat.parse(given)
        check("threat", given, threat is not None, "given, such as 'linf-8/255': this classifier has none of its own")
        return threat

    def _batches(self, data: Any, batch_size: int | None, limit: int | None) -> Any:
        """Masked batches of what `evaluate` was given, re-iterable."""
        from robust_vit.data import Dataset, pipeline
        from robust_vit.training import experiment

        reading: dict[str, Any] = {"batch_size": batch_size or BATCH, "limit": limit}
        if isinstance(data, tuple | list):
            return _array_batches(*data, **reading)
        if isinstance(data, Dataset):
            return pipeline.evaluate(data.test, transforms=data.evaluation_transforms, **reading)
        if not isinstance(data, str):
            return pipeline.evaluate(data, **reading)
        check("data", data, self.config is not None, "(images, labels), a Dataset or a source: this is no run's model")
        dataset, section = experiment.build_data(self.config), self.config.data
        reading["batch_size"] = batch_size or self.config.evaluation.batch_size
        transforms = dataset.evaluation_transforms
        stored = {"workers": section.workers, "on_bad_image": section.on_bad_image}
        return pipeline.evaluate(dataset.split(data), transforms=transforms, **stored, **reading)

    def _checked(self, images: Any) -> Array:
        """Images as an array, refused in one line where the model cannot take them."""
        images = jnp.asarray(images)
        shape = f"{images.dtype}{list(images.shape)}"
        number = images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
        check("images", shape, images.ndim == 4 and number, "uint8, or floats in [0,1], of shape [B,H,W,C]")
        if jnp.issubdtype(images.dtype, jnp.floating) and not isinstance(images, jax.core.Tracer):
            low, high = float(images.min(initial=0)), float(images.max(initial=0))
            check("images", f"floats in [{low:g}, {high:g}]", 0 <= low and high <= 1, "uint8, or floats in [0,1]")
        if self.module is not None and images.shape[1:] != models.image_shape(self.module):
            height, width, channels = models.image_shape(self.module)
            wanted = f"[B,{height},{width},{channels}], as the model takes them"
            check("images", shape, images.shape[3] == channels and _takes(self, images), wanted)
        return images


@dataclasses.dataclass(frozen=True)
class _Static:
    """What of a classifier is not weights; compiled functions are shared where function and threat are equal."""

    function: Callable[..., Any]
    threat: Threat | None
    rest: dict[str, Any] = dataclasses.field(compare=False)


def _flatten(classifier: Classifier) -> tuple[tuple[Any, Any], _Static]:
    return (classifier.args, classifier.keywords), _Static(classifier.func, classifier.threat, vars(classifier))


def _unflatten(static: _Static, held: tuple[Any, Any]) -> Classifier:
    classifier = functools.partial.__new__(Classifier, static.function, *held[0], **held[1])
    vars(classifier).update(static.rest)
    return classifier


jax.tree_util.register_pytree_node(Classifier, _flatten, _unflatten)


def _call(function: LogitsFn, images: Array) -> Array:
    return function(images)


@jax.jit
def _predict(classifier: Classifier, images: Array) -> Array:
    return jnp.argmax(classifier(images), axis=-1).astype(jnp.int32)


@functools.lru_cache(maxsize=64)
def _compiled(name: str, keywords: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """An attack that is compiled once however often it is asked for."""
    attack = attacks.build(name, **dict(keywords))

    @jax.jit
    def run(key: Array, classifier: Classifier, indices: Array, images: Array, labels: Array) -> Array:
        keys = randomness.example_keys(key, indices, randomness.EVALUATION_ATTACK)
        return attack(keys, classifier, images, labels)

    return run


def _in_batches(function: Callable[..., Array], size: int, shared: tuple[Any, ...], arrays: tuple[Array, ...]) -> Array:
    """function(*shared, *arrays) for at most `size` rows at once; a short last batch repeats row 0, so that all batches
    share one program.
    """
    count = len(arrays[0])
    check("images", count, count > 0, "at least one image")
    check("batch_size", size, size >= 1, "at least 1")
    if count <= size:
        return function(*shared, *arrays)
    found = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        rows[rows >= count] = 0
        found.append(function(*shared, *(array[rows] for array in arrays)))
    return jnp.concatenate(found)[:count]


def _array_batches(images: Any, labels: Any, batch_size: int, limit: int | None) -> list[dict[str, np.ndarray]]:
    """Arrays as batches, in order."""
    from robust_vit.data import splits

    images, labels = np.asarray(images), np.asarray(labels)
    check("labels.shape", labels.shape, labels.shape == images.shape[:1], f"[{len(images)}], one an image")
    check("labels", labels.dtype.name, labels.dtype.kind in "iu", "integers")
    check("limit", limit, limit is None or limit > 0, "at least 1")
    index = np.arange(len(labels)) if limit is None else splits.select(len(labels), limit)
    parts = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
    check("images", len(labels), bool(parts), "at least one image")
    return [{"image": images[part], "label": labels[part], "index": part} for part in parts]


def _named(examples: tuple[np.ndarray, np.ndarray, np.ndarray]) -> str:
    """What tells a set of examples from others in a result file."""
    from robust_vit.evaluation import fingerprint

    return f"{len(examples[1])} examples {fingerprint.data(*examples)[:8]}"


def _takes(classifier: Classifier, images: Array) -> bool:
    """Whether a model built for one size of images runs on another."""
    try:
        jax.eval_shape(classifier, images)
    except Exception:  # Flax and JAX raise many kinds for shapes that do not fit
        return False
    return True


def _title(function: Any) -> str:
    """What a model is called that nobody has named."""
    held = getattr(function, "func", function)
    held = getattr(held, "module", held)
    return getattr(held, "__name__", type(held).__name__)


def _short(count: int) -> str:
    """201098 -> 201k."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= power:
            return f"{count / power:.3g}{letter}"
    return str(count)
