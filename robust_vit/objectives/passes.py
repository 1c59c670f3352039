"""What several objectives share: passes over the clean and the attacked images, and what an attack or a teacher tells.

A newcomer can skip this file; somebody who writes an objective will want `two_passes`, `prediction` and `taught`.
"""

import jax

from robust_vit.attacks.losses import in_float32
from robust_vit.errors import check, lookup
from robust_vit.typing import Array, Aside, Forward, Keys, LogitsFn, Statistics

UPDATES = {"clean": (True, False), "adversarial": (False, True), "both": (True, True)}
OWN = 2**32 - 1  # folded into an example's key; attacks fold small numbers, those of their restarts


def updates(statistics: str) -> tuple[bool, bool]:
    """Which of the clean and the adversarial pass move BatchNorm's running averages, of the option `statistics`.

    Raises:
      ValueError: unless it is "clean", "adversarial" or "both".
    """
    return lookup("objective.statistics", statistics, UPDATES)


def two_passes(
    forward: Forward, stats: Statistics, images: Array, attacked: Array, moves: tuple[bool, bool]
) -> tuple[Array, Array, Statistics]:
    """A training pass over the clean images and one over the attacked ones, each normalised by itself.

    Args:
      forward: the training pass.
      stats: BatchNorm's running averages.
      images, attacked: [B,H,W,C].
      moves: of `updates`: whose averages are kept, of both in that order.

    Returns:
      clean logits [B,K], adversarial logits [B,K], the running averages after both.
    """
    clean_logits, after = forward(images, stats)
    stats = after if moves[0] else stats
    adversarial_logits, after = forward(attacked, stats)
    return clean_logits, adversarial_logits, after if moves[1] else stats


def prediction(adversary: LogitsFn, images: Array) -> Array:
    """softmax(f(x)) [B,K], fixed: for an attack that is to lead away from what the model says, whatever is true."""
    return jax.lax.stop_gradient(jax.nn.softmax(in_float32(adversary(images))))


def taught(aside: Aside, images: Array) -> Array:
    """The teacher's logits [B,K] at these images, fixed.

    Raises:
      ValueError: if there is no teacher.
    """
    if aside.teacher is None:
        raise ValueError("objective.teacher: must be given, a classifier that this objective learns from")
    return jax.lax.stop_gradient(in_float32(aside.teacher(images)))


def own_keys(keys: Keys) -> Keys:
    """Keys [B] for what an objective draws itself: the attack is handed `keys`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, OWN)


def check_smoothing(label_smoothing: float) -> None:
    """Raises ValueError unless `label_smoothing` is in [0, 1)."""
    check("objective.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")


def check_weight(name: str, value: float) -> None:
    """Raises ValueError unless `value` is at least 0."""
    check(f"objective.{name}", value, value >= 0, ">= 0")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless `value` is in [0, 1]."""
    check(f"objective.{name}", value, 0 <= value <= 1, "in [0, 1]")


def check_temperature(value: float) -> None:
    """Raises ValueError unless `value` is above 0."""
    check("objective.temperature", value, value > 0, "> 0")
