"""Square: random search with localised changes, for the linf, l2 and l1 ball. It uses no gradient.

A proposal changes one square window (in l2 and l1 it moves the change of a second window into it), and is kept if the
margin of the label falls. The window shrinks with the number of queries. Windows are masks from index grids, so all
window sizes share one compiled program and every slot can be at its own query.

Reference: Andriushchenko et al., Square attack: a query-efficient black-box adversarial attack via random search, 2020
(https://arxiv.org/abs/1912.00049), as in https://github.com/fra31/auto-attack: the window shrinks at fixed query
numbers, whatever the budget, unless `rescale_schedule`.
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.attacks import l1_ball, losses, norms
from robust_vit.attacks.arguments import check_count
from robust_vit.attacks.autoattack import protocol
from robust_vit.attacks.autoattack.protocol import expand
from robust_vit.attacks.autoattack.square import refusals
from robust_vit.attacks.autoattack.square.draws import EXAMPLE_DRAWS, SHARED_DRAWS, Draws, Proposal
from robust_vit.attacks.autoattack.square.patterns import bump, bumps, sizes
from robust_vit.errors import check_choice
from robust_vit.typing import Array, Keys, LogitsFn

P_INIT = 0.8  # the fraction at the beginning


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
    tick: Array  # queries so far, those that were passed over included
    best: Array  # the point of lowest margin
    best_loss: Array  # minus that margin
    adversarial: Array
    broken: Array
    done: Array
    non_finite: Array
    refused: Array  # [B,P] proposals that `best` refused; P = 0 where it is not worth knowing
    implementation: str = flax.struct.field(pytree_node=False, default="threefry2x32")


@dataclasses.dataclass(frozen=True)
class Square:
    """A run of Square. See `square_run` for the settings and `protocol` for what a scheduler may do."""

    norm: str
    queries: int
    p_init: float
    rescale_schedule: bool
    reference_quirks: bool
    skip_repeats: bool
    draws: Draws

    @property
    def ticks(self) -> int:
        """How many ticks finish any slot."""
        return self.queries + 1

    @property
    def cost(self) -> protocol.Cost:
        """Model evaluations of one tick."""
        return protocol.Cost(forwards=1, gradients=0)

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
          labels: [B] int; of distributions [B,K] the most probable class.
          targets: [B] int, not used: the attack is untargeted.
          epsilon: [B] radii.
          restart: not used.
        """
        del logits_fn, restart
        images = images.astype(jnp.float32)
        batch = images.shape[0]
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), (batch,))
        key, implementation = protocol.key_data(keys)
        first = protocol.folded_keys(key, implementation, jnp.zeros((batch,), jnp.int32))
        labels = losses.as_labels(labels)
        zero = protocol.zeros(labels)
        none = zero > 0
        point = self._stripes(first, images, epsilon) if self.norm == "linf" else self._tiles(first, images, epsilon)
        return SquareState(
            images=images,
            labels=labels,
            targets=targets.astype(jnp.int32),
            epsilon=epsilon,
            key=key,
            tick=zero.astype(jnp.int32),
            best=point,
            best_loss=zero - jnp.inf,
            adversarial=images,
            broken=none,
            done=none,
            non_finite=none,
            refused=jnp.broadcast_to(none[:, None], (batch, self._numbers(images.shape))),
            implementation=implementation,
        )

    def advance(self, logits_fn: LogitsFn, state: SquareState, ticks: int) -> SquareState:
        """Runs `ticks` (static) ticks: one forward pass each."""
        return protocol.advance(lambda s: self.tick(logits_fn, s), state, ticks)

    def tick(self, logits_fn: LogitsFn, s: SquareState) -> SquareState:
        """Makes one query per slot: the initial point first, then proposals."""
        asked = self._next(s)
        drawn = self._draw(s, asked)
        point = jnp.where(expand(asked > 0, s.best), self._propose(s, asked, drawn), s.best)
        logits = losses.in_float32(logits_fn(point))
        loss = losses.margin(logits, s.labels)
        valid = asked < self.ticks  # false: no query that is left could change anything
        hit = valid & (loss >= 0.0)  # the reference stops at a margin of 0, even if it is not misclassified there
        better = (asked == 0) | hit | (valid & (loss > s.best_loss))
        broken = hit & protocol.misclassified(logits, s.labels)
        tick = asked + 1
        return s.replace(
            best=jnp.where(expand(better, point), point, s.best),
            best_loss=jnp.where(better, loss, s.best_loss),
            adversarial=jnp.where(expand(broken, point), norms.box(point), s.adversarial),
            broken=s.broken | broken,
            tick=tick,
            done=hit | (tick >= self.ticks),
            non_finite=s.non_finite | (valid & ~jnp.isfinite(loss)),
            refused=self._note(s, asked, drawn, better),
        )

    def _draw(self, s: SquareState, tick: Array) -> Proposal:
        keys = protocol.folded_keys(s.key, s.implementation, tick)
        return self.draws.proposal(keys, self._query(tick), s.images.shape[-1])

    def _query(self, tick: Array) -> Array:
        """The proposal of a tick, counted from 0; those of the start and beyond the end are not asked."""
        return jnp.clip(tick - 1, 0, self.queries - 1)

    def _sides(self, s: SquareState, tick: Array) -> tuple[np.ndarray, Array]:
        """All window sides [L], and which of them a tick [B] uses."""
        _, height, width, _ = s.images.shape
        sides, levels = sizes(height, width, self.queries, self.p_init, self.rescale_schedule, self.norm)
        return sides, jnp.asarray(levels)[self._query(tick)]

    def _propose(self, s: SquareState, tick: Array, drawn: Proposal) -> Array:
        """Returns the point [B,H,W,C] to ask about at a tick."""
        _, height, width, _ = s.images.shape
        sides, level = self._sides(s, tick)
        first = self._window(jnp.asarray(sides)[level], drawn.places[:, :2], height, width)
        if self.norm == "linf":
            change = first.mask * (2.0 * expand(s.epsilon, s.images)) * drawn.signs[:, None, None, :]
            return norms.linf_project(s.best + change, s.images, s.epsilon)
        second = self._window(jnp.asarray(sides)[level], drawn.places[:, 2:], height, width)
        table = jnp.asarray(bumps(tuple(int(side) for side in sides), self.norm))
        placed = _place(table, level, first, drawn.turned)
        return self._exchange(s, first.mask, second.mask, placed * drawn.signs[:, None, None, :])

    def _levels(self, shape: tuple[int, ...]) -> refusals.Levels:
        return refusals.levels(*shape[1:], self.queries, self.p_init, self.rescale_schedule, self._more)

    def _numbers(self, shape: tuple[int, ...]) -> int:
        """How many proposals are told apart; 0 to ask them all."""
        _, height, width, channels = shape
        wanted = self.skip_repeats and self.norm == "linf"
        if not wanted or not refusals.worthwhile(self._levels(shape), channels):
            return 0
        return (height * width) << channels

    def _next(self, s: SquareState) -> Array:
        """[B] the next tick that can change anything; `ticks` if there is none."""
        if not s.refused.shape[1]:
            return s.tick
        ahead = s.tick[:, None] + jnp.arange(refusals.LOOKAHEAD)[None]  # [B,ahead]
        numbers = jax.vmap(lambda tick: self._number(s, tick, self._draw(s, tick)), in_axes=1, out_axes=1)(ahead)
        query = refusals.next_query(self._levels(s.images.shape), s.tick - 1, s.refused, numbers)
        return jnp.where(s.tick == 0, 0, query + 1)

    def _number(self, s: SquareState, tick: Array, drawn: Proposal) -> Array:
        _, height, width, _ = s.images.shape
        sides, level = self._sides(s, tick)
        corner = self._corner(jnp.asarray(sides)[level], drawn.places[:, :2], height, width)
        return refusals.number(*corner, drawn.signs, width)

    def _note(self, s: SquareState, asked: Array, drawn: Proposal, better: Array) -> Array:
        if not s.refused.shape[1]:
            return s.refused
        found, number = self._levels(s.images.shape), self._number(s, asked, drawn)
        return refusals.note(found, s.tick - 2, asked - 1, s.refused, number, better)

    @property
    def _more(self) -> int:
        # The reference draws offsets in 0 .. H - side - 1: a window never reaches the last row and column.
        return 0 if self.reference_quirks else 1

    def _corner(self, side: Array, places: Array, height: int, width: int) -> tuple[Array, Array]:
        """Top row and left column [B] of windows from uniforms [B,2]."""
        top = (places[:, 0] * (height - side + self._more)).astype(jnp.int32)
        return top, (places[:, 1] * (width - side + self._more)).astype(jnp.int32)

    def _window(self, side: Array, places: Array, height: int, width: int) -> "Window":
        top, left = self._corner(side, places, height, width)
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


def square_run(
    norm: str = "linf",
    queries: int = 5000,
    p_init: float = P_INIT,
    rescale_schedule: bool = False,
    reference_quirks: bool = True,
    shared_square: bool = False,
    skip_repeats: bool = True,
    draws: Draws | None = None,
) -> Square:
    """Makes one run of Square in the stepping protocol of `protocol`.

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
      skip_repeats: pass over linf proposals that the best point is known to refuse (`refusals`). Changes no
        result; never with `shared_square`.
      draws: another source of random numbers.

    Raises:
      ValueError: for a setting out of range.
    """
    check_choice("norm", norm, norms.BALLS)
    check_count("queries", queries)
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init = {p_init}: must be above 0 and at most 1")
    draws = draws or (SHARED_DRAWS if shared_square else EXAMPLE_DRAWS)
    skip = skip_repeats and not shared_square
    return Square(norm, queries, p_init, rescale_schedule, reference_quirks, skip, draws)
