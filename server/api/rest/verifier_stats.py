"""`GET /v1/verifiers/{name}/stats`: what a verifier said of live answers, and whether it is stopped.

For who reads everything, and for the key that owns the name: the figures are of all keys' requests together.
"""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from server.api.auth import READ, READ_ALL, require_scope
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.backtests import find_usable
from server.api.rest.schemas import Count
from server.orchestration.breaker import Stop
from server.orchestration.verdict_figures import HOUR_S, group_by, sum_up

MOST_HOURS = 24 * 366

router = APIRouter(prefix="/v1/verifiers", tags=["verifiers"])


class VerdictFigures(BaseModel):
    """How many verdicts there were, by status, and how long those took that were really asked for.

    `verdicts` leaves out what was skipped; `abstention_rate` is a share of it. `causes` says why the verifier
    abstained. Null where there was nothing.
    """

    verdicts: int
    passed: int
    failed: int
    abstained: int
    skipped: int
    abstention_rate: float | None
    causes: dict[str, int]
    mean_ms: float | None
    slowest_ms: float | None


class HourFigures(VerdictFigures):
    """The figures of one hour, which began at `at` (Unix seconds)."""

    at: int


class StopView(BaseModel):
    """A verifier that this process asks no more until a time (Unix seconds), and why."""

    verifier: str
    cause: str
    reason: str
    since: float
    until: float


class VerifierStats(VerdictFigures):
    """The figures of the last `hours` hours, in all, by version and by the hour; hours without verdicts are left out.

    `stopped` is what the circuit breaker of the process that answers holds now.
    """

    verifier: str
    version: int | None
    hours: int
    versions: dict[str, VerdictFigures]
    series: list[HourFigures]
    stopped: list[StopView]


@router.get("/{name}/stats", dependencies=[Depends(needs(READ))])
async def show_stats(
    name: str,
    rooms: Rooms,
    key: Caller,
    *,
    hours: Annotated[int, Query(ge=1, le=MOST_HOURS)] = 24,
    version: Count | None = None,
) -> VerifierStats:
    """Show what a verifier said of live answers in the last hours, of one version or of all; a second or so old."""
    found = await find_usable(name, version, rooms, key)
    if found.owner != key.id:
        require_scope(key, READ_ALL)
    since = int(time.time() // HOUR_S) - hours + 1
    counts = await rooms.verdict_counts.list(name, version=version, since_hour=since)
    stops = [stop for stop in rooms.watch.stops(name) if version is None or stop.verifier == found.pin]
    return VerifierStats(
        verifier=name,
        version=version,
        hours=hours,
        versions={pin: VerdictFigures(**sum_up(some)) for pin, some in group_by(counts, "verifier").items()},
        series=[HourFigures(at=hour * HOUR_S, **sum_up(some)) for hour, some in group_by(counts, "hour").items()],
        stopped=[show_stop(stop) for stop in stops],
        **sum_up(counts),
    )


def show_stop(stop: Stop) -> StopView:
    """Show why a verifier is stopped."""
    return StopView(verifier=stop.verifier, cause=stop.cause, reason=stop.reason, since=stop.since, until=stop.until)
