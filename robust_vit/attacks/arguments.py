"""What every attack does with its arguments: early checks, per-example scalars, working precision.

A newcomer can skip this file; somebody who writes an attack will want `check_*`, `working`,
`as_seen` and `finish`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import chex
except ImportError:  # declared by this package, needed by none of its core
    chex = None

from robust_vit import randomness
from robust_vit.typing import Array, Keys, LogitsFn

ROUNDING = 1e-3  # how far outside of [0,1] a resized image's pixels may lie


def check_count(field: str, value: int, minimum: int = 1) -> None:
    """Raises ValueError unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{field} = {value!r}: must be a whole number, at least {minimum}")


def check_positive(field: str, value: Any) -> None:
    """Raises ValueError unless `value` > 0 and finite; a traced value passes unread."""
    if is_concrete(value) and not (np.all(np.asarray(value) > 0) and np.all(np.isfinite(value))):
        raise ValueError(f"{field} = {value}: must be above 0")


def check_epsilon(epsilon: Any, norm: str) -> None:
    """Raises ValueError unless 0 <= epsilon (and epsilon <= 1 for linf, whose ball is then the whole pixel range)."""
    if not is_concrete(epsilon):
        return
    value = np.asarray(epsilon)
    if not (np.all(value >= 0) and np.all(np.isfinite(value))):
        raise ValueError(f"epsilon = {epsilon}: must be at least 0 (in units of the [0,1] pixel range)")
    if norm == "linf" and np.any(value > 1):
        raise ValueError(
            f"epsilon = {epsilon}: must be at most 1 for norm linf (in units of the [0,1] pixel range: 8/255, not 8)"
        )


def is_concrete(value: Any) -> bool:
    """True if the numbers can be read now: a Python number or an array, not a tracer."""
    return not isinstance(value, jax.core.Tracer)


def is_zero(value: Any) -> bool:
    """True if the numbers can be read now and are all 0."""
    return is_concrete(value) and bool(np.all(np.asarray(value) == 0))


def per_example(value: Any, images: Array) -> Array:
    """Broadcasts a scalar or [B] value to [B], in the working precision of `images` [B,H,W,C].

    Raises:
      ValueError: if `value` is neither a scalar nor [B].
    """
    value = jnp.asarray(value, jnp.promote_types(images.dtype, jnp.float32))
    batch = images.shape[0]
    if value.shape not in ((), (batch,)):
        raise ValueError(f"epsilon, step size or strength has shape {value.shape}: must be a scalar or ({batch},)")
    return jnp.broadcast_to(value, (batch,))


def expand(value: Any, images: Array) -> Array:
    """Returns a scalar or [B] value as [B,1,1,1], to be combined with images."""
    return per_example(value, images)[:, None, None, None]


def check_inputs(
    keys: Keys | int, logits_fn: LogitsFn, images: Array, targets: Array, strength: Any = 1.0, stochastic: bool = False
) -> Keys:
    """Checks what an attack is called with, as far as it can be read now (inside `jit`: types and shapes).

    Args:
      keys: [B] typed keys, one per example; or one key or seed, which is folded with each example's place in the batch.
      logits_fn, images, targets, strength: as every attack takes them.
      stochastic: the model is called with keys too.

    Returns:
      [B] typed keys.

    Raises:
      ValueError: in one line, for whatever does not fit.
    """
    if jnp.ndim(images) != 4 or not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        told = f"{jnp.result_type(images)}{list(jnp.shape(images))}"
        raise ValueError(f"images: {told}, must be floats in [0,1] of shape [B,H,W,C]")
    keys = as_keys(keys, jnp.shape(images)[0])
    check_pixels(images)
    check_strength(strength)
    if jnp.issubdtype(jnp.result_type(targets), jnp.integer) and jnp.ndim(targets) == 1 and is_concrete(targets):
        check_labels(targets, jax.eval_shape(logits_fn, images, *((keys,) if stochastic else ())))
    return keys


def as_keys(keys: Keys | int, batch: int) -> Keys:
    """Returns one typed key per example, [B]: as given, or one key or seed folded with each example's place.

    Raises:
      ValueError: if it is neither.
    """
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed and jnp.ndim(keys) in (1, 2) and jnp.result_type(keys) == jnp.uint32 and jnp.shape(keys)[-1] == 2:
        keys, typed = jax.random.wrap_key_data(keys), True  # of jax.random.PRNGKey
    if typed and keys.shape == (batch,):
        return keys
    if jnp.ndim(keys) == 0 and (typed or jnp.issubdtype(jnp.result_type(keys), jnp.integer)):
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(randomness.as_key(keys), jnp.arange(batch))
    told = f"{getattr(keys, 'dtype', type(keys).__name__)}{list(jnp.shape(keys))}"
    rule = f"one typed key per example, [{batch}]: jax.random.split(jax.random.key(seed), B); or one key, or a seed"
    raise ValueError(f"keys: {told}, must be {rule}")


def check_pixels(images: Array) -> None:
    """Raises ValueError for images that can be read now and do not lie in [0,1]."""
    if not is_concrete(images) or not np.size(images) or not getattr(images, "is_fully_addressable", True):
        return
    values = np.asarray(images)  # on the host: under a trace, JAX would trace the minimum of a constant too
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):
        hint = ": divide by 255" if 2.0 < high <= 255.0 else ""
        raise ValueError(f"images: values from {low:g} to {high:g}, must be in [0,1]{hint}")


def check_strength(strength: Any) -> None:
    """Raises ValueError for a strength that can be read now and does not lie in [0,1]."""
    if is_concrete(strength) and not np.all((np.asarray(strength) >= 0) & (np.asarray(strength) <= 1)):
        raise ValueError(f"strength = {strength}: must be in [0,1]")


def check_labels(labels: Array, logits: jax.ShapeDtypeStruct) -> None:
    """Raises ValueError for labels [B] that are no class of the logits [B,K]."""
    classes, values = logits.shape[-1], np.asarray(labels)
    if jnp.shape(labels)[0] != logits.shape[0]:
        raise ValueError(f"targets: {len(values)} labels, must be one per image, {logits.shape[0]}")
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        raise ValueError(f"targets: label {outside[0]}, must be in [0, {classes}), the model's classes")


def detach(tree: Any) -> Any:
    """`stop_gradient` on every array of a pytree (images, targets, the weights inside a `Partial`).

    Without it a training step that differentiates its weights would also carry tangents of all weights through every
    step of the attack.
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def working(images: Array) -> Array:
    """Returns images in the precision that attacks keep their iterates in: at least float32."""
    return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def as_seen(points: Array, images: Array) -> Array:
    """Rounds iterates to the dtype of the clean `images`, towards them.

    Rounding to nearest could leave the ball; rounding every coordinate towards the clean image shrinks |delta| in each,
    so no norm can grow. The model is shown these rounded points, so that what was judged is what is returned. Free when
    the dtype is the working one.
    """
    if points.dtype == images.dtype:
        return points
    rounded = points.astype(images.dtype)
    outside = jnp.abs(rounded.astype(points.dtype) - images) > jnp.abs(points - images)
    return jnp.where(outside, jnp.nextafter(rounded, images), rounded)


def finish(points: Array, images: Array, epsilon: Array) -> Array:
    """Ends an attack: dtype of `images`, no gradient; the images themselves, bit for bit, where epsilon [B] is 0."""
    if chex is not None:
        chex.assert_equal_shape((points, images))
        chex.assert_shape(epsilon, images.shape[:1])
    return jax.lax.stop_gradient(jnp.where(expand(epsilon, images) > 0, as_seen(points, images), images))
