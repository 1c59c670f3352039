"""One patch for all images: targeted or not, expectation over where and how it is seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_vit import randomness
from robust_vit.attacks import norms
from robust_vit.attacks.arguments import check_count, check_pixels, check_positive, working
from robust_vit.attacks.patches import losses, masks
from robust_vit.attacks.patches.placing import USUAL, Patch, Placement, placed
from robust_vit.errors import check
from robust_vit.typing import Array, Keys, LogitsFn


def universal_patch(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    size: int | None = None,
    mask: np.ndarray | None = None,
    target: int | None = None,
    placement: Placement = USUAL,
    transform: Callable[[Keys, Array], Array] | None = None,
    objective: Callable[[Array, Array], Array] | None = None,
    smoothness: float = 0.0,
    printability: float = 0.0,
    steps: int = 500,
    batch_size: int = 16,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Patch:
    """Adam on the pixels of a patch that is placed anew on every image of every batch.

    Args:
      logits_fn: the classifier, or a detector of which `objective` reads the output.
      images: [N,H,W,C] floats in [0,1].
      labels: [N] integers.
      size: diameter in pixels of a round patch; or `mask`.
      mask: [h,w], any shape of patch.
      target: the class that is to be seen, whatever the label; None only wants the label not to be.
      placement: where and how the patch is seen.
      transform: what happens to the image with the patch on it, (keys, images) -> images, such as `physical.camera()`.
      objective: (output, labels) -> [B], minimised in place of the classifier's; `patches.objectness`.
      smoothness: weight of the total variation.
      printability: weight of the distance to printable colours.
      steps: updates.
      batch_size: images an update.
      learning_rate: of Adam, in units of the [0,1] pixel range.
      seed: of all draws.

    Raises:
      ValueError: for a bad keyword, a mask larger than the images, or a target that is no class.

    Reference: Brown et al. 2017, https://arxiv.org/abs/1712.09665; printability and smoothness: Sharif et al. 2016
    """
    check("size", size, (size is None) != (mask is None), "given, or a mask in its place")
    for field, value in {"steps": steps, "batch_size": batch_size}.items():
        check_count(field, value)
    check_positive("learning_rate", learning_rate)
    for field, value in {"smoothness": smoothness, "printability": printability}.items():
        check(field, value, value >= 0, "at least 0")
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    check("labels.shape", labels.shape, labels.shape == images.shape[:1] and len(labels) > 0, f"({len(images)},)")
    check_pixels(images)
    placement.check()
    mask = masks.check_mask(masks.circle(size) if mask is None else mask, images.shape[1:])
    output = jax.eval_shape(logits_fn, images[:1])
    if target is not None and objective is None:
        check("target", target, 0 <= target < output.shape[-1], f"in [0, {output.shape[-1]}), the model's classes")
    wanted = losses.reaching(target) if objective is None else objective
    tx = optax.adam(learning_rate)

    def loss(pixels: Array, keys: Keys, x: Array, y: Array) -> Array:
        placing, seeing = norms.split(keys)
        shown = placed(placing, Patch(pixels, mask), x, placement)
        shown = shown if transform is None else transform(seeing, shown)
        extra = smoothness * losses.total_variation(pixels) + printability * losses.non_printability(pixels)
        return jnp.mean(wanted(logits_fn(shown), y)) + extra

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        pixels, state = carry
        drawing, placing = jax.random.split(key)
        rows = jax.random.randint(drawing, (batch_size,), 0, len(labels))
        keys = jax.random.split(placing, batch_size)
        slope = jax.grad(loss)(pixels, keys, working(images[rows]), labels[rows])
        change, state = tx.update(slope, state, pixels)
        return (jnp.clip(pixels + change, 0.0, 1.0), state), None

    beginning, walking = jax.random.split(randomness.as_key(seed))
    first = jax.random.uniform(beginning, (*mask.shape, images.shape[-1]))
    (pixels, _), _ = jax.lax.scan(step, (first, tx.init(first)), jax.random.split(walking, steps))
    return Patch(pixels, mask)
