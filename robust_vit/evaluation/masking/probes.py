"""What the masking report measures: pure functions of a batch that return one number per example, compiled once each.

Every radius is traced, so that one compiled walk serves the attack, the single step and the whole sweep of epsilons.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import randomness
from robust_vit.attacks import losses, norms
from robust_vit.typing import Array, Attack, Keys, LogitsFn

PIXELS = norms.PIXELS
Measured = dict[str, Array]


def walk(
    keys: Keys,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    epsilon: Array | float,
    step_size: Array | float,
    start: Array | float,
    *,
    norm: str,
    loss: str,
    steps: int,
) -> Measured:
    """A PGD that tells what it saw at every step: x <- project(x + step_size * (1 + cos(pi t/T))/2 * steepest(g)).

    The step shrinks to zero, so that an honest ascent ends at rest: what still moves at the end has not converged.

    Args:
      keys: [B].
      images: [B,H,W,C] in [0,1].
      labels: [B] int.
      epsilon, step_size: scalars, traced.
      start: 1.0 starts at a uniform point of the ball, 0.0 at the image itself; traced.
      norm, loss, steps: static.

    Returns:
      "loss" [T+1,B], "wrong" [T+1,B] bool, and of the gradient "zero" [T,B], "nonfinite" [T,B].
    """
    ball, objective = norms.get(norm), losses.get(loss)

    def judge(points: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(points)
        value = objective(logits, labels)
        return jnp.sum(value), (value, jnp.argmax(logits, axis=-1) != labels)

    def step(points: Array, t: Array) -> tuple[Array, Measured]:
        (_, (value, wrong)), g = jax.value_and_grad(judge, has_aux=True)(points)
        told = {
            "loss": value,
            "wrong": wrong,
            "zero": jnp.all(g == 0, axis=PIXELS),
            "nonfinite": ~jnp.all(jnp.isfinite(g), axis=PIXELS),
        }
        length = step_size * 0.5 * (1.0 + jnp.cos(jnp.pi * t / steps))
        g = jnp.where(jnp.isfinite(g), g, 0.0)
        return ball.project(points + length * ball.steepest(g, points), images, epsilon), told

    first = images + start * (ball.start(keys, images, epsilon) - images)
    last, told = jax.lax.scan(step, first, jnp.arange(steps, dtype=jnp.float32))
    _, (value, wrong) = judge(last)
    told["loss"] = jnp.concatenate([told["loss"], value[None]])  # [T+1,B]
    told["wrong"] = jnp.concatenate([told["wrong"], wrong[None]])
    return told


def look(logits_fn: LogitsFn, images: Array, labels: Array) -> Measured:
    """One forward pass: "class", "wrong", "finite", "margin" = z_y - max_{j != y} z_j, sum and least of z, all [B]."""
    logits = losses.in_float32(logits_fn(images))
    return {
        "class": jnp.argmax(logits, axis=-1),
        "wrong": jnp.argmax(logits, axis=-1) != labels,
        "finite": jnp.all(jnp.isfinite(logits), axis=-1),
        "margin": -losses.margin(logits, labels),
        "total": jnp.sum(logits, axis=-1),
        "least": jnp.min(logits, axis=-1),
    }


def noise(
    keys: Keys,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    epsilon: Array | float,
    *,
    norm: str,
    draws: int,
) -> Measured:
    """Random noise instead of an attack: "wrong" [R,B] on the sphere of radius epsilon, "margin" [R,B] in half of it.

    On the linf sphere every pixel moves by +-epsilon, on the others the direction is that of normal noise.
    """
    ball = norms.get(norm)

    def draw(_: None, index: Array) -> tuple[None, Measured]:
        sphere, inside = norms.split(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index))
        direction = ball.steepest(norms.draw(sphere, images, jax.random.normal), images)
        far = look(logits_fn, norms.box(images + epsilon * direction), labels)
        near = look(logits_fn, ball.start(inside, images, 0.5 * epsilon), labels)
        return None, {"wrong": far["wrong"], "margin": near["margin"]}

    return jax.lax.scan(draw, None, jnp.arange(draws))[1]


def differences(
    keys: Keys,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    lengths: Array,
    *,
    norm: str,
    directions: int,
) -> Measured:
    """Compares the gradient with central differences of f = z_j - z_y, j the runner-up at the image.

    For every length h and direction d: measured (f(x + h d) - f(x - h d)) / 2 against predicted h <g, d>. The images
    are first moved away from the border of the box by what a pixel changes, so that every point asked for is an image.

    Args:
      lengths: [S], in the units of the norm.

    Returns:
      "measured", "predicted" [S,R,B], "scale" [B] (the largest |logit|), "zero" [B] (no such point has a gradient).
    """
    ball = norms.get(norm)
    clean = logits_fn(images)
    classes = jnp.arange(clean.shape[-1])[None]
    runner_up = jnp.argmax(jnp.where(classes == labels[:, None], -jnp.inf, clean), axis=-1)

    def f(points: Array) -> Array:
        z = losses.in_float32(logits_fn(points))
        return _take(z, runner_up) - _take(z, labels)

    def compare(_: None, which: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
        index, length = which
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        d = length * ball.steepest(norms.draw(own, images, jax.random.normal), images)
        room = jnp.minimum(jnp.max(jnp.abs(d), axis=PIXELS, keepdims=True), 0.5)
        x = jnp.clip(images, room, 1.0 - room)
        g = jax.grad(lambda points: jnp.sum(f(points)))(x)
        return None, (0.5 * (f(x + d) - f(x - d)), jnp.sum(g * d, axis=PIXELS), jnp.all(g == 0, axis=PIXELS))

    grid = jnp.repeat(lengths, directions)  # [S*R]
    _, (measured, predicted, zero) = jax.lax.scan(compare, None, (jnp.arange(len(grid)), grid))
    shape = (len(lengths), directions, len(images))
    return {
        "measured": measured.reshape(shape),
        "predicted": predicted.reshape(shape),
        "scale": jnp.max(jnp.abs(clean), axis=-1),
        "zero": jnp.all(zero, axis=0),
    }


def _take(z: Array, index: Array) -> Array:
    return jnp.take_along_axis(z, index[:, None], axis=-1)[:, 0]


def attacked(
    keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, source_fn: LogitsFn, *, attack: Attack
) -> Measured:
    """Runs an attack against `source_fn`: "wrong" [B] says where `logits_fn` errs on the result."""
    return {"wrong": look(logits_fn, attack(keys, source_fn, images, labels), labels)["wrong"]}


def has_gradient(logits_fn: LogitsFn, images: Array) -> str:
    """Returns "" if the logits can be differentiated in reverse mode, else the first line of what JAX says."""
    try:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(logits_fn(x))), images)
    except Exception as error:  # whatever the program raises is the finding
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


class Sample:
    """The points of a report, in batches of one size; runs a probe over them, compiled once, and joins what it returns.

    Args:
      logits_fn: the classifier.
      images, labels, indices: [N,H,W,C], [N], [N].
      batch_size: of every call; the last batch is completed with copies of the first point, which are cut off again.
    """

    def __init__(self, logits_fn: LogitsFn, images: Array, labels: Array, indices: Array, seed: int, batch_size: int):
        self.logits_fn, self.seed = logits_fn, seed
        self.images, self.labels, self.indices = np.asarray(images), np.asarray(labels), np.asarray(indices)
        self.batch_size = min(batch_size, len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def against(self, logits_fn: LogitsFn) -> "Sample":
        """The same points and draws, another classifier."""
        return Sample(logits_fn, self.images, self.labels, self.indices, self.seed, self.batch_size)

    def at(self, rows: np.ndarray) -> "Sample":
        """Some of the points."""
        chosen = self.images[rows], self.labels[rows], self.indices[rows]
        return Sample(self.logits_fn, *chosen, self.seed, self.batch_size)

    def rows(self) -> list[np.ndarray]:
        """The rows of each batch, all of the same length."""
        count, size = len(self), self.batch_size
        padded = np.r_[np.arange(count), np.zeros(-count % size, int)]
        return list(padded.reshape(-1, size))

    def run(self, probe: Callable[..., Any], purpose: int | None, *arguments: Any) -> dict[str, np.ndarray]:
        """Returns the probe's numbers joined along their last axis, N long.

        Args:
          probe: (keys, logits_fn, images, labels, *arguments) -> numbers, or without keys if `purpose` is None; jitted.
          purpose: numbers the draws of this probe.
        """
        told = []
        for rows in self.rows():
            at = jnp.asarray(self.images[rows]), jnp.asarray(self.labels[rows])
            keys = ()
            if purpose is not None:
                index = jnp.asarray(self.indices[rows])
                keys = (randomness.example_keys(self.seed, index, randomness.EVALUATION_ATTACK, 1000 + purpose),)
            told.append(jax.device_get(probe(*keys, self.logits_fn, *at, *arguments)))
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., : len(self)], *told)
