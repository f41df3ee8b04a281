"""Says how sure a gate must be at each look, so that looking several times makes no error more likely.

Called by trainer.gate_weighing. The 5 % of error are spent over the looks as Lan and DeMets do ("Discrete sequential
boundaries for clinical trials", Biometrika 70, 1983) with a spending function of the O'Brien-Fleming type: next to
nothing early, almost everything at the last look. The boundaries come from the recursion of Armitage, McPherson and
Rowe (JRSS A 132, 1969) on a grid. Both sides are bounded alike.

A look's time is the share of the information that the last look will have. Boundaries depend on it alone and not on
what was seen of the difference, so that the number of looks may change on the way.
"""

import math
from functools import lru_cache

import numpy as np

from server.orchestration.gate_plan import CONFIDENCE, NORMAL

_POINTS = 401
_DIGITS = 2  # of a look's time: boundaries are found once for each hundredth
_erfc = np.vectorize(math.erfc, otypes=[float])


def spend(time: float) -> float:
    """Return the probability of error that each side may have spent by this time in (0, 1]."""
    side = (1 - CONFIDENCE) / 2
    return 2 * (1 - NORMAL.cdf(NORMAL.inv_cdf(1 - side / 2) / math.sqrt(time)))


def find_levels(times: tuple[float, ...]) -> tuple[float, ...]:
    """Find the level of confidence that the interval of each look needs; `times` grow, and the last look's is 1."""
    return _find_levels(tuple(time if time >= 1 else min(0.99, max(0.01, round(time, _DIGITS))) for time in times))


@lru_cache(maxsize=4096)
def _find_levels(times: tuple[float, ...]) -> tuple[float, ...]:
    levels: list[float] = []
    points, density, before, spent = np.zeros(1), np.ones(1), 0.0, 0.0
    for time in times:
        step = time - before
        if step <= 0:  # within a hundredth of the look before: nothing more may be spent yet
            levels.append(1.0)
            continue
        bound = _find_bound(points, density, step, time, spend(time) - spent)
        levels.append(1 - 2 * (1 - NORMAL.cdf(bound / math.sqrt(time))))
        grid = np.linspace(-bound, bound, _POINTS)
        kernel = np.exp(-((grid[:, None] - points[None, :]) ** 2) / (2 * step)) / math.sqrt(2 * math.pi * step)
        points, density = grid, (kernel @ density) * (grid[1] - grid[0])  # a sum of masses, one for each point
        before, spent = time, spend(time)
    return tuple(levels)


def _find_bound(points: np.ndarray, density: np.ndarray, step: float, time: float, target: float) -> float:
    """Find where the upper tail of those that went on holds `target`, on the scale of the running sum."""
    low, high = 0.0, 9.0 * math.sqrt(time)
    for _ in range(45):
        middle = (low + high) / 2
        tail = float(density @ (0.5 * _erfc((middle - points) / math.sqrt(2 * step))))
        low, high = (middle, high) if tail > target else (low, middle)
    return high
