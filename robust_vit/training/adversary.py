"""What the training attack differentiates: the model at fixed weights, as evaluation sees it or as training does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robust_vit.models.parts import taps
from robust_vit.typing import Array, Keys, LogitsFn


def ramp(epoch: Array | float, epochs: float) -> Array | None:
    """min(epoch / epochs, 1): the share of gradients or patches that ARD and PRM leave; None for 0 epochs, neither.

    Reference: Mo et al., When Adversarial Training Meets Vision Transformers, NeurIPS 2022, arXiv 2210.07540.
    """
    return jnp.minimum(jnp.asarray(epoch, jnp.float32) / epochs, 1.0) if epochs else None


def adversary_view(
    module: Any, params: Any, statistics: Any, batch_norm: str, branch_keep: Array | float | None = None
) -> LogitsFn:
    """Makes the LogitsFn that the attack differentiates.

    In mode "train", or with `branch_keep`, it draws: a stochastic attack calls it with keys [B] too. Without keys it
    draws nothing, as where TRADES asks for the clean prediction.

    No pass of the attack updates BatchNorm's averages, in any mode: they are of the images that weights are fitted to,
    so that evaluation normalises as training did. The Light Recipe's published models were trained on TPUs, where each
    forward pass of the attack moved the averages too, with half-made adversarial images (and its attack saw mode
    "train"; on GPUs "running").

    Args:
      module: the model.
      params: its weights; no gradient reaches them.
      statistics: BatchNorm's running averages, {} where there are none.
      batch_norm: "running" normalises by the running averages, as evaluation does; "batch" by the batch at hand (Gowal
        et al. 2021, google-deepmind/deepmind-research adversarial_robustness); "train" is the training pass, with
        batch statistics and the noise of drop path and dropout, drawn at every evaluation.
      branch_keep: attention random dropping: with what probability, drawn for every example, block and evaluation, a
        gradient flows back through a branch of a residual block; None for always.

    Reference: attention random dropping (ARD): Mo et al. 2022, arXiv 2210.07540. There one coin serves the batch.
    """
    variables = {"params": jax.lax.stop_gradient(params)}
    if statistics:
        variables["batch_stats"] = statistics
    train = batch_norm == "train" or (batch_norm == "batch" and bool(statistics))
    if batch_norm == "batch" and statistics:
        module = module.clone(drop_path=0.0)
    if not train and branch_keep is None:
        return Partial(module.apply, variables)
    return Partial(_View(module, train, noise=batch_norm == "train"), variables, branch_keep)


@dataclasses.dataclass(frozen=True)
class _View:
    """A pass of the model, compared by its fields as a compiled program's cache wants it."""

    module: Any
    train: bool
    noise: bool  # of drop path and dropout

    def __call__(self, variables: Any, branch_keep: Array | None, images: Array, keys: Keys | None = None) -> Array:
        if keys is None:
            module = self.module.clone(drop_path=0.0) if self.noise else self.module
            return _applied(module, variables, images, self.train and "batch_stats" in variables, {})
        rngs = {}
        if self.noise:  # of the batch, as in the training pass: the first example's key speaks for it
            rngs["dropout"] = jax.random.fold_in(keys[0], 0)
        if branch_keep is None:
            return _applied(self.module, variables, images, self.train, rngs)
        with taps.handled(taps.dropping(keys, branch_keep), taps.BRANCHES):
            return _applied(self.module, variables, images, self.train, rngs | {taps.RNG: jax.random.key(0)})


def _applied(module: Any, variables: Any, images: Array, train: bool, rngs: dict[str, Array]) -> Array:
    if not train:
        return module.apply(variables, images, rngs=rngs)
    return module.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]
