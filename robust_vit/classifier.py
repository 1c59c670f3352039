"""One classifier with what belongs to it: weights, the threat it was made for, its data, the names of its classes.

    classifier = load("runs/digits")          # ViT, 201k weights, step 234, Linf 0.1
    adversarial = classifier.attack("pgd", images, labels, steps=20)
    result = classifier.evaluate("clean,pgd", "test")

Everything here is a short way to the functions of `attacks`, `evaluation` and `models`, which take a classifier as
their `logits_fn` too.
"""

import dataclasses
import functools
import numbers
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import attacks, batching, models, randomness
from robust_vit.errors import check
from robust_vit.evaluation import callables
from robust_vit.pixels import as_float
from robust_vit.threat import Threat
from robust_vit.typing import Array, LogitsFn, Variables


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
        partial = callables.as_logits_fn(logits_fn)
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
        if self.module is not None:
            shape, channels = f"{images.dtype}{list(images.shape)}", self.module.channels
            check("images", shape, images.ndim == 4 and images.shape[3] == channels, f"[B,H,W,C] with C = {channels}")
        integers = jnp.issubdtype(images.dtype, jnp.integer)
        return super().__call__(as_float(images) if integers else images)

    def __repr__(self) -> str:
        said = [self.name, f"{models.short(self.weights)} weights"]
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

    def predict(self, images: Any, batch_size: int = batching.SIZE) -> np.ndarray:
        """The most likely class of each image.

        Args:
          images: [N,H,W,C] uint8, or floats in [0,1].
          batch_size: images at once.

        Returns:
          [N] integers.
        """
        images = self._checked(images)
        return np.asarray(batching.in_batches(lambda *given: _predicted(*given)[0], batch_size, (self,), (images,)))

    def attack(
        self,
        name: str,
        images: Any,
        labels: Any,
        *,
        threat: Threat | str | None = None,
        seed: int = 0,
        indices: Any = None,
        batch_size: int = batching.SIZE,
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
        known = {} if {"norm", "epsilon"} <= keywords.keys() else self._threat(threat).keywords
        run = _compiled(name, tuple(sorted((known | keywords).items())))
        images, labels = self._checked(images), jnp.asarray(labels)
        images = as_float(images) if jnp.issubdtype(images.dtype, jnp.integer) else images
        count, classes = len(images), _classes(self, images)
        fits = labels.shape in ((count,), (count, classes))
        check("labels.shape", labels.shape, fits, f"({count},), or distributions ({count}, {classes})")
        if jnp.issubdtype(labels.dtype, jnp.integer) and not isinstance(labels, jax.core.Tracer):
            top = int(labels.max(initial=0))
            check("labels", top, labels.min(initial=0) >= 0 and top < classes, f"in [0, {classes})")
        indices = jnp.arange(count) if indices is None else jnp.asarray(indices)
        check("indices.shape", indices.shape, indices.shape == (count,), f"({count},), one an image")
        return batching.in_batches(run, batch_size, (randomness.as_key(seed), self), (indices, images, labels))

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
        batches = batching.of(data, self.config, batch_size, limit)
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
        split = split if isinstance(data, str) and limit is None else f"{split}, {batching.name_of(context.arrays())}"
        return suites_lib.evaluate(names, context, context.workdir / record.RESULT, split=split, step=self.step)

    def attention(self, images: Any) -> list[Array]:
        """The attention maps of every block, in the order they run.

        Args:
          images: [B,H,W,C] uint8, or floats in [0,1].

        Returns:
          One array [B,A,Q,K] a block: heads, queries, keys; each row sums to 1. Windows count as heads:
          `analysis.attention_maps` tells them apart, and says what asks and what answers.

        Raises:
          ValueError: if the model has no attention maps.
        """
        from robust_vit.analysis import attention

        attention.parts(self)  # which tells a model of somebody else's, whatever the images are
        return list(attention.traced_maps(self, as_float(self._checked(images)))[0].values())

    def _threat(self, given: Threat | str | None) -> Threat:
        threat = self.threat if given is None else Threat.parse(given)
        check("threat", given, threat is not None, "given, such as 'linf-8/255': this classifier has none of its own")
        return threat

    def _checked(self, images: Any) -> Array:
        """Images as an array, refused in one line where the model cannot take them."""
        images = jnp.asarray(images)
        shape = f"{images.dtype}{list(images.shape)}"
        number = images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
        check("images", shape, images.ndim == 4 and number, "uint8, or floats in [0,1], of shape [B,H,W,C]")
        if jnp.issubdtype(images.dtype, jnp.floating) and not isinstance(images, jax.core.Tracer):
            low, high = float(images.min(initial=0)), float(images.max(initial=0))
            check("images", f"floats in [{low:g}, {high:g}]", 0 <= low and high <= 1, "uint8, or floats in [0,1]")
        if self.module is None:
            callables.check_logits(self, images.shape[1:])
        elif images.shape[1:] != models.image_shape(self.module):
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
def _predicted(classifier: Classifier, images: Array) -> tuple[Array, Array]:
    """The most likely classes [B], and the logits [B,K]."""
    logits = classifier(images)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits


def _compiled(name: str, keywords: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """An attack that is compiled once however often it is asked for; anew where a keyword is an array."""
    plain = all(isinstance(value, str | numbers.Real | None) for _, value in keywords)
    return _kept(name, keywords) if plain else _kept.__wrapped__(name, keywords)


@functools.lru_cache(maxsize=64)
def _kept(name: str, keywords: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    attack = attacks.build(name, **dict(keywords))

    @jax.jit
    def run(key: Array, classifier: Classifier, indices: Array, images: Array, labels: Array) -> Array:
        keys = randomness.example_keys(key, indices, randomness.EVALUATION_ATTACK)
        return attack(keys, classifier, images, labels)

    return run


def _classes(classifier: Classifier, images: Array) -> int:
    """K, without running the model."""
    return _predicted.eval_shape(classifier, images)[1].shape[-1]


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
