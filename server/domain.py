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

DEFAULT_POOL = "default"
"""The pool whose workers train where nothing else is said."""


def new_id(prefix: str) -> str:
    """Make an id that sorts by time of making, to a quarter of a microsecond.

    `<prefix>_<12 hex of milliseconds><3 hex of 1/4096 milliseconds><13 random hex>`.
    """
    ms, ns = divmod(time.time_ns(), 1_000_000)
    return f"{prefix}_{ms:012x}{ns * 4096 // 1_000_000:03x}{os.urandom(7).hex()[1:]}"


class Outcome(StrEnum):
    """How an episode ended."""

    PASSED = "passed"  # attempt 1 passed
    RECOVERED = "recovered"  # a later attempt passed
    EXHAUSTED = "exhausted"  # the last attempt that the budgets allowed failed
    UNVERIFIED = "unverified"  # abstained, skipped, or there was no verifier
    CANCELLED = "cancelled"  # the client went away
    ERRORED = "errored"  # the engine or the server broke


class BindingMode(StrEnum):
    """What one verifier's verdict is for, among those of a request."""

    ENFORCE = "enforce"  # it counts
    OBSERVE = "observe"  # it is logged and shown beside the others, and never counts: a version on trial
    AUDIT = "audit"  # likewise, and clients are never shown it: it measures whether the others are being gamed


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
    mode: BindingMode = BindingMode.ENFORCE

    @property
    def pin(self) -> str:
        """`name@version`, or the kind of an inline verifier."""
        return f"{self.name}@{self.version}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class TaskVerifier:
    """A task's or a key's own pin of a verifier: `name@version`, default arguments, when it applies, what it is for."""

    name: str
    version: int
    args: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, Any] = field(default_factory=dict)
    mode: BindingMode = BindingMode.ENFORCE


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


@dataclass(frozen=True, slots=True)
class LoggedVerdict:
    """One verifier's verdict on one attempt, as it is logged and shown. `cause` is why it abstained, else ""."""

    verifier: str  # the pin
    status: str
    score: float
    reason: str = ""
    safe_for_model: bool = False
    stdout: str = ""
    duration_ms: float = 0.0
    cause: str = ""
    mode: BindingMode = BindingMode.ENFORCE


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
    opted out of training, `trains` is false and no round ever selects the episode. While its task
    has a canary, `conversation` is what was drawn for it (`server.orchestration.selection`); else "".
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
    conversation: str = ""
    feedback: "tuple[Feedback, ...]" = ()  # what arrived later, by source; the episode log never writes it

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
    """A LoRA adapter, immutable, `<task>@<round number>`. `files` maps each file's name to its SHA-256.

    `verifiers` are the pins whose verdicts it was trained on; `flags` say what was found out about it afterwards, for
    example that one of them was revoked. `fingerprints` say what it was made for, as
    `server.orchestration.fingerprints` names it; empty for adapters from before there were any. `decided_by` and
    `comment` are whose hand last moved it, and why: "" where no human did.
    """

    name: str
    task: str
    path: str
    files: Mapping[str, str]
    status: AdapterStatus = AdapterStatus.CANDIDATE
    round_id: str = ""
    parent: str = BASE_ADAPTER
    forced: bool = False
    created_at: float = 0.0
    verifiers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    decided_by: str = ""
    comment: str = ""


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
class Panel:
    """One version of a task's frozen panel: held-out problems that never change. `sha256` is of all of them."""

    task: str
    version: int
    size: int
    sha256: str
    reason: str = ""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PanelResult:
    """What came of one problem of a panel under one adapter ("" = the base model).

    `conditions` is the fingerprint of what answered beside the adapter; results compare where they are equal. `judged`
    is false where the verifiers could not judge.
    """

    adapter: str
    number: int
    conditions: str
    judged: bool
    first_passed: bool
    second_passed: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class TrainerPresence:
    """What one worker says of itself. `preflight` is what it found when it looked last: `checks`, `at`."""

    id: str
    pool: str
    preflight: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class VerifierVersion:
    """One immutable version of a registered verifier. `owner` is the key that registered its name ("": an operator).

    An archived version is bound to nothing new. A revoked one judges nothing any more, and what it judged never trains.
    """

    name: str
    version: int
    kind: str
    config: Mapping[str, Any]
    description: str = ""
    owner: str = ""
    created_at: float = 0.0
    archived_at: float | None = None
    revoked_at: float | None = None
    revoked_reason: str = ""

    @property
    def pin(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Feedback:
    """A verdict on an episode that arrives later; one for each `source` that the client names.

    `trains` says whether a round heeds it: the key that sent it was trusted by the task when it was sent.
    """

    episode_id: str
    source: str
    key: str
    passed: bool
    score: float | None = None  # in [0, 1]
    comment: str = ""
    trains: bool = False
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class JudgedAttempt:
    """A logged attempt that passed or failed, as far as an audit looks at it.

    `question` tells apart what was asked: by the arguments that verifiers were given, else by the whole problem. `text`
    is a digest of the answer, case and white space aside, and `length` its characters. All three are empty where the
    content is not in the log. `audits` has what the verifiers that only measure said, by pin, where they passed or
    failed it.
    """

    episode_id: str
    passed: bool
    question: str = ""
    text: str = ""
    length: int = 0
    audits: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was served before and after an adapter became champion: episodes that were judged, and the solved of them.

    Solved by the second try at most. `expected` is the gain that the gate measured, with its standard error; both are
    0 where there is no gate's report. `examples` are solved episodes from after it.
    """

    adapter: str
    at: float
    expected: float = 0.0
    error: float = 0.0
    before: int = 0
    before_solved: int = 0
    after: int = 0
    after_solved: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """How often one verifier said one thing within one hour, over all processes; `cause` is that of an abstention."""

    verifier: str  # the pin
    hour: int  # hours since the Unix epoch
    status: str
    cause: str
    count: int
    total_ms: float
    slowest_ms: float


class BacktestState(StrEnum):
    """How far a backtest is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Backtest:
    """A version of a verifier judging logged attempts again. `report` is empty until it is done.

    `options` is what was asked: which attempts, how many. `owner` is the process that runs it.
    """

    id: str
    verifier: str
    version: int
    key: str
    options: Mapping[str, Any] = field(default_factory=dict)
    state: BacktestState = BacktestState.RUNNING
    done: int = 0
    total: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    owner: str = ""
    heartbeat_at: float = 0.0
    created_at: float = 0.0
    ended_at: float = 0.0


class CheckState(StrEnum):
    """What came of a check."""

    OK = "ok"
    WARNED = "warned"  # it runs, and worse than it could
    FAILED = "failed"
    SKIPPED = "skipped"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a preflight looked at. `remedy` is the flag, setting or mount to change; "" where all is well.

    `where` says whose view it is: "" ours, else the worker's that looked.
    """

    name: str
    state: CheckState
    says: str
    remedy: str = ""
    where: str = ""


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
    the key asks may be trained on. `verifiers` check the key's requests where neither the request nor the task names
    any. `last_used_at` is up to a minute old.
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
    verifiers: tuple[TaskVerifier, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit log."""

    kind: str
    subject: str
    actor: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
