"""A debug mode for attacks: values that are only known inside a compiled program, looked at where they are.

    attack = debug.checked(attacks.pgd(epsilon=8 / 255))
    adversarial = attack(keys, logits_fn, images, labels, strength)      # ValueError: labels = 10: must be in [0, 10)

A label outside the classes, a strength that is not a number or images in 0..255 stop no compiled program: an attack
then returns images that it did not touch, and the accuracy under it is too high. The evaluations of this package look
at their values on the host; `checked` does it for training loops and evaluations of your own, by
`jax.experimental.checkify`, at the cost of one forward pass a call.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from robust_vit.attacks import losses
from robust_vit.evaluation.callables import as_logits_fn, check_logits
from robust_vit.typing import Array, Attack, Keys, LogitsFn


def checked(attack: Attack, tolerance: float = 0.0) -> Attack:
    """The same attack, which stops at values that it cannot attack.

    Called with arrays it compiles itself and raises. Inside a program of yours its checks are `checkify.check`s, for
    `checkify.checkify` around that program to hand out (JAX says so if it is missing).

    Args:
      attack: any attack.
      tolerance: how far images may lie outside [0,1].

    Returns:
      attack(keys, logits_fn, images, targets, strength=1.0) -> the same adversarial images.

    Raises:
      ValueError: when called: for labels outside [0,K), distributions that are negative, not finite or do not sum to 1,
        images that are not finite or outside [0,1], a strength outside [0,1] or not a number, logits that are no logits
        (see `check_logits`) or not finite on the images as given.
    """
    looking = functools.partial(_attack, attack, tolerance)
    compiled = jax.jit(checkify.checkify(looking))

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        arguments = keys, as_logits_fn(logits_fn), jnp.asarray(images), jnp.asarray(targets), jnp.asarray(strength)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
            return looking(*arguments)
        error, adversarial = compiled(*arguments)
        if (message := error.get()) is not None:
            raise ValueError(message.splitlines()[0].removesuffix(" (`check` failed)"))
        return adversarial

    return run


def _attack(
    attack: Attack, tolerance: float, keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array
) -> Array:
    classes = check_logits(logits_fn, images.shape[1:], max(2, images.shape[0]))
    _check_images(images, tolerance)
    _check_targets(targets, classes)
    weakest, strongest = jnp.min(strength), jnp.max(strength)  # NaN if there is one
    inside = (weakest >= 0) & (strongest <= 1)
    checkify.check(inside, "strength = {low} to {high}: must be in [0, 1]", low=weakest, high=strongest)
    bad = jnp.sum(~jnp.all(jnp.isfinite(logits_fn(images)), axis=-1))
    checkify.check(bad == 0, "logits: {bad} of the images have logits that are not finite, without any attack", bad=bad)
    return attack(keys, logits_fn, images, targets, strength)


def _check_images(images: Array, tolerance: float) -> None:
    low, high = jnp.min(images), jnp.max(images)
    inside = (low >= -tolerance) & (high <= 1 + tolerance)
    checkify.check(inside, "images = {low} to {high}: must be in [0, 1]", low=low, high=high)


def _check_targets(targets: Array, classes: int) -> None:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        low, high = jnp.min(targets), jnp.max(targets)
        inside = (low >= 0) & (high < classes)
        message = f"labels = {{low}} to {{high}}: must be in [0, {classes})"
        checkify.check(inside, message, low=low, high=high)
        return
    p = losses.as_distribution(targets, classes)
    apart = jnp.max(jnp.abs(jnp.sum(p, axis=-1) - 1))
    fine = (jnp.min(p) >= 0) & (apart < 1e-3)
    checkify.check(fine, "targets: rows are up to {apart} away from a sum of 1, or negative", apart=apart)
