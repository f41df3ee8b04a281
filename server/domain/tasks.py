"""A task and its policies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.domain.canaries import CanaryPolicy
from server.domain.names import BASE_ADAPTER, DEFAULT_POOL
from server.domain.verifiers import TaskVerifier


class VerifyMode(StrEnum):
    """What is done with verdicts."""

    OFF = "off"
    OBSERVE = "observe"  # check and log, never retry
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Budgets of one episode and what to answer when they are used up."""

    max_retries: int = 1
    max_seconds: float | None = None
    max_total_tokens: int | None = None
    reflection_max_tokens: int = 512
    show: str = "verdict"  # or "reason": what of a verdict the model is shown
    on_failure: str = "return_last"  # or "error": 422 verification_failed
    on_abstain: str = "return"  # or "error"


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """When a task's rounds start by themselves, and how they train. What is None comes from the trainer's settings.

    `train_on_new_failures`: a round starts once so many failures were logged since the last one (None: never by
    itself). `interval_s`: a round starts so long after the last one, if there are failures (None: never).
    `options`: overrides of the trainer's settings, by their names there (`steps`, `learning_rate`, ...).
    `trust_feedback`: the ids of the keys whose feedback a round heeds. `audit_off`: the signals of the audit that mean
    nothing for this task. `pool`: whose workers train it. `canary`: how a candidate is tried on live traffic (None: it
    is not, what passes the gate becomes champion at once).
    """

    train_on_new_failures: int | None = None
    interval_s: float | None = None
    promotion: str = "auto"  # or "approve": a human promotes
    options: Mapping[str, Any] = field(default_factory=dict)
    trust_feedback: tuple[str, ...] = ()
    audit_off: tuple[str, ...] = ()
    pool: str = DEFAULT_POOL
    canary: CanaryPolicy | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A named line of work. `champion` is the adapter that serves it ("" = the base model).

    `canary` is the adapter that is tried on `canary_share`, in (0, 1), of its conversations ("" = none). `generation`
    counts what changes who serves: flips of the champion pointer, and a canary's begin, widening and end. It only
    grows.
    """

    name: str
    verifiers: tuple[TaskVerifier, ...] = ()
    verify: VerifyMode = VerifyMode.ENFORCE
    retry: RetryPolicy = RetryPolicy()
    training: TrainingPolicy = TrainingPolicy()
    prompts: Mapping[str, str] = field(default_factory=dict)  # `reflect`, `retry`: the wording
    unknown_fields: str = "refuse"  # or "ignore": what becomes of request fields that nobody knows
    champion: str = BASE_ADAPTER
    generation: int = 0
    created_at: float = 0.0
    canary: str = BASE_ADAPTER
    canary_share: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How far a task is from its next round and from a gate that may promote.

    `held_out` counts different problems that a gate would ask, up to `held_out_wanted`; below `held_out_least` nothing
    is promoted by itself. `new_failures` are those since the last round began, up to a bound. `says` is it in words.
    """

    held_out: int
    held_out_wanted: int
    held_out_least: int
    new_failures: int
    failures_wanted: int | None
    says: str
