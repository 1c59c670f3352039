"""Noise that a model draws for a batch, where a program sees a part of the batch only."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from robust_vit.typing import Array

# (first row, rows here, rows in all), of the examples that the program at hand sees
_ROWS: contextvars.ContextVar[tuple[Array | int, int, int] | None] = contextvars.ContextVar("rows", default=None)


@contextlib.contextmanager
def rows(first: Array | int, count: int, total: int) -> Iterator[None]:
    """While a function is traced: its batch is the rows [first, first + count) of one of `total` examples."""
    token = _ROWS.set((first, count, total))
    try:
        yield
    finally:
        _ROWS.reset(token)


def coins(key: Array, probability: Array | float, count: int) -> Array:
    """[count] bool, one an example, true with that probability: those that the whole batch would get, of its rows here.

    A pass over several copies of the batch, one after the other, has that many times the rows.
    """
    part = _ROWS.get()
    if part is None:
        return jax.random.bernoulli(key, probability, (count,))
    first, here, total = part
    copies = count // here
    drawn = jax.random.bernoulli(key, probability, (copies * total,)).reshape(copies, total)
    return jax.lax.dynamic_slice_in_dim(drawn, first, here, axis=1).reshape(count)
