"""Intervals of the demo's figures: a share, and the difference of two shares on the same problems."""

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959964
_DRAWS = 20_000

Interval = tuple[float, float]


def share(hits: Sequence[bool]) -> float:
    """Return the share of hits. Raises ValueError for none at all."""
    if not hits:
        raise ValueError("no problem was answered")
    return sum(hits) / len(hits)


def wilson_interval(hits: Sequence[bool]) -> Interval:
    """Return the 95 % Wilson interval of a share."""
    n, observed = len(hits), share(hits)
    spread = _Z95 * math.sqrt(observed * (1 - observed) / n + _Z95**2 / (4 * n * n))
    middle = observed + _Z95**2 / (2 * n)
    scale = 1 + _Z95**2 / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def paired_gain(before: Sequence[bool], after: Sequence[bool], seed: int = 0) -> tuple[float, Interval]:
    """Return how much the share rose on the same problems, with a 95 % interval by resampling the problems.

    `before` and `after` (n,) hold one answer a problem, in the same order. Raises ValueError where they do not pair.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} answers before do not pair with {len(after)} after")
    # A problem's difference is -1, 0 or 1, so that a resample is a draw of three counts.
    differences = [int(late) - int(early) for early, late in zip(before, after, strict=True)]
    n = len(differences)
    shares = [differences.count(value) / n for value in (-1, 0, 1)]
    lost, _, won = np.random.default_rng(seed).multinomial(n, shares, size=_DRAWS).T
    low, high = np.quantile((won - lost) / n, (0.025, 0.975))
    return sum(differences) / n, (float(low), float(high))
