"""`GET /v1/overview`: how the system is and what it did in the last hours, for the dashboard's first page."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from server.api.auth import READ_ALL
from server.api.context import Rooms
from server.api.parts import Part, read_parts
from server.api.rest.access import needs
from server.domain import Outcome
from server.errors import StoreUnavailable
from server.orchestration.shares import wilson
from server.store.recent import Ended, RecentStore, Sample, Slot

DIGITS = {1: 4, 24: 5, 168: 6}
"""Hours that one can look back, and how long a slot is then: 16 ** digits milliseconds (1, 17 and 280 minutes)."""

router = APIRouter(prefix="/v1/overview", tags=["overview"], dependencies=[Depends(needs(READ_ALL))])


class Share(BaseModel):
    """`count` of `of`, with Wilson's 95 % interval of the share; `share` is null of nothing."""

    count: int
    of: int
    share: float | None
    ci95: tuple[float, float]


class TrafficView(BaseModel):
    """What was asked and what came of it. `bounded`: there were more requests, and the oldest are not counted.

    `first_try` is of the verified requests, `recovered` of those whose first attempt failed. Times and tokens are of
    the newest `sample` requests.
    """

    requests: int
    bounded: bool
    outcomes: Mapping[str, int]
    first_try: Share
    recovered: Share
    slots: Sequence[Slot]
    slot_s: float
    sample: int
    p50_ms: float | None
    p95_ms: float | None
    prompt_tokens: int
    completion_tokens: int


class TaskTraffic(BaseModel):
    """A task, who serves it, and how its part of the sample ended."""

    task: str
    champion: str
    canary: str
    canary_share: float
    sample: int
    first_try: Share
    recovered: Share


class OverviewView(BaseModel):
    """The first page. `traffic` is null while the database is away."""

    object: Literal["overview"] = "overview"
    at: float
    hours: int
    base_model: str
    parts: Sequence[Part]
    traffic: TrafficView | None
    tasks: Sequence[TaskTraffic]


@router.get("")
async def show_overview(rooms: Rooms, hours: Literal["1", "24", "168"] = "24") -> OverviewView:
    """Show how each part is, and how the requests of the last hours ended; also while the database is away."""
    back, now = int(hours), time.time()
    try:
        recent = RecentStore(rooms.database)
        ended = await recent.count_outcomes(now - back * 3600, digits=DIGITS[back])
        sample = await recent.sample(now - back * 3600)
    except StoreUnavailable:
        ended, sample = None, Sample()
    tasks = sorted(rooms.roster.snapshot.tasks.values(), key=lambda task: (-_count(sample, task.name), task.name))
    return OverviewView(
        at=now,
        hours=back,
        base_model=rooms.settings.engine.model_name,
        parts=await read_parts(rooms),
        traffic=None if ended is None else _render_traffic(ended, sample),
        tasks=[
            TaskTraffic(
                task=task.name,
                champion=task.champion,
                canary=task.canary,
                canary_share=task.canary_share,
                sample=_count(sample, task.name),
                first_try=_first_try(sample.by_task.get(task.name, {})),
                recovered=_recovered(sample.by_task.get(task.name, {})),
            )
            for task in tasks
        ],
    )


def _count(sample: Sample, task: str) -> int:
    return sum(sample.by_task.get(task, {}).values())


def _render_traffic(ended: Ended, sample: Sample) -> TrafficView:
    outcomes: Counter[str] = Counter()
    for slot in ended.slots:
        outcomes.update(slot.outcomes)
    return TrafficView(
        requests=sum(outcomes.values()),
        bounded=ended.bounded,
        outcomes=outcomes,
        first_try=_first_try(outcomes),
        recovered=_recovered(outcomes),
        slots=ended.slots,
        slot_s=ended.slot_s,
        sample=sample.size,
        p50_ms=sample.p50_ms,
        p95_ms=sample.p95_ms,
        prompt_tokens=sample.prompt_tokens,
        completion_tokens=sample.completion_tokens,
    )


def _first_try(outcomes: Mapping[str, int]) -> Share:
    passed = outcomes.get(Outcome.PASSED, 0)
    return _share(passed, passed + outcomes.get(Outcome.RECOVERED, 0) + outcomes.get(Outcome.EXHAUSTED, 0))


def _recovered(outcomes: Mapping[str, int]) -> Share:
    recovered = outcomes.get(Outcome.RECOVERED, 0)
    return _share(recovered, recovered + outcomes.get(Outcome.EXHAUSTED, 0))


def _share(count: int, of: int) -> Share:
    return Share(count=count, of=of, share=count / of if of else None, ci95=wilson(count, of))
