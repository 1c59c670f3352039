"""What every attack does with its arguments: early checks, per-example scalars, working precision.

A newcomer can skip this file; somebody who writes an attack will want `check_*`, `working`,
`as_seen` and `finish`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import nearest
from robust_vit.typing import Array, Keys


def check_choice(field: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `allowed`; names the nearest one."""
    allowed = sorted(allowed)
    if value in allowed:
        return
    raise ValueError(f"{field} = {value!r}: must be one of {', '.join(allowed)}{nearest(str(value).lower(), allowed)}")


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


def check_inputs(keys: Keys, images: Array) -> None:
    """Raises ValueError unless images are floats [B,H,W,C] and `keys` holds one typed key per example."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: {images.dtype}{list(images.shape)}, must be floats in [0,1] of shape [B,H,W,C]")
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed or keys.shape != images.shape[:1]:
        raise ValueError(
            f"keys: {keys.dtype}{list(keys.shape)}, must be one typed key per example, [{images.shape[0]}]:"
            " jax.random.split(jax.random.key(seed), B) or randomness.example_keys"
        )


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
    return jax.lax.stop_gradient(jnp.where(expand(epsilon, images) > 0, as_seen(points, images), images))
