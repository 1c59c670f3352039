"""Adversarial weight perturbation (AWP): the gradient at weights that were moved uphill first, for any objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit.models.parts import scanning
from robust_vit.training.optimizer import decays
from robust_vit.typing import Array

TINY = 1e-20  # of the reference


def uphill(params: Any, gradients: Any, gamma: Array | float) -> Any:
    """Moves each kernel w by gamma |w| g / |g|, and leaves biases, norms, tokens and positions where they are.

    Args:
      params: the weights.
      gradients: of the loss that is to rise, shaped as the weights.
      gamma: length of the step relative to the kernel's own norm; may be traced.
    """

    def move(path: Any, kernel: bool, w: Array, g: Array) -> Array:
        if not kernel:
            return w
        stacked = any(part.key in scanning.STACKS for part in path)  # scanned: a kernel for each layer, in one leaf
        v = _length(w, stacked) / (_length(g, stacked) + TINY) * g
        return w + (gamma * v).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(move, decays(params), params, gradients)


def _length(x: Array, stacked: bool) -> Array:
    """The Euclidean norm of an array, or of each x[i], to be combined with it."""
    axes = tuple(range(int(stacked), x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def perturbed(gradients: Callable[..., Any], gamma: Array | float) -> Callable[..., Any]:
    """Makes `gradients` those of min over w, max over |v_l| <= gamma |w_l|, of the loss at the weights w + v.

    The attack runs once, at w; v is one step up the gradient of the objective's loss at those images, and the loss is
    taken again there. BatchNorm's averages, the metrics and the memory are those of the second pass. The price is one
    more forward and backward of the objective. A batch that is processed in parts has one v, that of the whole.

    Args:
      gradients: (params, batch=..., **rest) -> (gradients, what has a field `attacked`), of a whole batch; with
        batch["attacked"] in place of what its attack would return.
      gamma: see `uphill`.

    Reference: Wu, Xia & Wang, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020,
    arXiv 2004.05884; github.com/csdongxian/AWP.
    """

    def second(params: Any, *, batch: dict[str, Any], **given: Any) -> Any:
        first, left = gradients(params, batch=batch, **given)
        again = batch | {name: jax.random.clone(batch[name]) for name in ("keys", "noise")}  # the same draws twice
        again |= {} if left.attacked is None else {"attacked": left.attacked}
        return gradients(uphill(params, first, gamma), batch=again, **given)

    return second
