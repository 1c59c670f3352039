"""The window sizes of Square, and the bumps it puts into l2 and l1 windows: constants of a run."""

import functools
import math

import numpy as np

HALVINGS = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # after these queries (of 10,000) the fraction of changed pixels halves
_POWER = {"l2": 2, "l1": 4}  # how fast the bump of an l2 or l1 window falls from its centre


@functools.lru_cache
def sizes(
    height: int, width: int, queries: int, p_init: float, rescale_schedule: bool, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the window sides [L] and, for every query, which of them it uses [queries].

    The side is the root of the fraction of pixels to change; in l2 and l1 it is odd and at least 3.
    """
    query = np.arange(queries)
    at = (query / queries * 10000).astype(int) if rescale_schedule else query
    levels = (at[:, None] > np.asarray(HALVINGS)[None, :]).sum(axis=1).astype(np.int32)
    sides = []
    for level in range(len(HALVINGS) + 1):
        side = int(round(math.sqrt(p_init / 2**level * height * width)))
        if norm == "linf":
            side = max(side, 1)
        else:
            side = max(side, 3)
            side += side % 2 == 0
        sides.append(min(side, height, width))
    return np.asarray(sides[: levels.max() + 1], np.int32), levels


def _lobe(height: int, width: int, norm: str) -> np.ndarray:
    """A bump on [height,width]: the sum over k of (k + 1)^-power on centred windows of side 2 k + 1, of unit norm."""
    rows = np.abs(np.arange(height) - height // 2)[:, None]
    columns = np.abs(np.arange(width) - width // 2)[None, :]
    largest = max(height // 2, width // 2) + 1
    terms = np.arange(1, largest + 1, dtype=np.float32) ** np.float32(-_POWER[norm])
    nearest = np.maximum(rows, columns)
    lobe = np.cumsum(terms[::-1])[::-1][np.minimum(nearest, largest - 1)].astype(np.float32)
    size = np.sqrt((lobe**2).sum()) if norm == "l2" else np.abs(lobe).sum()
    return lobe / size if lobe.size else lobe


@functools.lru_cache
def bump(side: int, norm: str) -> np.ndarray:
    """Two lobes of opposite sign, one above the other, on [side,side], of unit norm."""
    pattern = np.concatenate([_lobe(side // 2, side, norm), -_lobe(side - side // 2, side, norm)])
    size = np.sqrt((pattern**2).sum()) if norm == "l2" else np.abs(pattern).sum()
    return pattern / size


@functools.lru_cache
def bumps(sides: tuple[int, ...], norm: str) -> np.ndarray:
    """Returns the bumps of all window sides, [L,S,S] with the largest side S; smaller ones fill the upper left
    corner.
    """
    table = np.zeros((len(sides), max(sides), max(sides)), np.float32)
    for level, side in enumerate(sides):
        table[level, :side, :side] = bump(side, norm)
    return table
