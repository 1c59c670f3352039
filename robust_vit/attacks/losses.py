"""What the adversary maximises: per-example losses of logits [B,K] and targets, computed in float32 at least.

Every loss has the signature (logits [B,K], targets [B,K] or int [B]) -> [B], and is larger the less the model agrees
with the targets. Losses that compare classes (margin, DLR) take the most probable class of the targets as y.
Cross-entropy to a fixed distribution p and the KL divergence from it differ by the entropy of p, a constant: they have
the same gradient in the image, so one attack serves Madry training and TRADES.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_vit.errors import lookup
from robust_vit.typing import Array

TINY = 1e-12  # the reference's constant; it is zero in float16, one reason why losses are computed in float32


def as_distribution(targets: Array, classes: int) -> Array:
    """Returns targets as distributions [B,K], float32 at least: integer labels [B] become one-hot, the rest stays.

    Raises:
      ValueError: if the shape fits neither.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.ndim == 1:
            return jax.nn.one_hot(targets, classes, dtype=jnp.float32)
    elif targets.ndim == 2 and targets.shape[-1] == classes:
        return in_float32(targets)
    raise ValueError(
        f"targets: {targets.dtype}{list(targets.shape)}, must be integer labels [B] or distributions [B,{classes}]"
    )


def as_labels(targets: Array) -> Array:
    """Returns the class index of every target, [B] int32: labels stay, a distribution gives its most probable class."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return targets.astype(jnp.int32)
    return jnp.argmax(targets, axis=-1).astype(jnp.int32)


def in_float32(x: Array) -> Array:
    """Casts to float32, or leaves float64 as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(logits: Array, targets: Array) -> Array:
    """- sum_k p_k log q_k, where q = softmax(logits) and p = targets."""
    log_q = jax.nn.log_softmax(in_float32(logits))
    p = as_distribution(targets, logits.shape[-1])
    return -jnp.sum(jnp.where(p > 0, p * log_q, 0.0), axis=-1)  # 0 log 0 = 0, also for a class masked with -inf


def kl(logits: Array, targets: Array) -> Array:
    """KL(p || q) = sum_k p_k (log p_k - log q_k), where q = softmax(logits) and p = targets. Value and gradients are
    finite at p = q and at p_k = 0.
    """
    log_q = jax.nn.log_softmax(in_float32(logits))
    p = as_distribution(targets, logits.shape[-1])
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


def squared_error(logits: Array, targets: Array) -> Array:
    """sum_k (q_k - p_k)^2, where q = softmax(logits) and p = targets: a distance of distributions, in [0,2].

    Its gradient is 0 at q = p, so an attack that starts there needs a random start.

    Reference: Pang et al. 2022 (SCORE), https://arxiv.org/abs/2202.10103
    """
    q = jax.nn.softmax(in_float32(logits))
    return jnp.sum(jnp.square(q - as_distribution(targets, logits.shape[-1])), axis=-1)


def margin(logits: Array, targets: Array) -> Array:
    """max_{j != y} z_j - z_y: above 0 when misclassified (Carlini and Wagner, https://arxiv.org/abs/1608.04644).

    Raises:
      ValueError: with fewer than 2 classes.
    """
    require_classes("margin", logits, 2)
    z = in_float32(logits)
    is_y = jax.nn.one_hot(as_labels(targets), z.shape[-1], dtype=bool)
    z_y = jnp.sum(jnp.where(is_y, z, 0.0), axis=-1)
    return jnp.max(jnp.where(is_y, -jnp.inf, z), axis=-1) - z_y


def probability_margin(logits: Array, targets: Array) -> Array:
    """max_{j != y} q_j - q_y, where q = softmax(logits): the margin in probabilities, in [-1,1].

    Reference: Ma et al. 2024, https://arxiv.org/abs/2411.15210

    Raises:
      ValueError: with fewer than 2 classes.
    """
    require_classes("probability_margin", logits, 2)
    return margin(jax.nn.softmax(in_float32(logits)), targets)


def dlr(logits: Array, targets: Array) -> Array:
    """Difference of logits ratio, - (z_y - max_{j != y} z_j) / (z_(1) - z_(3)), z_(i) the i-th largest.

    Unlike the margin it does not change when the logits are shifted or scaled (https://arxiv.org/abs/2003.01690).

    Raises:
      ValueError: with fewer than 3 classes.
    """
    require_classes("dlr", logits, 3)
    ranked, _ = jax.lax.top_k(in_float32(logits), 3)
    return ratio(margin(logits, targets), ranked[:, 0] - ranked[:, 2] + TINY)


def targeted_dlr(logits: Array, targets: Array, target: Array) -> Array:
    """- (z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2): pushes from the class y of `targets` to the class t.

    Reference: https://arxiv.org/abs/2003.01690

    Args:
      logits: [B,K].
      targets: what is true: labels [B] or distributions [B,K].
      target: [B] int, the class to push to.

    Raises:
      ValueError: with fewer than 4 classes.
    """
    require_classes("targeted_dlr", logits, 4)
    z = in_float32(logits)
    ranked, _ = jax.lax.top_k(z, 4)
    z_y = jnp.take_along_axis(z, as_labels(targets)[:, None], axis=-1)[:, 0]
    z_t = jnp.take_along_axis(z, as_labels(target)[:, None], axis=-1)[:, 0]
    return ratio(-(z_y - z_t), ranked[:, 0] - 0.5 * (ranked[:, 2] + ranked[:, 3]) + TINY)


@jax.custom_jvp
def ratio(a: Array, b: Array) -> Array:
    """a / b, with the derivative (da - (a / b) db) / b.

    Where y is the third class, DLR is the constant (z_(1) - z_y) / (z_(1) - z_(3)) = 1: this form of the derivative is
    exactly zero there. The usual a / b^2 leaves rounding noise, and a sign step would follow it with full length.
    """
    return a / b


@ratio.defjvp
def _ratio_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    da, db = tangents
    value = a / b
    return value, (da - value * db) / b


def require_classes(loss: str, logits: Array, minimum: int) -> None:
    """Raises ValueError, while tracing, if there are fewer than `minimum` classes."""
    if logits.shape[-1] < minimum:
        raise ValueError(f"loss = {loss!r}: needs at least {minimum} classes, the model has {logits.shape[-1]}")


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "cross_entropy": cross_entropy,
    "kl": kl,
    "squared_error": squared_error,
    "margin": margin,
    "probability_margin": probability_margin,
    "dlr": dlr,
}


def get(loss: str) -> Callable[[Array, Array], Array]:
    """Returns a loss by name.

    Raises:
      ValueError: if the name is unknown; the nearest is suggested.
    """
    return lookup("loss", loss, LOSSES)
