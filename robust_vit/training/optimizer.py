"""Optimisers: optax chains that give the update's direction; the step multiplies it by the traced learning rate."""

from collections.abc import Sequence

import jax
import optax

from robust_vit.errors import lookup
from robust_vit.training import groups


def decays(params) -> object:
    """Marks the leaves that weight decay acts on: kernels, and never biases, norms, tokens, positions or temperatures.

    By name and not by rank: blocks that are scanned stack their biases into matrices.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(
    *, weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, moment: str = "float32"
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019). `moment` is what the mean of gradients is
    kept in; that of their squares, whose steps are too fine for bfloat16 with b2 near 1, is kept in float32.
    """
    return optax.chain(optax.scale_by_adam(b1, b2, mu_dtype=moment), optax.add_decayed_weights(weight_decay, decays))


def lion(
    *, weight_decay: float = 0.0, b1: float = 0.9, lion_b2: float = 0.99, moment: str = "float32"
) -> optax.GradientTransformation:
    """The sign of a mean of gradients, with decoupled weight decay (Chen et al., NeurIPS 2023, arXiv 2302.06675).

    It wants about a tenth of AdamW's learning rate and ten times its weight decay.
    """
    return optax.chain(
        optax.scale_by_lion(b1, lion_b2, mu_dtype=moment), optax.add_decayed_weights(weight_decay, decays)
    )


def sgd(*, weight_decay: float = 0.0, momentum: float = 0.9, moment: str = "float32") -> optax.GradientTransformation:
    """SGD with Nesterov momentum; the decay enters the gradient, as L2 regularisation does."""
    trace = optax.trace(momentum, nesterov=True, accumulator_dtype=moment)
    return optax.chain(optax.add_decayed_weights(weight_decay, decays), trace)


OPTIMIZERS = {"adamw": adamw, "lion": lion, "sgd": sgd}


def build(
    name: str, *, clip_norm: float = 0.0, layer_decay: float = 1.0, freeze: Sequence[str] = (), **keywords: float
) -> optax.GradientTransformation:
    """Makes an optimiser whose updates are to be multiplied by the learning rate and subtracted.

    Args:
      name: a name in OPTIMIZERS.
      clip_norm: bound on the global gradient norm; 0 for none.
      layer_decay: by which the learning rate falls from one layer to the one below it; 1 for none: `groups.scales`.
      freeze: patterns of what gets no update and no weight decay.
      **keywords: of that optimiser: weight_decay, on kernels only; Adam's b1, b2; Lion's b1, lion_b2; SGD's momentum.
    """
    chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    chain.append(lookup("optimizer.name", name, OPTIMIZERS)(**keywords))
    if layer_decay != 1.0 or freeze:
        chain.append(groups.scaled(layer_decay, freeze))
    return optax.chain(*chain) if len(chain) > 1 else chain[0]
