"""A student of a victim's answers, to be attacked with gradients: what fools it is likely to fool the victim."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_vit import randomness
from robust_vit.attacks import losses
from robust_vit.attacks.arguments import check_count, check_pixels, check_positive
from robust_vit.errors import check
from robust_vit.typing import Array, LogitsFn


class Substitute(NamedTuple):
    """What came of it.

    Attributes:
      logits_fn: the student, with gradients.
      queries: images asked of the victim.
      answered: those that it answered; fewer where it has a limit.
      agreement: share of them on which the student says what the victim said.
    """

    logits_fn: LogitsFn
    queries: int
    answered: int
    agreement: float


def substitute(
    victim: Callable[[Array], Array],
    student: Callable[[Any, Array], Array],
    weights: Any,
    images: Array,
    *,
    rounds: int = 6,
    step: float = 0.1,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Substitute:
    """Trains a student on a victim's classes, and doubles its images each round by steps along its own Jacobian.

    A round asks for the classes of the new images, trains, and adds x + step sign(d f_y(x) / dx), y the victim's class:
    N 2^(rounds - 1) queries in all. Images that a limited victim does not answer are left out.

    Args:
      victim: images [B,H,W,C] -> logits [B,K], a `Victim` or any classifier; asked for classes only.
      student: (weights, images) -> logits [B,K], differentiable.
      weights: of the student, to begin with.
      images: [N,H,W,C] floats in [0,1], of the victim's kind.
      rounds: rounds.
      step: of the new images, in units of the [0,1] pixel range; against the class in the first half of the rounds,
        towards it in the second.
      epochs: passes over all images a round.
      batch_size: images an update.
      learning_rate: of Adam.
      seed: of the order.

    Raises:
      ValueError: for a bad argument, or a student of other classes than the victim.

    Reference: Papernot et al. 2017, https://arxiv.org/abs/1602.02697; constants of cleverhans' MNIST tutorial
    """
    for field, value in {"rounds": rounds, "epochs": epochs, "batch_size": batch_size}.items():
        check_count(field, value)
    check_positive("step", step)
    check_positive("learning_rate", learning_rate)
    images = jnp.asarray(images)
    told = f"{images.dtype}{list(images.shape)}"
    check("images", told, images.ndim == 4 and len(images) > 0, "[N,H,W,C], one or more")
    check_pixels(images)
    classes = [jax.eval_shape(*given).shape[-1] for given in ((victim, images), (student, weights, images))]
    check("student's classes", classes[1], classes[0] == classes[1], f"{classes[0]}, the victim's")
    count = len(images)
    room = jnp.zeros((count << (rounds - 1), *images.shape[1:]), images.dtype)  # of one size: one program
    everything, labels = room.at[:count].set(images), jnp.full(len(room), -1, jnp.int32)
    tx = optax.adam(learning_rate)
    fit, grow = jax.jit(_fit(student, tx, batch_size)), jax.jit(_grow(student))
    state, asked = tx.init(weights), 0
    for number in range(rounds):
        answers = jnp.asarray(victim(everything[asked:count]))
        fine = jnp.all(jnp.isfinite(answers), -1)
        labels = labels.at[asked:count].set(jnp.where(fine, jnp.argmax(answers, -1), -1))
        asked = count
        key = jax.random.fold_in(randomness.as_key(seed), number)
        weights, state = fit(key, weights, state, everything, labels, count, epochs * -(-count // batch_size))
        if number < rounds - 1:
            sign = -1.0 if number < rounds // 2 else 1.0
            new = grow(weights, everything, labels, sign * step)[:count]
            everything, count = everything.at[count : 2 * count].set(new), 2 * count
    known = labels >= 0
    agree = (jnp.argmax(student(weights, everything), -1) == labels) & known
    answered = int(known.sum())
    return Substitute(jax.tree_util.Partial(student, weights), asked, answered, float(agree.sum() / max(answered, 1)))


def _fit(student: Callable, tx: optax.GradientTransformation, size: int) -> Callable:
    """(key, weights, state, images, labels, how many of them, updates) -> weights, state; labels of -1 do not count."""

    def mean_loss(weights: Any, x: Array, y: Array) -> Array:
        each = losses.cross_entropy(student(weights, x), jnp.maximum(y, 0))
        return jnp.sum(jnp.where(y >= 0, each, 0.0)) / size

    def run(key: Array, weights: Any, state: Any, images: Array, labels: Array, count: Array, updates: Array) -> Any:
        def update(number: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            weights, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, number), (size,), 0, count)
            change, state = tx.update(jax.grad(mean_loss)(weights, images[rows], labels[rows]), state, weights)
            return optax.apply_updates(weights, change), state

        return jax.lax.fori_loop(0, updates, update, (weights, state))

    return run


def _grow(student: Callable) -> Callable:
    """(weights, images, labels, step) -> images moved along the sign of the Jacobian's row of their class."""

    def run(weights: Any, images: Array, labels: Array, step: float) -> Array:
        def chosen(x: Array) -> Array:
            return jnp.take_along_axis(student(weights, x), jnp.maximum(labels, 0)[:, None], -1).sum()

        return jnp.clip(images + step * jnp.sign(jax.grad(chosen)(images)), 0.0, 1.0)

    return run
