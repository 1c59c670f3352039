"""Optimisers: optax chains that give the update's direction; the step multiplies it by the traced learning rate."""

import jax
import optax

from robust_vit.errors import lookup


def decays(params) -> object:
    """Marks the leaves that weight decay acts on: kernels, and never biases, norms, tokens, positions or temperatures.

    By name and not by rank: blocks that are scanned stack their biases into matrices.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(*, weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019)."""
    return optax.chain(optax.scale_by_adam(b1, b2), optax.add_decayed_weights(weight_decay, decays))


def sgd(*, weight_decay: float = 0.0, momentum: float = 0.9) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; the decay enters the gradient, as L2 regularisation does."""
    return optax.chain(optax.add_decayed_weights(weight_decay, decays), optax.trace(momentum, nesterov=True))


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def build(name: str, *, clip_norm: float = 0.0, **keywords: float) -> optax.GradientTransformation:
    """Makes an optimiser whose updates are to be multiplied by the learning rate and subtracted.

    Args:
      name: "adamw" or "sgd".
      clip_norm: bound on the global gradient norm; 0 for none.
      **keywords: of that optimiser: weight_decay, on kernels only; Adam's b1, b2; SGD's momentum.
    """
    chain = lookup("optimizer.name", name, OPTIMIZERS)(**keywords)
    return optax.chain(optax.clip_by_global_norm(clip_norm), chain) if clip_norm else chain
