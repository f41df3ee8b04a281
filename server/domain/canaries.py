"""A canary: how a task tries a candidate on live traffic, and what was seen of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class CanaryPolicy:
    """How a task tries a candidate on live traffic before it becomes champion.

    `share`, in (0, 1), is the share of conversations that begin with it; `widen` those that follow, rising, the last of
    them 1: champion. It widens once `min_episodes` of its verified episodes at the present share are in and it is not
    worse by `margin` (in [0, 1), of the share of problems solved); after `max_hours` it becomes champion without that,
    unless it was forced. It is rolled back where its answers, its errors or its latency are worse: `latency_ratio`,
    above 1, bounds its 95th percentile, as a multiple of the champion's before (None: no bound).
    """

    share: float = 0.1
    widen: tuple[float, ...] = (0.5, 1.0)
    min_episodes: int = 50
    max_hours: float = 72.0
    margin: float = 0.05
    latency_ratio: float | None = 1.5


class CanaryState(StrEnum):
    """How far a canary is, or how it ended."""

    RUNNING = "running"
    PROMOTED = "promoted"  # it is champion
    ROLLED_BACK = "rolled_back"  # it was worse, or a human ended it
    SUPERSEDED = "superseded"  # the champion moved meanwhile


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """From when on a canary had which share of its task's conversations."""

    share: float
    since: float


@dataclass(frozen=True, slots=True)
class CanaryCell:
    """What one of the two, canary or champion, did in one hour of one step of a canary, each conversation counted once.

    `broken` are the episodes that errored or whose client left; `slow` those of the rest that took longer than the
    bound.
    `passed` and `failed` are by the second try, of those that were verified.
    """

    step: int  # from 0
    hour: int
    canary: bool
    episodes: int = 0
    broken: int = 0
    slow: int = 0
    passed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Canary:
    """An adapter on trial on live traffic. `champion` is what it is compared with ("" = the base model).

    `steps` are the shares that it had so far, the present one last. `generation` is the task's since the last of its
    moves: whoever moves it on has to name it. `baseline` is what the champion did before, `report` what was seen since.
    """

    id: str
    task: str
    adapter: str
    champion: str
    policy: CanaryPolicy
    steps: tuple[CanaryStep, ...] = ()
    generation: int = 0
    state: CanaryState = CanaryState.RUNNING
    reason: str = ""
    baseline: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    forced: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0
