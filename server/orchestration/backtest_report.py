"""What a backtest found: how often a version agrees with what was said then, flips, abstains, and differs from itself.

Filled by `server.orchestration.backtest`, one judged attempt after the other, in any order. Its size is bounded
whatever the number of attempts, except for one duration a verdict.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from server.domain import LoggedVerdict
from server.orchestration.shares import wilson
from server.store.logged_answers import LoggedId
from verifiers.base import Status

MOST_FLIPS = 50
MOST_FLAKES = 10
MAX_REASON_CHARS = 500

_JUDGED = (Status.PASSED, Status.FAILED)


@dataclass(slots=True)
class _Newest:
    """The newest of some examples, bounded."""

    most: int
    count: int = 0
    kept: list[tuple[tuple[str, int], dict[str, Any]]] = field(default_factory=list)

    def add(self, attempt: LoggedId, example: dict[str, Any]) -> None:
        self.count += 1
        entry = ((attempt.episode_id, attempt.number), example)
        (heapq.heappush if len(self.kept) < self.most else heapq.heappushpop)(self.kept, entry)

    def list(self) -> list[dict[str, Any]]:
        return [
            {"episode_id": episode_id, "attempt": number, "url": f"/v1/episodes/{episode_id}", **example}
            for (episode_id, number), example in sorted(self.kept, reverse=True)
        ]


@dataclass(slots=True)
class Report:
    """The figures so far."""

    passed_over: Counter[str] = field(default_factory=Counter)
    _statuses: Counter[str] = field(default_factory=Counter)
    _causes: Counter[str] = field(default_factory=Counter)
    _not_compared: Counter[str] = field(default_factory=Counter)
    _turns: Counter[str] = field(default_factory=Counter)
    _agreed: int = 0
    _flips: _Newest = field(default_factory=lambda: _Newest(MOST_FLIPS))
    _flakes: _Newest = field(default_factory=lambda: _Newest(MOST_FLAKES))
    _took_ms: list[float] = field(default_factory=list)

    def add(self, attempt: LoggedId, old: LoggedVerdict | None, first: LoggedVerdict, again: LoggedVerdict) -> None:
        """Take the verdicts of the same version on the same attempt, twice, and the logged one."""
        self._statuses[str(first.status)] += 1
        if first.status == Status.ABSTAINED:
            self._causes[str(first.cause)] += 1
        self._took_ms += [one.duration_ms for one in (first, again) if one.status != Status.SKIPPED]
        if first.status != again.status:
            self._flakes.add(attempt, {"verdicts": [_show(first), _show(again)]})
        self._compare(attempt, old, first)

    def render(self) -> dict[str, Any]:
        """Render everything as JSON. Shares are null where there is nothing to take a share of."""
        n, compared = self._statuses.total(), self._agreed + self._flips.count
        judging = n - self._statuses[Status.SKIPPED]
        abstained = self._statuses[Status.ABSTAINED]
        return {
            "n": n,
            "verdicts": {status.value: self._statuses[status] for status in Status},
            "agreement": {"compared": compared, "agreed": self._agreed, **_share(self._agreed, compared)},
            "flips": {"count": self._flips.count, **self._turns, "newest": self._flips.list()},
            "not_compared": dict(self._not_compared),
            "abstentions": {"count": abstained, **_share(abstained, judging), "causes": dict(self._causes)},
            "flakes": {"count": self._flakes.count, **_share(self._flakes.count, n), "newest": self._flakes.list()},
            "p50_ms": _quantile(self._took_ms, 0.5),
            "p99_ms": _quantile(self._took_ms, 0.99),
            "passed_over": dict(self.passed_over),
        }

    def _compare(self, attempt: LoggedId, old: LoggedVerdict | None, new: LoggedVerdict) -> None:
        """Compare with the logged verdict, where both judged: an abstention neither agrees nor flips."""
        if old is None:
            self._not_compared["no_old_verdict"] += 1
        elif old.status not in _JUDGED:
            self._not_compared["old_did_not_judge"] += 1
        elif new.status not in _JUDGED:
            self._not_compared["new_did_not_judge"] += 1
        elif old.status == new.status:
            self._agreed += 1
        else:
            self._turns[f"{old.status}_to_{new.status}"] += 1
            self._flips.add(attempt, {"old": {"verifier": old.verifier, **_show(old)}, "new": _show(new)})


def _show(verdict: LoggedVerdict) -> dict[str, Any]:
    shown = {"status": str(verdict.status), "score": verdict.score, "reason": verdict.reason[:MAX_REASON_CHARS]}
    return {**shown, "cause": str(verdict.cause)} if verdict.cause else shown


def _share(count: int, total: int) -> dict[str, Any]:
    """Give a share with its 95 % Wilson interval."""
    if not total:
        return {"share": None, "low": None, "high": None}
    low, high = wilson(count, total)
    return {"share": count / total, "low": low, "high": high}


def _quantile(values: list[float], at: float) -> float | None:
    """Give the smallest value that at least this share of all do not exceed."""
    if not values:
        return None
    rank = -int(-at * len(values) // 1)  # rounded up
    return sorted(values)[max(0, rank - 1)]
