"""The things that the server talks about: plain dataclasses, no I/O. Every room may import this one.

Times are Unix seconds (`*_at`) or durations (`*_s`, `*_ms`). Ids are prefixed strings (`ep_...`, `rd_...`), made here.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

BASE_ADAPTER = ""
"""The name of no adapter: the plain base model."""

DEFAULT_TASK = "default"
"""The task that always exists: requests that name none are its."""


def new_id(prefix: str) -> str:
    """Make an id that sorts by time of making: `<prefix>_<12 hex of milliseconds><16 random hex>`."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


class Outcome(StrEnum):
    """How an episode ended."""

    PASSED = "passed"  # attempt 1 passed
    RECOVERED = "recovered"  # a later attempt passed
    EXHAUSTED = "exhausted"  # the last attempt that the budgets allowed failed
    UNVERIFIED = "unverified"  # abstained, skipped, or there was no verifier
    CANCELLED = "cancelled"  # the client went away
    ERRORED = "errored"  # the engine or the server broke


class VerifyMode(StrEnum):
    """What is done with verdicts."""

    OFF = "off"
    OBSERVE = "observe"  # check and log, never retry
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


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
class Binding:
    """A verifier bound to a request: pinned, with its arguments.

    `name` is empty for a verifier given inline by kind. `when` holds the conditions under which it applies
    (`answer`: `tool_call` or `text`; `last_role`: `user` or `tool`); where one fails, the verdict is `skipped`.
    """

    kind: str
    config: Mapping[str, Any]
    name: str = ""
    version: int = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pin(self) -> str:
        """`name@version`, or the kind of an inline verifier."""
        return f"{self.name}@{self.version}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class TaskVerifier:
    """A task's own pin of a verifier: `name@version`, default arguments and when it applies."""

    name: str
    version: int
    args: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """When a task's rounds start by themselves, and how they train. What is None comes from the trainer's settings.

    `train_on_new_failures`: a round starts once so many failures were logged since the last one (None: never by
    itself). `interval_s`: a round starts so long after the last one, if there are failures (None: never).
    `options`: overrides of the trainer's settings, by their names there (`steps`, `learning_rate`, ...).
    """

    train_on_new_failures: int | None = None
    interval_s: float | None = None
    promotion: str = "auto"  # or "approve": a human promotes
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A named line of work. `champion` is the adapter that serves it ("" = the base model).

    `generation` counts the flips of the champion pointer; it only grows.
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


@dataclass(frozen=True, slots=True)
class LoggedVerdict:
    """One verifier's verdict on one attempt, as it is logged and shown."""

    verifier: str  # the pin
    status: str
    score: float
    reason: str = ""
    safe_for_model: bool = False
    stdout: str = ""
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer of the model inside an episode, numbered from 1.

    `answer` is the OpenAI assistant message; `sampling` is everything that was sent to the engine beside messages.
    `status` is the verdict of all bindings together; `verdicts` are the single ones.
    """

    number: int
    answer: Mapping[str, Any]
    finish_reason: str
    usage: Usage
    status: str
    score: float = 0.0
    reason: str = ""
    verdicts: tuple[LoggedVerdict, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    engine_ms: float = 0.0
    verify_ms: float = 0.0
    logprobs: Mapping[str, Any] | None = None  # `choices[0].logprobs`, where the client asked for them


@dataclass(frozen=True, slots=True)
class Reflection:
    """What the model wrote about failed attempt `attempt`; what is trained on is exactly what was sampled.

    `token_ids` (T,) and `logprobs` (T,) are the sampled tokens, the end-of-turn token included, and their natural-log
    probabilities under `adapter` at the logged `sampling`. Both empty where the engine gave none: such a reflection
    is never trained on.
    """

    attempt: int
    text: str
    usage: Usage
    prompt_ids: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    adapter: str = BASE_ADAPTER
    template_hash: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    started_at: float = 0.0
    engine_ms: float = 0.0


@dataclass(slots=True)
class Episode:
    """One client request and all that was done to answer it.

    `request` is the client's body without what is ours; None where `store: false` kept the content out of the log.
    `adapter` is the one it began with and keeps to its end. `key` is the id of the API key that asked; where that key
    opted out of training, `trains` is false and no round ever selects the episode.
    """

    id: str
    task: str
    model: str  # as the client named it
    base_model: str
    adapter: str
    key: str
    request: Mapping[str, Any] | None
    bindings: tuple[Binding, ...]
    verify: VerifyMode
    retry: RetryPolicy
    prompts: Mapping[str, str] = field(default_factory=dict)
    store: bool = True
    outcome: Outcome = Outcome.UNVERIFIED
    attempts: list[Attempt] = field(default_factory=list)
    reflections: list[Reflection] = field(default_factory=list)
    error: str = ""
    created_at: float = 0.0
    duration_ms: float = 0.0
    split: str = ""  # "held_out" or "training", by a hash of the first user message
    trains: bool = True

    @property
    def usage(self) -> Usage:
        """All attempts and reflections together."""
        if len(self.attempts) == 1 and not self.reflections:
            return self.attempts[0].usage
        return sum((part.usage for part in (*self.attempts, *self.reflections)), Usage())


class AdapterStatus(StrEnum):
    """Where an adapter stands."""

    CANDIDATE = "candidate"
    CANARY = "canary"
    CHAMPION = "champion"
    RETIRED = "retired"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, immutable, `<task>@<round number>`. `files` maps each file's name to its SHA-256."""

    name: str
    task: str
    path: str
    files: Mapping[str, str]
    status: AdapterStatus = AdapterStatus.CANDIDATE
    round_id: str = ""
    parent: str = BASE_ADAPTER
    forced: bool = False
    created_at: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of a round and its figures (reward, loss, kl, groups kept, tokens, seconds, ...)."""

    round_id: str
    number: int
    metrics: Mapping[str, float]
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class VerifierVersion:
    """One immutable version of a registered verifier. `owner` is the key that registered its name ("": an operator)."""

    name: str
    version: int
    kind: str
    config: Mapping[str, Any]
    description: str = ""
    owner: str = ""
    created_at: float = 0.0


class Role(StrEnum):
    """What a key is for."""

    CLIENT = "client"  # asks models; sees its own episodes and the tasks and verifiers that it may use
    VIEWER = "viewer"  # sees everything and runs nothing
    APPROVER = "approver"  # a viewer who also moves adapters and cancels rounds
    ADMIN = "admin"  # everything


class Scope(StrEnum):
    """What a client key may do beyond its role; an admin key has them all, other roles have none."""

    INLINE_VERIFIERS = "inline_verifiers"  # give verifiers by kind in a request
    REGISTER_VERIFIERS = "register_verifiers"  # register verifiers whose kind has no code
    REGISTER_CODE = "register_code"  # register code as a verifier, or give it inline
    REGISTER_WEBHOOKS = "register_webhooks"  # have the server call an address of the client's
    PIN_ADAPTERS = "pin_adapters"  # name an adapter that is not the champion as the model


DEFAULT_SCOPES = (Scope.INLINE_VERIFIERS,)
"""What a new client key has where nothing else is said."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use, over all processes together; None is no limit. `docs/keys.md` has the exact meaning.

    `token_budget` counts prompt and completion tokens of everything that was run for the key within a UTC day, a UTC
    month, or in all.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    token_budget: int | None = None
    budget_period: str = "total"  # or "day", "month"

    @property
    def any(self) -> bool:
        """Whether there is any limit at all."""
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.max_concurrent is None
            and self.token_budget is None
        )


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as the server knows it: never the secret, only its SHA-256.

    `tasks` are the only ones that a client key may use and see; empty means all. `trains` is false where nothing that
    the key asks may be trained on. `last_used_at` is up to a minute old.
    """

    id: str
    name: str
    sha256: str
    role: Role = Role.CLIENT
    scopes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    trains: bool = True
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit log."""

    kind: str
    subject: str
    actor: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
