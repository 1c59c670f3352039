"""A compiled function on any number of examples, some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

SIZE = 128  # examples a call; changes no result


def mapped(function: Callable[..., Any], *arrays: Any, size: int = SIZE) -> Any:
    """function(*arrays) for at most `size` rows at once, its results joined along their first axis, as NumPy arrays.

    A short last batch repeats row 0, so that all calls share one program.
    """
    count = len(arrays[0])
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + min(size, count))
        rows[rows >= count] = 0
        parts.append(jax.tree.map(np.asarray, function(*(array[rows] for array in arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
