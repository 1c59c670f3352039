"""What an attack does to a set of examples, step by step: the numbers that curves and the page of a run are drawn from.

    walked = walks.walk(logits_fn, images, labels, norm="linf", epsilon=0.1, steps=20)
    walked.standing_by_step, walked.flipped_at, walked.adversarial

The attack is `attacks.pgd(keep="success")` with one start, to the bit, that tells its loss and its success at every
step.
"""

import dataclasses
import functools
import io
import json
import os
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import provenance, randomness
from robust_vit.attacks import arguments, losses, norms
from robust_vit.attacks.pgd import better, judged, nothing_yet
from robust_vit.errors import check, lookup
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.pixels import as_float
from robust_vit.typing import Array, Keys, LogitsFn

BATCH = 128  # examples in a compiled call; changes no result
NEVER = -1  # the step at which an example flipped that never did


@dataclasses.dataclass(frozen=True)
class Walk:
    """N examples under one attack of T steps.

    Attributes:
      indices: [N] dataset indices.
      labels: [N].
      images: [N,H,W,C] float32 in [0,1].
      adversarial: [N,H,W,C] float32: the misclassified iterate of highest loss, or the iterate of highest loss.
      clean_logits, adversarial_logits: [N,K] float32.
      loss: [T+1,N] cross-entropy in nats at the random start and after each step.
      wrong: [T+1,N] bool, whether the iterate was misclassified.
      norm, epsilon, step_size, seed: of the attack.
    """

    indices: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    adversarial: np.ndarray
    clean_logits: np.ndarray
    adversarial_logits: np.ndarray
    loss: np.ndarray
    wrong: np.ndarray
    norm: str
    epsilon: float
    step_size: float
    seed: int = 0

    @property
    def steps(self) -> int:
        """T."""
        return len(self.loss) - 1

    @property
    def attack(self) -> str:
        """In words: PGD-20."""
        return f"PGD-{self.steps}"

    @property
    def clean_right(self) -> np.ndarray:
        """[N] bool: classified correctly without an attack; logits that are not finite are never correct."""
        return right(self.clean_logits, self.labels)

    @property
    def standing(self) -> np.ndarray:
        """[N] bool: right without an attack, and under it."""
        return self.clean_right & right(self.adversarial_logits, self.labels)

    @property
    def standing_by_step(self) -> np.ndarray:
        """[T+1,N] bool: right without an attack and at every iterate so far."""
        return self.clean_right & ~np.logical_or.accumulate(self.wrong, axis=0)

    @property
    def flipped_at(self) -> np.ndarray:
        """[N] the first step whose iterate was misclassified, 0 for the random start; -1 where there was none, or the
        example was misclassified to begin with.
        """
        first = np.where(self.wrong.any(axis=0), self.wrong.argmax(axis=0), NEVER)
        return np.where(self.clean_right, first, NEVER)

    def margins(self) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): the label's logit minus the largest other one, clean and attacked; below 0 is misclassified."""
        return margin(self.clean_logits, self.labels), margin(self.adversarial_logits, self.labels)

    def save(self, path: str | os.PathLike[str], **identity: Any) -> None:
        """Writes an .npz file in one step; `identity` are plain values that `load` returns with it."""
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, identity=json.dumps(identity, sort_keys=True), **held)
        provenance.write_atomically(path, buffer.getvalue())


def load(path: str | os.PathLike[str]) -> tuple[Walk, dict[str, Any]]:
    """Reads what `Walk.save` wrote: the walk, and its identity.

    Raises:
      ValueError: one line, if the file is damaged or something else.
    """
    try:
        with np.load(path) as held:
            identity = json.loads(str(held["identity"]))
            fields = {f.name: held[f.name] for f in dataclasses.fields(Walk)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: holds no examples under attack ({told}); remove it") from None
    plain = {name: value.item() for name, value in fields.items() if value.ndim == 0}
    return Walk(**fields | plain), identity


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N] bool: the largest logit is the label's, and all are numbers."""
    return np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == labels)


def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N] the label's logit minus the largest other one."""
    rows = np.arange(len(labels))
    others = np.array(logits, np.float64)
    others[rows, labels] = -np.inf
    return logits[rows, labels] - others.max(axis=1)


def walk(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    seed: int = 0,
    indices: np.ndarray | None = None,
    attacked: LogitsFn | None = None,
    batch_size: int = BATCH,
) -> Walk:
    """Attacks examples by PGD and keeps what happened at every step.

    Args:
      logits_fn: the classifier.
      images: [N,H,W,C] uint8, or floats in [0,1].
      labels: [N] integers.
      norm, epsilon: of the ball; epsilon a fraction of the [0,1] pixel range.
      steps: T.
      step_size: 2.5 epsilon / steps by default.
      seed: of the random starts.
      indices: [N] dataset indices, which name the examples in the draws; 0 .. N-1 by default.
      attacked: what the attack differentiates, where that is another form of the classifier.
      batch_size: examples in a compiled call; changes no result.

    Raises:
      ValueError: for a bad argument, before anything compiles.
    """
    lookup("norm", norm, norms.BALLS)
    check("epsilon", epsilon, epsilon > 0, "above 0: a walk has to have somewhere to go")
    check("steps", steps, steps >= 1, "at least 1")
    check("images", len(images), len(images) > 0, "at least one image")
    check("labels.shape", np.shape(labels), np.shape(labels) == (len(images),), f"({len(images)},)")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    logits_fn = as_logits_fn(logits_fn)
    attacked = logits_fn if attacked is None else as_logits_fn(attacked)
    indices = np.arange(len(images)) if indices is None else randomness.indices(indices)
    run, key = _compiled(norm, steps), randomness.as_key(seed)
    size = min(batch_size, len(images))
    found = []
    for start in range(0, len(images), size):
        rows = np.arange(start, start + size)
        real = rows < len(images)
        rows = np.where(real, rows, 0)  # a short last batch repeats the first example, so that one program serves all
        given = (as_float(images[rows]), np.asarray(labels)[rows], indices[rows])
        made = jax.device_get(run(key, logits_fn, attacked, *given, np.float32(epsilon), np.float32(step_size)))
        found.append({name: np.compress(real, value, AXIS.get(name, 0)) for name, value in made.items()})
    joined = {name: np.concatenate([part[name] for part in found], AXIS.get(name, 0)) for name in found[0]}
    return Walk(
        indices=np.asarray(indices),
        labels=np.asarray(labels, np.int32),
        images=np.asarray(as_float(np.asarray(images)), np.float32),
        **joined,
        norm=norm,
        epsilon=float(epsilon),
        step_size=float(step_size),
        seed=int(seed),
    )


AXIS = {"loss": 1, "wrong": 1}  # of the examples, in what is recorded by step


@functools.lru_cache(maxsize=16)
def _compiled(norm: str, steps: int) -> Any:
    """The walk of one batch, compiled once for all weights, radii and step sizes."""
    return jax.jit(functools.partial(_batch, norm=norm, steps=steps))


def _batch(
    key: Array,
    logits_fn: LogitsFn,
    attacked: LogitsFn,
    images: Array,
    labels: Array,
    indices: Array,
    epsilon: Array,
    step_size: Array,
    *,
    norm: str,
    steps: int,
) -> dict[str, Array]:
    keys = randomness.example_keys(key, indices, randomness.EVALUATION_ATTACK)
    points, loss, wrong = recorded(keys, attacked, images, labels, epsilon, step_size, norm=norm, steps=steps)
    logits = [losses.in_float32(logits_fn(x)) for x in (images, points)]
    return {
        "adversarial": points,
        "clean_logits": logits[0],
        "adversarial_logits": logits[1],
        "loss": loss,
        "wrong": wrong,
    }


def recorded(
    keys: Keys,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    epsilon: Array | float,
    step_size: Array | float,
    *,
    norm: str,
    steps: int,
) -> tuple[Array, Array, Array]:
    """PGD by its own parts, one start.

    Args:
      keys: [B].
      images: [B,H,W,C] floats in [0,1].
      labels: [B] int.
      epsilon, step_size: scalars, may be traced.
      norm, steps: static.

    Returns:
      (points [B,H,W,C], loss [T+1,B], wrong [T+1,B]): see `Walk`.
    """
    ball, clean = norms.get(norm), arguments.working(images)
    radius = arguments.per_example(epsilon, images)
    length = arguments.expand(arguments.per_example(step_size, images), clean)
    gradient, verdict = judged(logits_fn, images, labels, losses.get("cross_entropy"), False, by_success=True)

    def step(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
        points, best = carry
        slope, (loss, wrong) = gradient(points)
        best = better(best, points, loss, wrong)
        return (ball.project(points + length * ball.steepest(slope, points), clean, radius), best), (loss, wrong)

    first = ball.start(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0), clean, radius)  # PGD's first restart
    (points, best), (loss, wrong) = jax.lax.scan(step, (first, nothing_yet(clean)), None, length=steps)
    last = verdict(points)
    best = better(best, points, *last)
    told = [jnp.concatenate([before, after[None]]) for before, after in zip((loss, wrong), last)]
    return arguments.finish(best.points, images, radius), *told
