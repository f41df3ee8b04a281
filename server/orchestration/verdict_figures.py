"""Sums counts of verdicts up, for the API and the command line. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from server.domain import VerdictCount
from verifiers.base import Cause, Status

HOUR_S = 3600


def sum_up(counts: Iterable[VerdictCount]) -> dict[str, Any]:
    """Sum counts up: verdicts without those skipped, statuses, causes, and times of what was really asked."""
    statuses, causes, asked, total_ms, slowest_ms = Counter(), Counter(), 0, 0.0, 0.0
    for one in counts:
        statuses[one.status] += one.count
        if one.cause:
            causes[one.cause] += one.count
        if one.status != Status.SKIPPED and one.cause != Cause.STOPPED:
            asked, total_ms, slowest_ms = asked + one.count, total_ms + one.total_ms, max(slowest_ms, one.slowest_ms)
    verdicts = statuses.total() - statuses[Status.SKIPPED]
    return {
        "verdicts": verdicts,
        **{status.value: statuses[status] for status in Status},
        "abstention_rate": statuses[Status.ABSTAINED] / verdicts if verdicts else None,
        "causes": dict(causes),
        "mean_ms": total_ms / asked if asked else None,
        "slowest_ms": slowest_ms if asked else None,
    }


def group_by(counts: Iterable[VerdictCount], field: str) -> dict[Any, list[VerdictCount]]:
    """Group counts by one of their fields, in the order in which its values come."""
    groups: dict[Any, list[VerdictCount]] = {}
    for one in counts:
        groups.setdefault(getattr(one, field), []).append(one)
    return groups
