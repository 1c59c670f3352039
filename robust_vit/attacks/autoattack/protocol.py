"""The stepping protocol shared by the parts of AutoAttack.

A run is a set of static settings; its state has one leading axis of slots, each slot at its own example, target and
step. So a scheduler can keep a tile of fixed shape, advance it by a fixed number of ticks, and refill the slots that
are done: nothing recompiles, and no slot waits for another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_vit.attacks import norms
from robust_vit.typing import Array, Keys

STOPS = ("broken", "never")  # when a slot ends: with its first success, or with its last step
State = Any  # a flax.struct dataclass whose every leaf has the slots as leading axis


class Cost(NamedTuple):
    """Model evaluations of one tick, per slot: forward passes without, and with, a backward pass to the input."""

    forwards: int
    gradients: int


def expand(values: Array, like: Array) -> Array:
    """[B] -> [B,1,..,1], to broadcast over `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def select(mask: Array, new: State, old: State) -> State:
    """Takes the slots of `new` where `mask` [B] is true, of `old` elsewhere."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(expand(mask, a), a, b), new, old)


def refill(state: State, mask: Array, fresh: State) -> State:
    """Puts the slots of `fresh` (from `run.start`) into `state` where `mask` [B] is true; the other slots keep every
    bit.
    """
    return select(mask, fresh, state)


def zero_gradient(state: State) -> Array:
    """[B] whether the gradient at the best point is zero in every value; False for runs that keep none."""
    gradient = getattr(state, "best_gradient", None)
    return jnp.zeros_like(state.done) if gradient is None else (flat(gradient) == 0).all(axis=-1)


def advance(tick: Callable[[State], State], state: State, ticks: int) -> State:
    """Runs `ticks` (static) ticks; a slot that is done keeps its state bit for bit."""
    return jax.lax.fori_loop(0, ticks, lambda _, s: select(~s.done, tick(s), s), state)


def complete(tick: Callable[[State], State], state: State) -> State:
    """Ticks until every slot is done. Under `jit` the loop ends with the last slot, so easy batches are cheap."""
    return jax.lax.while_loop(lambda s: ~s.done.all(), lambda s: select(~s.done, tick(s), s), state)


def misclassified(logits: Array, labels: Array) -> Array:
    """[B] whether the prediction is another class. NaN logits are no prediction: they never count as a success."""
    return (jnp.argmax(logits, axis=-1) != labels) & ~jnp.isnan(logits).any(axis=-1)


def key_data(keys: Keys) -> tuple[Array, str]:
    """Splits typed keys [B] into plain numbers, which a state can carry and select, and the name of their generator."""
    return jax.random.key_data(keys), str(jax.random.key_impl(keys))


def folded_keys(data: Array, implementation: str, step: Array) -> Keys:
    """Keys [B] for step number `step` [B] of each slot."""
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=implementation), step)


def flat(x: Array) -> Array:
    """[B,H,W,C] -> [B,H*W*C]."""
    return x.reshape(x.shape[0], -1)


def length(x: Array, norm: str) -> Array:
    """[B] the linf, l2 or l1 norm of each example."""
    x = flat(x)
    if norm == "linf":
        return jnp.abs(x).max(axis=-1)
    if norm == "l2":
        return jnp.sqrt(jnp.square(x).sum(axis=-1))
    return jnp.abs(x).sum(axis=-1)


def uniform_noise(keys: Keys, images: Array) -> Array:
    """[B,H,W,C] uniform in [-1,1], each example from its key."""
    return 2.0 * norms.draw(keys, images, jax.random.uniform) - 1.0


def normal_noise(keys: Keys, images: Array) -> Array:
    """[B,H,W,C] standard normal, each example from its key."""
    return norms.draw(keys, images, jax.random.normal)


def zeros(like: Array) -> Array:
    """[B] float32 zeros that under shard_map vary over devices as `like` [B] does, which what a loop carries has to."""
    return jnp.where(like == like, jnp.float32(0.0), jnp.float32(0.0))


def no_noise(keys: Keys, images: Array) -> Array:
    """[B,H,W,C] zeros: a start at the image itself."""
    del keys
    return jnp.zeros_like(images)


def noise(norm: str) -> Callable[[Keys, Array], Array]:
    """The start noise of APGD and FAB: uniform for linf, normal for l2 and l1."""
    return uniform_noise if norm == "linf" else normal_noise
