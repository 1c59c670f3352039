"""What a patch is asked for besides fooling: to be smooth, to be printable, to hide what a detector looks for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.typing import Array

# 30 colours that an office printer can mix: 3 x 3 x 3 of its range, and three greys between. One's own printer's are
# better: print a chart, photograph it, and read them off.
_LEVELS = (0.06, 0.48, 0.90)
PRINTABLE = np.array(
    [(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS] + [(v, v, v) for v in (0.2, 0.34, 0.69)]
)


def total_variation(pixels: Array) -> Array:
    """Mean length of the differences between neighbouring pixels, of [h,w,C].

    Reference: Mahendran and Vedaldi 2015, https://arxiv.org/abs/1412.0035
    """
    down, right = jnp.diff(pixels, axis=0)[:, :-1], jnp.diff(pixels, axis=1)[:-1]
    return jnp.mean(jnp.sqrt(jnp.sum(down**2 + right**2, -1) + 1e-8))


def non_printability(pixels: Array, colours: np.ndarray = PRINTABLE) -> Array:
    """Mean over pixels [h,w,C] of the product of their distances to the printable colours [P,3], each distance over the
    longest there is; grey pixels (C = 1) are compared in all channels.

    Reference: Sharif et al. 2016, https://dl.acm.org/doi/10.1145/2976749.2978392
    """
    flat = pixels.reshape(-1, 1, pixels.shape[-1])
    apart = jnp.broadcast_to(flat, (flat.shape[0], 1, 3)) - jnp.asarray(colours, pixels.dtype)[None]
    return jnp.mean(jnp.prod(jnp.sqrt(jnp.sum(apart**2, -1) / 3.0 + 1e-12), axis=-1))


def objectness(candidates: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Makes the objective that hides objects from a detector: the score of its most certain candidate.

    Args:
      candidates: the detector's output -> [B,N], how sure it is of an object in each of N places, boxes or anchors.

    Returns:
      (output, labels) -> [B], what a patch minimises; labels are not read.

    Reference: Thys et al. 2019, https://arxiv.org/abs/1904.08653
    """

    def loss(output: Array, labels: Array) -> Array:
        del labels
        return jnp.max(candidates(output), axis=-1)

    return loss


def reaching(target: int | None) -> Callable[[Array, Array], Array]:
    """The objective of a classifier's patch: cross-entropy to the target, or less of that to the labels."""

    def loss(logits: Array, labels: Array) -> Array:
        log_q = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        if target is not None:
            return -log_q[:, target]
        q_y = jnp.take_along_axis(log_q, labels[:, None], -1)[:, 0]
        return -jnp.log(jnp.maximum(-jnp.expm1(q_y), 1e-6))  # -log(1 - q_y): bounded below, as -CE is not

    return loss
