"""Adversarial weight perturbation (AWP): the gradient at weights that were moved uphill first, for any objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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

    def move(kernel: bool, w: Array, g: Array) -> Array:
        if not kernel:
            return w
        length = jnp.linalg.norm(w.ravel()) / (jnp.linalg.norm(g.ravel()) + TINY)
        return w + (gamma * length * g).astype(w.dtype)

    return jax.tree.map(move, decays(params), params, gradients)


def perturbed(gradient: Callable[..., Any], gamma: Array | float) -> Callable[..., Any]:
    """Makes `gradient` that of the perturbed weights: min over w of max over |v_l| <= gamma |w_l| of the loss at w + v.

    The attack runs once, at w; v is one step up the gradient of the loss at those images, and the loss is taken again
    there. BatchNorm's averages, the metrics and the memory are those of the second pass. The price is one more forward
    and backward.

    Args:
      gradient: (params, batch=..., attack=..., **rest) -> (gradients, (statistics, sums, memory, attacked)); with
        `attack=None` its own attack.
      gamma: see `uphill`.

    Reference: Wu, Xia & Wang, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020,
    arXiv 2004.05884; github.com/csdongxian/AWP.
    """

    def second(params: Any, **given: Any) -> Any:
        first, (_, _, _, attacked) = gradient(params, **given)
        again = None if attacked is None else lambda *_, **__: attacked
        return gradient(uphill(params, first, gamma), **given, attack=again)

    return second
