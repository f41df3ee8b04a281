"""A round, its steps and rollouts, and the workers that train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.domain.names import BASE_ADAPTER, DEFAULT_POOL


class RoundState(StrEnum):
    """How far a round is, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    PROMOTED = "promoted"
    INCONCLUSIVE = "inconclusive"  # kept: the next round goes on from its adapter
    REGRESSED = "regressed"  # thrown away
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self not in (RoundState.QUEUED, RoundState.RUNNING)


@dataclass(frozen=True, slots=True)
class Round:
    """One round: many steps, then the gate. The row in the database is the truth; the queue is only the doorbell.

    `epoch` is the fencing number: it grows with every lease taken, and every write of the trainer carries it.
    `place` is that in the queue of its pool, from 1; 0 unless it is queued.
    """

    id: str
    task: str
    number: int  # from 1 within the task
    state: RoundState = RoundState.QUEUED
    phase: str = ""  # selecting | training | gate | promoting
    reason: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""  # the candidate it made
    parent: str = BASE_ADAPTER
    epoch: int = 0
    owner: str = ""
    heartbeat_at: float = 0.0
    cancel_requested: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)  # the gate's figures
    steps_done: int = 0
    steps_total: int = 0
    created_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    pool: str = DEFAULT_POOL
    place: int = field(default=0, compare=False)  # as it was when it was read


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of a round and its figures (reward, loss, kl, groups kept, tokens, seconds, ...)."""

    round_id: str
    number: int
    metrics: Mapping[str, float]
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One member of a group as it was sampled: kept before it is trained on, so that a round can be begun again.

    `group` counts from 0 within a step; `prompt_ids` (P,), `token_ids` (T,) and `logprobs` (T,), the last rounded to
    float32, are the reflection's. `retry` is the assistant message that followed it (None: there was none), `verdict`
    what the verifiers said of that, `reward` None where no verdict was reached. `tokens` counts what both took,
    prompts included. `logged`: written while serving, not sampled by the round. `first_prompt_ids`, the request as
    the engine was first asked it, and `retry_ids` (the tokens of the retry) are there where the round distils
    retries.
    """

    group: int
    episode_id: str
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    reward: float | None
    verdict: str = ""
    retry: Mapping[str, Any] | None = None
    adapter: str = BASE_ADAPTER
    tokens: int = 0
    logged: bool = False
    first_prompt_ids: Sequence[int] = ()
    retry_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class TrainerPresence:
    """What one worker says of itself. `preflight` is what it found when it looked last: `checks`, `at`."""

    id: str
    pool: str
    preflight: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    seen_at: float = 0.0
