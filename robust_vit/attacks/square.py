"""Square: random search with localised changes, for the linf, l2 and l1 ball. It uses no gradient.

A proposal changes one square window (in l2 and l1 it moves the change of a second window into it), and is kept if the
margin of the label falls. The window shrinks with the number of queries. Windows are masks from index grids, so all
window sizes share one compiled program and every slot can be at its own query.

Reference: Andriushchenko et al., Square attack: a query-efficient black-box adversarial attack via random search, 2020
(https://arxiv.org/abs/1912.00049), as in https://github.com/fra31/auto-attack: the window shrinks at fixed query
numbers, whatever the budget, unless `rescale_schedule`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from robust_vit.attacks import l1_ball, losses, norms, slots
from robust_vit.attacks.arguments import check_choice, check_count
from robust_vit.attacks.slots import expand
from robust_vit.attacks.square_patterns import bump, bumps, sizes
from robust_vit.typing import Array, Keys, LogitsFn

P_INIT = 0.8  # the fraction at the beginning


class Proposal(NamedTuple):
    """The random numbers of one query; uniforms in [0,1), signs in {-1, 1}."""

    places: Array  # [B,4] row and column of the window, and of the second window (l2, l1)
    turned: Array  # [B] bool: the bump is transposed (l2, l1)
    signs: Array  # [B,C] one for each channel


class Draws(NamedTuple):
    """Where random numbers come from.

    Attributes:
      start: (keys [B], shape) -> signs of that shape [B,...]: the stripes (linf), or the tiles (l2, l1).
      turned: (keys [B], shape) -> bool [B,...]: which tiles are transposed.
      proposal: (keys [B] of this query, query [B], channels) -> Proposal.
    """

    start: Callable[[Keys, tuple[int, ...]], Array]
    turned: Callable[[Keys, tuple[int, ...]], Array]
    proposal: Callable[[Keys, Array, int], Proposal]


@flax.struct.dataclass
class SquareState:
    """The slots of a run; every leaf has the leading axis B. `adversarial` is the clean image while `broken` is
    false.
    """

    images: Array  # [B,H,W,C] clean
    labels: Array
    targets: Array
    epsilon: Array
    key: Array  # raw key data
    tick: Array  # queries so far
    best: Array  # the point of lowest margin
    best_loss: Array  # minus that margin
    adversarial: Array
    broken: Array
    done: Array
    non_finite: Array
    implementation: str = flax.struct.field(pytree_node=False, default="threefry2x32")


@dataclasses.dataclass(frozen=True)
class Square:
    """A run of Square. See `square_run` for the settings and `slots` for the protocol."""

    norm: str
    queries: int
    p_init: float
    rescale_schedule: bool
    reference_quirks: bool
    draws: Draws

    @property
    def ticks(self) -> int:
        """How many ticks finish any slot."""
        return self.queries + 1

    @property
    def cost(self) -> slots.Cost:
        """Model evaluations of one tick."""
        return slots.Cost(forwards=1, gradients=0)

    def start(
        self,
        keys: Keys,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        targets: Array,
        epsilon: Array,
        restart: Array | int = 0,
    ) -> SquareState:
        """Makes fresh slots at the initial pattern; the model is not evaluated yet. The keys tell restarts apart.

        Args:
          keys: [B] typed keys.
          logits_fn: not used.
          images: [B,H,W,C] in [0,1].
          labels: [B] int.
          targets: [B] int, not used: the attack is untargeted.
          epsilon: [B] radii.
          restart: not used.
        """
        del logits_fn, restart
        images = images.astype(jnp.float32)
        batch = images.shape[0]
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), (batch,))
        key, implementation = slots.key_data(keys)
        first = slots.folded_keys(key, implementation, jnp.zeros((batch,), jnp.int32))
        none = jnp.zeros((batch,), bool)
        point = self._stripes(first, images, epsilon) if self.norm == "linf" else self._tiles(first, images, epsilon)
        return SquareState(
            images=images,
            labels=labels.astype(jnp.int32),
            targets=targets.astype(jnp.int32),
            epsilon=epsilon,
            key=key,
            tick=jnp.zeros((batch,), jnp.int32),
            best=point,
            best_loss=jnp.full((batch,), -jnp.inf),
            adversarial=images,
            broken=none,
            done=none,
            non_finite=none,
            implementation=implementation,
        )

    def advance(self, logits_fn: LogitsFn, state: SquareState, ticks: int) -> SquareState:
        """Runs `ticks` (static) ticks: one forward pass each."""
        return slots.advance(lambda s: self.tick(logits_fn, s), state, ticks)

    def tick(self, logits_fn: LogitsFn, s: SquareState) -> SquareState:
        """Makes one query per slot: the initial point first, then proposals."""
        point = jnp.where(expand(s.tick > 0, s.best), self._propose(s), s.best)
        logits = losses.in_float32(logits_fn(point))
        loss = losses.margin(logits, s.labels)
        hit = loss >= 0.0  # the reference stops at a margin of 0, even if it is not misclassified there
        better = (s.tick == 0) | hit | (loss > s.best_loss)
        broken = hit & slots.misclassified(logits, s.labels)
        tick = s.tick + 1
        return s.replace(
            best=jnp.where(expand(better, point), point, s.best),
            best_loss=jnp.where(better, loss, s.best_loss),
            adversarial=jnp.where(expand(broken, point), norms.box(point), s.adversarial),
            broken=s.broken | broken,
            tick=tick,
            done=hit | (tick == self.ticks),
            non_finite=s.non_finite | ~jnp.isfinite(loss),
        )

    def _propose(self, s: SquareState) -> Array:
        """Returns the next point [B,H,W,C] to ask about."""
        _, height, width, channels = s.images.shape
        query = jnp.maximum(s.tick - 1, 0)
        keys = slots.folded_keys(s.key, s.implementation, s.tick)
        drawn = self.draws.proposal(keys, query, channels)
        sides, levels = sizes(height, width, self.queries, self.p_init, self.rescale_schedule, self.norm)
        level = jnp.asarray(levels)[query]
        first = self._window(jnp.asarray(sides)[level], drawn.places[:, :2], height, width)
        if self.norm == "linf":
            change = first.mask * (2.0 * expand(s.epsilon, s.images)) * drawn.signs[:, None, None, :]
            return norms.linf_project(s.best + change, s.images, s.epsilon)
        second = self._window(jnp.asarray(sides)[level], drawn.places[:, 2:], height, width)
        table = jnp.asarray(bumps(tuple(int(side) for side in sides), self.norm))
        placed = _place(table, level, first, drawn.turned)
        return self._exchange(s, first.mask, second.mask, placed * drawn.signs[:, None, None, :])

    def _window(self, side: Array, places: Array, height: int, width: int) -> "Window":
        # The reference draws offsets in 0 .. H - side - 1: a window never reaches the last row and column.
        more = 0 if self.reference_quirks else 1
        top = (places[:, 0] * (height - side + more)).astype(jnp.int32)
        left = (places[:, 1] * (width - side + more)).astype(jnp.int32)
        rows = jnp.arange(height)[None, :] - top[:, None]  # [B,H] position inside the window
        columns = jnp.arange(width)[None, :] - left[:, None]
        inside_rows = (rows >= 0) & (rows < side[:, None])
        inside_columns = (columns >= 0) & (columns < side[:, None])
        mask = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
        return Window(mask, rows, columns)

    def _exchange(self, s: SquareState, first: Array, second: Array, new: Array) -> Array:
        """Empties the second window, and spends what it held, and what the ball still allows, on a bump in the
        first.
        """
        delta = s.best - s.images
        channels = delta.shape[-1]
        total = _norm(delta, self.norm, axis=(1, 2, 3))
        held = _norm(delta * (first | second), self.norm, axis=(1, 2))
        old = delta * first
        new = new + old / (norms.TINY + _norm(old, self.norm, axis=(1, 2)))
        new = new / (norms.TINY + _norm(new, self.norm, axis=(1, 2)))
        epsilon = expand(s.epsilon, delta)
        if self.norm == "l2":
            size = jnp.sqrt(jnp.maximum(epsilon**2 - total**2, 0.0) / channels + held**2)
        else:
            size = (jnp.maximum(epsilon - total, 0.0) / channels + held) * channels
        delta = jnp.where(first, new * size, jnp.where(second, 0.0, delta))
        return self._inside(s.images, delta, s.epsilon)

    def _inside(self, images: Array, delta: Array, epsilon: Array) -> Array:
        """Scales `delta` to the sphere (l2) or projects it on the ball (l1)."""
        if self.norm == "l2":
            size = norms.TINY + _norm(delta, "l2", axis=(1, 2, 3))
            return norms.box(images + delta / size * expand(epsilon, delta))
        return images + delta + l1_ball.correction(images, delta, epsilon * (1.0 - 1e-6))

    def _stripes(self, keys: Keys, images: Array, epsilon: Array) -> Array:
        batch, _, width, channels = images.shape
        signs = self.draws.start(keys, (batch, 1, width, channels))
        return norms.box(images + expand(epsilon, images) * signs)

    def _tiles(self, keys: Keys, images: Array, epsilon: Array) -> Array:
        batch, height, width, channels = images.shape
        side = max(min(height, width) // 5, 1)
        margin = (min(height, width) - 5 * side) // 2 if min(height, width) >= 5 else 0
        down, across = height // side, width // side
        keys, more_keys = norms.split(keys)
        signs = self.draws.start(keys, (batch, down, across, channels))
        turned = self.draws.turned(more_keys, (batch, down, across))
        upright = jnp.asarray(bump(side, self.norm))
        tiles = jnp.where(turned[..., None, None], upright.T, upright)  # [B,down,across,side,side]
        tiles = jnp.einsum("bijuv,bijc->biujvc", tiles, signs).reshape(batch, down * side, across * side, channels)
        low_high = ((0, 0), (margin, height), (margin, width), (0, 0))
        delta = jnp.pad(tiles, low_high)[:, :height, :width]
        return self._inside(images, delta, epsilon)


class Window(NamedTuple):
    """A square window in every image."""

    mask: Array  # [B,H,W,1] bool
    rows: Array  # [B,H] row inside the window; outside it the value has no meaning
    columns: Array  # [B,W]


def _place(table: Array, level: Array, window: Window, turned: Array) -> Array:
    """Copies each slot's bump from the table [L,S,S] to its window: [B,H,W,1]."""
    size = table.shape[-1]
    rows, columns = jnp.clip(window.rows, 0, size - 1), jnp.clip(window.columns, 0, size - 1)
    upright = table[level[:, None, None], rows[:, :, None], columns[:, None, :]]
    lying = table[level[:, None, None], columns[:, None, :], rows[:, :, None]]
    return jnp.where(turned[:, None, None], lying, upright)[..., None] * window.mask


def _norm(x: Array, norm: str, axis: tuple[int, ...]) -> Array:
    if norm == "l2":
        return jnp.sqrt(jnp.square(x).sum(axis=axis, keepdims=True))
    return jnp.abs(x).sum(axis=axis, keepdims=True)


def _example_start(keys: Keys, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.rademacher(key, shape[1:], jnp.float32))(keys)


def _example_turned(keys: Keys, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.bernoulli(key, shape=shape[1:]))(keys)


def _example_proposal(keys: Keys, query: Array, channels: int) -> Proposal:
    """As few random bits as will do: five words, and one for every 32 channels."""
    del query  # already in the keys
    words = jax.vmap(lambda key: jax.random.bits(key, (5 + -(-channels // 32),), jnp.uint32))(keys)
    places = (words[:, :4] >> 8).astype(jnp.float32) * 2.0**-24
    channel = jnp.arange(channels)
    bits = (words[:, 5 + channel // 32] >> (channel % 32).astype(jnp.uint32)) & 1
    return Proposal(places, (words[:, 4] & 1) == 1, 1.0 - 2.0 * bits.astype(jnp.float32))


EXAMPLE_DRAWS = Draws(_example_start, _example_turned, _example_proposal)


def square_run(
    norm: str = "linf",
    queries: int = 5000,
    p_init: float = P_INIT,
    rescale_schedule: bool = False,
    reference_quirks: bool = True,
    shared_square: bool = False,
    draws: Draws | None = None,
) -> Square:
    """Makes one run of Square in the stepping protocol of `slots`.

    A slot is done with its first margin of 0 or below, or after queries + 1 forward passes.

    Args:
      norm: "linf", "l2" or "l1".
      queries: proposals; the initial point is one query more.
      p_init: the fraction of pixels that the first windows cover.
      rescale_schedule: stretch the schedule of window sizes, made for 10,000 queries, to `queries` (the original
        paper); AutoAttack does not.
      reference_quirks: windows never touch the last row and column, as in the reference.
      shared_square: all examples of a batch get the same places, signs and bumps, those of the first example's key, as
        in the reference (whose result therefore depends on the batch). For comparisons only: give all slots the same
        age.
      draws: another source of random numbers.

    Raises:
      ValueError: for a setting out of range.
    """
    check_choice("norm", norm, norms.BALLS)
    check_count("queries", queries)
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init = {p_init}: must be above 0 and at most 1")
    draws = draws or (EXAMPLE_DRAWS._replace(proposal=_shared_proposal) if shared_square else EXAMPLE_DRAWS)
    return Square(norm, queries, p_init, rescale_schedule, reference_quirks, draws)


def _shared_proposal(keys: Keys, query: Array, channels: int) -> Proposal:
    first = _example_proposal(keys[:1], query[:1], channels)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, keys.shape + x.shape[1:]), first)
