"""Counts what both adapters made of each problem of a gate. Pure figures; used by the gate's modules.

Arrays are shaped (N, 2): problem, adapter (the champion, then the candidate).
"""

from dataclasses import dataclass, fields

import numpy as np

from server.orchestration.gate_plan import Spread

CHAMPION, CANDIDATE = 0, 1


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over samples: of `judged` first tries, and of the `loops` that also had their retry.

    `tokens` are those of the first tries' answers; `seconds` those of the loops, from the first try to the end.
    """

    judged: np.ndarray
    first: np.ndarray
    tokens: np.ndarray
    loops: np.ndarray
    second: np.ndarray
    seconds: np.ndarray

    @classmethod
    def start(cls, problems: int) -> "Tally":
        """Begin with nothing."""
        return cls(*(np.zeros((problems, 2)) for _ in fields(cls)))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def firsts(self) -> np.ndarray:
        """List the shares (n, 2) of first tries that passed, of the problems that were judged under both."""
        return _share(self.first, self.judged)

    def second_tries(self) -> np.ndarray:
        """List the shares (n, 2) of loops that were solved by the second try, of the problems looped under both."""
        return _share(self.second, self.loops)

    def lengths(self) -> np.ndarray:
        """List the mean tokens (n, 2) of first answers, of the problems that were judged under both."""
        return _share(self.tokens, self.judged)

    def times(self) -> np.ndarray:
        """List the mean seconds (n, 2) of loops, of the problems looped under both."""
        return _share(self.seconds, self.loops)


def _share(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    kept = (counts > 0).all(axis=1)
    return sums[kept] / counts[kept]


def measure_spread(passed: np.ndarray, counts: np.ndarray, source: str) -> Spread:
    """Measure how much passing (N, 2) varies between problems and within one, from `counts` (N, 2) samples.

    Both adapters stand apart, so that a true difference of all problems alike is no spread. With single samples the
    two parts cannot be told apart, and all is taken for `within`. That is never taken for less than one problem on
    which the adapters differ: few problems that are all alike do not show that all others are.
    """
    kept = (counts > 0).all(axis=1)
    counts, shares = counts[kept], passed[kept] / counts[kept]
    n = len(shares)
    if n < 2:
        return Spread(0.0, 0.15, source)
    total = float((shares[:, CANDIDATE] - shares[:, CHAMPION]).var(ddof=1))
    several = counts > 1
    if not several.any():
        return Spread(0.0, max(total, 1 / n) / 2, source)
    unbiased = shares[several] * (1 - shares[several]) * counts[several] / (counts[several] - 1)
    within = float(unbiased.mean())
    between = max(0.0, total - within * float((1 / counts).mean(axis=0).sum()))
    return Spread(between, max(within, 0.5 / n), source)


def pair_counts(tally: Tally) -> dict[str, int]:
    """Count the problems that the candidate solves more often (`fixed`), more rarely (`broken`) or alike (`same`)."""
    pairs = tally.second_tries()
    gained = np.sign(np.round(pairs[:, CANDIDATE] - pairs[:, CHAMPION], 9))
    return {"fixed": int((gained > 0).sum()), "broken": int((gained < 0).sum()), "same": int((gained == 0).sum())}
