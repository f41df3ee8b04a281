"""What the gate weighs with: its decisions, and the interval of a paired difference. Used by the gate's modules.

An interval comes from resampling problems (percentile bootstrap, seeded) and is nowhere narrower than Student's t
makes it: at the few problems and the high levels of early looks a bootstrap's tails are too short.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from server.orchestration.gate_plan import CONFIDENCE, NORMAL
from trainer.settings import TrainerSettings

_FEW_VALUES = 64
"""Differences that take so few values are resampled by their counts, which is the same and much faster."""


class Decision(StrEnum):
    """What the gate says."""

    PROMOTED = "promoted"
    INCONCLUSIVE = "inconclusive"
    REGRESSED = "regressed"


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of accuracies with its interval and standard error."""

    difference: float
    low: float
    high: float
    error: float


def measure_difference(
    before: np.ndarray, after: np.ndarray, settings: TrainerSettings, *, level: float = CONFIDENCE, flip: float = 0.0
) -> Interval:
    """Estimate the paired difference of two accuracies (N,) with its interval of `level` from resampling problems.

    `flip` is what one more sample could have changed on one problem: where hardly any differ, the few that do say less
    than their own variance has it, and one flip is added to that (as in Agresti and Min, Biostatistics 6, 2005).
    """
    n = len(before)
    if n < 2:
        return Interval(float(after[0] - before[0]) if n else 0.0, -1.0, 1.0, 1.0)
    differences = np.round(after - before, 9)
    mean = float(differences.mean())
    error = math.sqrt((float(((differences - mean) ** 2).sum()) + flip**2) / (n * (n - 1)))
    reach = student_quantile((1 + level) / 2, n - 1) * error
    low, high = _resample(differences, level, settings)
    return Interval(mean, min(low, mean - reach), max(high, mean + reach), error)


def _resample(differences: np.ndarray, level: float, settings: TrainerSettings) -> tuple[float, float]:
    n, rng = len(differences), np.random.default_rng(settings.seed)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= _FEW_VALUES:
        means = rng.multinomial(n, counts / n, size=settings.bootstrap_draws) @ values / n
    else:
        means = differences[rng.integers(0, n, size=(settings.bootstrap_draws, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4096)
def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t for a probability in (0.5, 1): Hill, CACM algorithm 396, 1970."""
    tail, n = 2 * (1 - probability), freedom
    if tail <= 0:
        return math.inf
    if n == 1:
        return math.cos(tail * math.pi / 2) / math.sin(tail * math.pi / 2)
    if n == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tail) ** (2 / n)
    if y > 0.05 + a:
        x = NORMAL.inv_cdf(tail / 2)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2
        ) + 1 / y
    return math.sqrt(n * y)
