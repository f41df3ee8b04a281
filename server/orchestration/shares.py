"""Statistics of shares, exact where that is cheap: intervals and one-sided tests. Pure; used by the audit.

All tests return the chance of what was seen, or of more, where nothing is behind it. Counts are in the thousands.
"""

import math


def wilson(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's interval of a share (E. B. Wilson, 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def exceeds_share(count: int, total: int, share: float) -> float:
    """Test whether a true share is above `share`: the binomial's upper tail."""
    logs = [_choose(total, k) + k * math.log(share) + (total - k) * math.log1p(-share) for k in range(count, total + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def exceeds_other(count: int, total: int, before: int, before_total: int) -> float:
    """Test whether a share is above another one: Fisher's exact test, one-sided."""
    marked, everything = count + before, total + before_total
    logs = [
        _choose(marked, k) + _choose(everything - marked, total - k) - _choose(everything, total)
        for k in range(count, min(marked, total) + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def falls_below(count: int, total: int, rank: int, reference: int) -> float:
    """Test whether too many of `total` values lie below the `rank`-th smallest of `reference` ones.

    Where all come from the same source that count has a beta-binomial distribution (a, b) = (rank, reference + 1 -
    rank), whatever the source's own is; ties make the test more careful. It allows for the rank being an estimate,
    which a binomial test of the percentile does not.
    """
    a, b = rank, reference + 1 - rank
    logs = [_choose(total, k) + _beta(a + k, b + total - k) - _beta(a, b) for k in range(count, total + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def exceeds_normally(excess: float, error: float) -> float:
    """Test whether an excess with this standard error is above 0: the normal's upper tail."""
    return 0.5 * math.erfc(excess / (error * math.sqrt(2))) if error > 0 else float(excess <= 0)


def _choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def _beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
