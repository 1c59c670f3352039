"""RP2: stickers on one object, seen from many sides."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_vit import randomness
from robust_vit.attacks.arguments import check_count, check_pixels, check_positive, working
from robust_vit.attacks.patches import losses, masks
from robust_vit.errors import check
from robust_vit.typing import Array, Keys, LogitsFn


def sticker(
    logits_fn: LogitsFn,
    photos: Array,
    target: int,
    mask: np.ndarray,
    *,
    transform: Callable[[Keys, Array], Array] | None = None,
    weight: float = 2.5e-4,
    smoothness: float = 1e-5,
    printability: float = 0.0,
    steps: int = 300,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Array:
    """One change under a mask that makes all photographs of an object be seen as the target.

    Minimises weight |M d|_2 + smoothness TV(M d) + printability NPS(x + M d) + mean of CE(f(T(x + M d)), target).

    Args:
      logits_fn: the classifier.
      photos: [N,H,W,C] floats in [0,1], the object at the same place in each.
      target: the class to be seen.
      mask: [H,W] where stickers may be.
      transform: (keys, images) -> images, drawn anew at every step, such as `physical.camera()`.
      weight, smoothness, printability: of the terms; the defaults are the authors'.
      steps: updates, each on all photographs.
      learning_rate: of Adam.
      seed: of the draws.

    Returns:
      [H,W,C], 0 outside of the mask: clip(photo + change, 0, 1) is the object with its stickers.

    Raises:
      ValueError: for a bad keyword, a mask of another size, or a target that is no class.

    Reference: Eykholt et al. 2018 (RP2), https://arxiv.org/abs/1707.08945
    """
    check_count("steps", steps)
    check_positive("learning_rate", learning_rate)
    photos = working(jnp.asarray(photos))
    check_pixels(photos)
    mask = masks.check_mask(mask, photos.shape[1:])
    check("mask", mask.shape, mask.shape == photos.shape[1:3], f"{photos.shape[1:3]}, the photographs' size")
    classes = jax.eval_shape(logits_fn, photos).shape[-1]
    check("target", target, 0 <= target < classes, f"in [0, {classes}), the model's classes")
    cover, tx, wanted = jnp.asarray(mask, photos.dtype)[..., None], optax.adam(learning_rate), losses.reaching(target)
    labels = jnp.full(len(photos), target)

    def loss(change: Array, keys: Keys) -> Array:
        stuck = change * cover
        shown = jnp.clip(photos + stuck[None], 0.0, 1.0)
        length = jnp.sqrt(jnp.sum(stuck**2) + 1e-12)
        extra = weight * length + smoothness * losses.total_variation(stuck)
        if printability:
            extra = extra + printability * losses.non_printability(jnp.mean(shown, 0))
        shown = shown if transform is None else transform(keys, shown)
        return jnp.mean(wanted(logits_fn(shown), labels)) + extra

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        change, state = carry
        slope = jax.grad(loss)(change, jax.random.split(key, len(photos)))
        update, state = tx.update(slope, state, change)
        return (jnp.clip(change + update, -1.0, 1.0), state), None

    first = jnp.zeros(photos.shape[1:], photos.dtype)
    keys = jax.random.split(randomness.as_key(seed), steps)
    (change, _), _ = jax.lax.scan(step, (first, tx.init(first)), keys)
    return change * cover
