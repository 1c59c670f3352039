"""Named points inside the blocks of transformers: to look at a value there, or to change what flows back through it.

    with taps.handled(taps.dropping(keys, keep=0.5), taps.BRANCHES):
        logits = module.apply(variables, images, rngs={"taps": key})

Identity, and nothing in the traced program, where nobody handles them. Enter `handled` inside of what `jax.jit` traces,
never around it: a program that is compiled already does not ask again.

Points, by the field's terms, and what is handed over there:

    qkv                        [B,...,3D] queries, keys and values, before they are cut into heads
    attention_probabilities    [B,A,Q,K] after the softmax; XCiT's, among channels, [B,A,d,d]
    attention_output           [B,...,D] of the attention, before its factor and drop path
    local_output               [B,h,w,D] of XCiT's local patch interaction, likewise
    mlp_output                 [B,...,D] of the MLP, likewise
    residual                   [B,...,D] the stream of tokens after a block
    positions                  [1,N,D] or [1,h,w,D] what is added to the tokens for their places, those before the
                               patches included

Places that can be looked at only (what a handler returns is dropped):

    groups                     [1 or B,h,w] of blocks that attend inside groups of tokens: slot * n + place in it for
                               each token of the grid, the slots of `attention_probabilities` having n places each
                               (Swin's windows, MobileViT's sequences); -1 for a token whose window was skipped
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.errors import check_choice
from robust_vit.typing import Array, Keys

BRANCHES = ("attention_output", "local_output", "mlp_output")  # what a block adds to the stream
LOOKS = ("groups",)  # what can be looked at, and not changed
POINTS = ("qkv", "attention_probabilities", *BRANCHES, "residual", "positions", *LOOKS)
COLLECTION = "taps"  # the Flax collection that `collecting` gathers in; scanned stacks give it a layer axis
RNG = "taps"  # the Flax rng that tells blocks apart; scanned stacks split it

Handler = Callable[[nn.Module, str, Array], Array]  # (the module that taps, point, value) -> value

_HANDLED: ContextVar[tuple[frozenset[str], Handler | None]] = ContextVar("taps", default=(frozenset(), None))


@contextlib.contextmanager
def handled(handler: Handler, points: Iterable[str] = POINTS) -> Iterator[None]:
    """Hands every value at `points` to `handler` while a model is traced inside; what it returns goes on.

    Raises:
      ValueError: if there is no such point.
    """
    for point in points:
        check_choice("point", point, POINTS)
    token = _HANDLED.set((frozenset(points), handler))
    try:
        yield
    finally:
        _HANDLED.reset(token)


def tap(module: nn.Module, point: str, value: Array) -> Array:
    """What goes on from a point: the value itself unless somebody handles it. Called by the families' blocks."""
    points, handler = _HANDLED.get()
    return handler(module, point, value) if point in points else value


def tapped(point: str) -> bool:
    """Whether somebody handles a point: lets a fused attention fall back to the form that holds the map."""
    return point in _HANDLED.get()[0]


def found(module: nn.Module, images: jax.ShapeDtypeStruct) -> frozenset[str]:
    """The points that a model has: it is traced on images of that shape, and nothing is computed."""
    seen = set()

    def note(owner: nn.Module, point: str, value: Array) -> Array:
        seen.add(point)
        return value

    with handled(note):  # a function of its own, which JAX has not traced before
        jax.eval_shape(lambda key, x: module.init(key, x), jax.random.key(0), images)
    return frozenset(seen)


def dropping(keys: Keys, keep: Array | float) -> Handler:
    """A handler that lets gradients pass, at every point and for every example, with probability `keep`, else not at
    all; values stay as they are, bit for bit.

    The model is applied with an rng "taps": any key will do, since the draws belong to the examples.

    Args:
      keys: [B] typed keys.
      keep: in [0,1], may be traced.
    """

    def handler(module: nn.Module, point: str, value: Array) -> Array:
        place = jax.random.bits(module.make_rng(RNG))  # one number a point and block, scanned or not
        coins = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), keep))(keys)  # [B]
        coins = coins.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(coins, value, jax.lax.stop_gradient(value))

    return handler
