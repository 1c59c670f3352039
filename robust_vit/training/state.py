"""The state of a run: everything that a checkpoint needs to continue as if nothing had happened."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from robust_vit import randomness
from robust_vit.typing import Array, Variables


@flax.struct.dataclass
class TrainState:
    """What one step turns into the next."""

    step: Array  # int32 []: steps taken
    params: Any
    batch_stats: Any  # {} where a model has no BatchNorm
    optimizer: Any
    average: Any  # exponential moving average of {"params", "batch_stats"}; {} when off
    memory: Any = ()  # what the objective remembers; () for most

    def variables(self, weights: str = "raw") -> Variables:
        """Returns the model's variables: the "raw" weights, or their "ema" (exponential moving average)."""
        tree = self.average if weights == "ema" else {"params": self.params, "batch_stats": self.batch_stats}
        if not tree:
            raise ValueError("weights = 'ema': this run kept no average (optimizer.ema_decay was 0); must be 'raw'")
        return tree if tree["batch_stats"] else {"params": tree["params"]}


def create(
    module: Any,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    ema: bool,
    memory: Callable[[], Any] = tuple,
    initial: Variables | None = None,
) -> TrainState:
    """Initialises a state; compile it, or `jax.eval_shape` it to learn its shapes.

    Args:
      module: a model of `robust_vit.models`.
      tx: the optimiser.
      image_shape: (H, W, C).
      seed: of the initial weights.
      ema: whether to keep an average of the weights.
      memory: makes what the objective remembers at first.
      initial: weights to begin from in place of those that are drawn: all of them, or a part.
    """
    key = jax.random.fold_in(randomness.as_key(seed), randomness.INIT)
    variables = replaced(module.init(key, jnp.zeros((1, *image_shape))), initial or {})
    params, stats = variables["params"], variables.get("batch_stats", {})
    average = jax.tree.map(jnp.array, {"params": params, "batch_stats": stats}) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params), average, memory())


def replaced(drawn: Any, given: Any) -> Any:
    """The tree `drawn` with the leaves of `given`, a part of it, in their places."""
    if not isinstance(drawn, Mapping):
        return given
    return {name: replaced(leaf, given[name]) if name in given else leaf for name, leaf in drawn.items()}


def averaged(average: Any, current: Any, decay: float, step: Array) -> Any:
    """One step of the moving average, with decay min(d, (1 + t) / (10 + t)) so that the start is forgotten quickly."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(current, average, 1.0 - d)
