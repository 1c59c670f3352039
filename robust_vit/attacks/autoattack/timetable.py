"""When APGD reconsiders its step size: every run's timetable, computed before anything is compiled."""

import functools
import math
from typing import NamedTuple

import numpy as np

RHO = 0.75  # a window in which at most this fraction of the steps raised the loss halves the step size


class Timetable(NamedTuple):
    """What happens at each tick of a run; every field is an array [ticks], indexed by a slot's own tick."""

    start: np.ndarray  # bool: the tick evaluates the first point of a stage
    check: np.ndarray  # bool: the step size is reconsidered after this tick
    limit: np.ndarray  # at a check: this many increases of the loss are too few
    end: np.ndarray  # bool: last tick of a stage; the next one starts from the best point
    final: np.ndarray  # bool: the tick belongs to the last stage, the only one whose successes count
    radius: np.ndarray  # the stage's radius in units of epsilon
    next_radius: np.ndarray  # radius of the tick that follows


@functools.lru_cache
def timetable(norm: str, steps: int, large_radii: bool = False, rho: float = RHO) -> Timetable:
    """Precomputes the checks of a run; for 100 steps in linf and l2 they follow steps 22, 41, 57, 70, 80, 87, 93,
    99.

    With `large_radii` the run has three stages of radius 3, 2 and 1 epsilon, of 30 %, 30 % and 40 % of the steps.
    """
    first = math.ceil(0.3 * steps)
    stages = [(3.0, first), (2.0, first), (1.0, steps - 2 * first)] if large_radii else [(1.0, steps)]
    stages = [stage for stage in stages if stage[1] > 0]
    parts = []
    for number, (radius, count) in enumerate(stages):
        check, limit = _checks(norm, count, rho)
        tick = np.arange(count + 1)
        final = np.full(count + 1, number == len(stages) - 1)
        parts.append((tick == 0, check, limit, tick == count, final, np.full(count + 1, radius, np.float32)))
    columns = [np.concatenate(column) for column in zip(*parts)]
    return Timetable(*columns, np.append(columns[-1][1:], np.float32(1.0)))


def _checks(norm: str, steps: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (check, limit) of one stage, [steps + 1]; entry 0 is the start, entry i follows step i."""
    check, limit = np.zeros(steps + 1, bool), np.zeros(steps + 1, np.float32)
    window, shorter, shortest = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    if norm == "l1":
        window, shorter, shortest = max(int(0.04 * steps), 1), 0, 1
    at = window
    while at <= steps:
        check[at], limit[at] = True, rho * window
        window = max(window - shorter, shortest)
        at += window
    return check, limit
