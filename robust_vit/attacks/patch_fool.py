"""Attacks on tokens: a few patches of a transformer's grid, chosen by attention or gradient, changed as one likes."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_vit.attacks import losses, norms
from robust_vit.attacks.arguments import (
    check_count,
    check_epsilon,
    check_inputs,
    check_positive,
    detach,
    expand,
    finish,
    per_example,
    working,
)
from robust_vit.attacks.minimal.nearest import misclassified
from robust_vit.attacks.updates import moments
from robust_vit.errors import check, check_choice
from robust_vit.typing import Array, Attack, Keys, LogitsFn

CHOICES = ("attention", "gradient", "random")
DECAY, EVERY = 0.95, 10  # of the learning rate, in steps
POINT = "attention_probabilities"


def patch_fool(
    *,
    epsilon: float | Array = 1.0,
    norm: str = "linf",
    patches: int = 1,
    patch_size: int | None = None,
    choose: str = "attention",
    layer: int = 4,
    weight: float = 0.002,
    steps: int = 250,
    learning_rate: float = 0.22,
) -> Attack:
    """Makes Patch-Fool: Adam on the pixels of the patch that attention looks at most, which also draws attention to it.

    Maximises cross-entropy + weight * sum over blocks 1 .. L/2 - 1 of the mean log attention to the patch; where the
    two gradients disagree, the second is put at a right angle to the first.

    Args:
      epsilon: radius of the ball, in units of the [0,1] pixel range; 1 in linf allows any patch.
      norm: "linf", "l2" or "l1".
      patches: how many of the grid's patches; with choose = "gradient" and weight = 0 a block-sparse attack.
      patch_size: side in pixels; by default the model's own, told by its attention maps.
      choose: "attention": by the attention paid to them in block `layer`; "gradient": by the length of the loss's
        gradient there; "random": the baseline that any choice has to beat.
      layer: counted from 0; the last one of a shallower model.
      weight: of the attention.
      steps: gradient evaluations.
      learning_rate: of Adam, falling by 5 % every 10 steps.

    Returns:
      attack(keys [B], logits_fn, images [B,H,W,C], targets [B] or [B,K], strength=1.0) -> adversarial images; the last
      iterate that fools, else the last one.

    Raises:
      ValueError: for a bad keyword; when called, for a model without attention maps where they are needed: it has to be
        a transformer of `models` whose blocks are not scanned, and not compiled already.

    Reference: Fu et al. 2022, https://arxiv.org/abs/2203.08392; sparse: Joshi et al. 2021,
      https://arxiv.org/abs/2110.04337
    """
    check_epsilon(epsilon, norm)
    check_choice("choose", choose, CHOICES)
    check_count("patches", patches)
    check_count("layer", layer, 0)
    check_count("steps", steps)
    check("weight", weight, weight >= 0, "at least 0")
    check_positive("learning_rate", learning_rate)
    if patch_size is not None:
        check_count("patch_size", patch_size)
    ball = norms.get(norm)

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength)
        logits_fn, images, targets = detach((logits_fn, images, targets))
        radius = per_example(epsilon, images) * per_example(strength, images)
        labels, clean = losses.as_labels(targets), working(images)
        seen = _with_maps(logits_fn, choose == "attention" or weight > 0 or patch_size is None)
        size = _side(seen, images) if patch_size is None else patch_size
        scores = _scores(seen, keys, clean, labels, size, choose, layer)  # [B,N]
        check("patches", patches, patches <= scores.shape[1], f"at most {scores.shape[1]}, those of the image")
        chosen = jax.lax.top_k(scores, patches)[1]  # [B,P]
        cover = _pixels(chosen, clean, size)

        def slopes(points: Array) -> tuple[Array, Array]:
            def values(points: Array) -> tuple[Array, Array]:
                logits, maps = seen(points)
                return jnp.stack(
                    [losses.cross_entropy(logits, labels).sum(), _paid(maps, chosen, scores.shape[1]).sum()]
                ), logits

            fooling, back, logits = jax.vjp(values, points, has_aux=True)
            main, drawing = (jnp.where(cover, back(row)[0], 0.0) for row in jnp.eye(2, dtype=fooling.dtype))
            inner = jnp.sum(main * drawing, norms.PIXELS, keepdims=True)
            length = jnp.maximum(jnp.sum(main**2, norms.PIXELS, keepdims=True), 1e-30)
            drawing = drawing - jnp.minimum(inner, 0.0) / length * main
            return main + weight * drawing, misclassified(logits, labels)

        def step(carry: tuple, i: Array) -> tuple[tuple, None]:
            points, memory, best, fooled = carry
            g, wrong = slopes(points)
            best = jnp.where(expand(wrong | ~fooled, points), points, best)
            mean, scale, memory = moments(g, memory, i)
            rate = learning_rate * DECAY ** (i // EVERY)
            points = jnp.where(cover, points + rate * (mean / scale), clean)
            return (ball.project(points, clean, radius), memory, best, fooled | wrong), None

        zeros = clean - clean
        first = (clean, (zeros, zeros), clean, jnp.isnan(clean[:, 0, 0, 0]))
        (points, _, best, fooled), _ = jax.lax.scan(step, first, jnp.arange(steps))
        last = misclassified(logits_fn(points.astype(images.dtype)), labels) | ~fooled
        return finish(jnp.where(expand(last, points), points, best), images, radius)

    return attack


def _with_maps(logits_fn: LogitsFn, wanted: bool) -> Callable[[Array], tuple[Array, list[Array]]]:
    """images -> (logits, the attention map [B,A,Q,K] of every block; none if not wanted)."""

    def look(images: Array) -> tuple[Array, list[Array]]:
        if not wanted:
            return logits_fn(images), []
        from robust_vit.models.parts import taps  # the other attacks need no models

        maps: list[Array] = []
        with taps.handled(lambda module, point, value: maps.append(value) or value, (POINT,)):
            logits = logits_fn(images)
        maps = [one for one in maps if one.ndim == 4 and one.shape[0] == images.shape[0]]
        allowed = "a transformer of models with attention maps of the whole image, not compiled already"
        check("model", "without maps", bool(maps), allowed)
        return logits, maps

    return look


def _side(seen: Callable, images: Array) -> int:
    """The side of the model's patches, in pixels, from the number of tokens that its maps have."""
    _, maps = jax.eval_shape(seen, images)
    pixels, tokens = images.shape[1] * images.shape[2], maps[0].shape[-1]
    for prefix in range(3):  # class and distillation tokens
        size = math.isqrt(pixels // max(tokens - prefix, 1))
        if size * size * (tokens - prefix) == pixels:
            return size
    raise ValueError(
        f"patch_size = None: must be given, {tokens} tokens do not tell it for images of {images.shape[1:3]}"
    )


def _grid(images: Array, size: int) -> tuple[int, int]:
    height, width = images.shape[1:3]
    check("patch_size", size, height % size == 0 and width % size == 0, f"a divisor of the image, {height} by {width}")
    return height // size, width // size


def _scores(seen: Callable, keys: Keys, clean: Array, labels: Array, size: int, choose: str, layer: int) -> Array:
    """[B,N] how much each patch of the grid is worth attacking."""
    h, w = _grid(clean, size)
    if choose == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (h * w,)))(keys)
    if choose == "attention":
        _, maps = seen(clean)
        paid = jnp.mean(maps[min(layer, len(maps) - 1)], (1, 2))  # [B,K]
        return paid[:, paid.shape[1] - h * w :]
    slope = jax.grad(lambda x: losses.cross_entropy(seen(x)[0], labels).sum())(clean)
    return jnp.sum(slope.reshape(-1, h, size, w, size, clean.shape[-1]) ** 2, (2, 4, 5)).reshape(-1, h * w)


def _pixels(chosen: Array, images: Array, size: int) -> Array:
    """The pixels of patches [B,P], as [B,H,W,1] booleans."""
    h, w = _grid(images, size)
    taken = jnp.any(chosen[:, :, None] == jnp.arange(h * w)[None, None], 1).reshape(-1, h, w)
    return jnp.repeat(jnp.repeat(taken, size, 1), size, 2)[..., None]


def _paid(maps: list[Array], chosen: Array, patches: int) -> Array:
    """[B] the sum over blocks 1 .. L/2 - 1 of the mean log attention to the chosen patches, over heads and queries."""
    total = jnp.zeros(chosen.shape[0])
    for one in maps[1 : max(2, len(maps) // 2)] if len(maps) > 1 else maps:
        columns = jnp.mean(one, 1)  # [B,Q,K]
        prefix = columns.shape[-1] - patches  # class and distillation tokens
        own = jnp.take_along_axis(columns, (chosen + prefix)[:, None, :], -1)
        total = total + jnp.mean(jnp.log(own + 1e-12), (1, 2))
    return total
