"""The bodies that the REST routes take, and the envelopes that they answer with. Unknown fields are refused by name.

What is answered are mostly the domain's own dataclasses.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from server.domain import Adapter, BindingMode, Canary, KeyLimits, Task, TaskProgress, TrainingPolicy, VerifyMode
from server.orchestration.audit import Signal
from server.settings import POOL_NAME

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What tasks and verifiers may be called: nothing that `name@version` or `base:adapter` would be mistaken for."""

VERSION = re.compile(r"[1-9][0-9]{0,8}")

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]
Json = dict[str, Any]
Comment = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Page(BaseModel, Generic[T]):
    """OpenAI's list envelope."""

    object: Literal["list"] = "list"
    data: Sequence[T]
    has_more: bool = False


class Body(BaseModel):
    """A body that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class TaskVerifierBody(Body):
    """A verifier of a task or a key; without a version, the latest one now. Those of a key all enforce."""

    name: Name
    version: Count | None = None
    args: Json = Field(default_factory=dict)
    when: Json = Field(default_factory=dict)
    mode: BindingMode = BindingMode.ENFORCE


class RetryBody(Body):
    """A task's retry policy; what is left out stays, or is the default."""

    max_retries: int | None = Field(None, ge=0, le=2**31 - 1)
    max_seconds: float | None = Field(None, gt=0)
    max_total_tokens: Count | None = None
    reflection_max_tokens: Count | None = None
    show: Literal["verdict", "reason"] | None = None
    on_failure: Literal["return_last", "error"] | None = None
    on_abstain: Literal["return", "error"] | None = None


class CanaryBody(Body):
    """How a candidate is tried on live traffic; what is left out stays, or is the default."""

    share: float | None = Field(None, gt=0, lt=1)  # of conversations, at first
    widen: list[float] | None = Field(None, min_length=1, max_length=10)  # the shares that follow; the last is 1
    min_episodes: Count | None = None
    max_hours: float | None = Field(None, gt=0, le=720)
    margin: float | None = Field(None, ge=0, lt=1)
    latency_ratio: float | None = Field(None, gt=1)  # null: no bound


class TrainingBody(Body):
    """When a task's rounds start by themselves and how they train; what is left out stays, or is the default."""

    train_on_new_failures: Count | None = None
    interval_s: float | None = Field(None, gt=0)
    promotion: Literal["auto", "approve"] = TrainingPolicy().promotion  # type: ignore[assignment]
    options: Json = Field(default_factory=dict)
    trust_feedback: list[str] = Field(default_factory=list, max_length=1000)  # ids of keys
    audit_off: list[Signal] = Field(default_factory=list)
    pool: str = Field(TrainingPolicy().pool, pattern=POOL_NAME)
    canary: CanaryBody | None = None  # null: none; what passes the gate is champion at once


class PromptsBody(Body):
    """The wording of a task's two prompts."""

    reflect: str | None = Field(None, min_length=1)
    retry: str | None = Field(None, min_length=1)


class TaskChanges(Body):
    """What may be changed of a task. Verifiers are replaced as a whole; of policies, only what is named."""

    verifiers: list[str | TaskVerifierBody] | None = None
    verify: VerifyMode | None = None
    retry: RetryBody | None = None
    training: TrainingBody | None = None
    prompts: PromptsBody | None = None
    unknown_fields: Literal["refuse", "ignore"] | None = None


@dataclass(frozen=True, slots=True)
class TaskView(Task):
    """A task, and how far it is; `progress` is null for keys that see only their own episodes."""

    progress: TaskProgress | None = None


class TaskBody(TaskChanges):
    """A new task."""

    name: Name


class SampleRequest(Body):
    """The request of a sample: what a verifier may see of it."""

    messages: list[Json] = Field(default_factory=list)
    tools: list[Json] = Field(default_factory=list)


class Sample(Body):
    """A request, its answer (text, or an OpenAI assistant message) and perhaps the verdict that it has to get."""

    answer: str | Json
    request: SampleRequest = Field(default_factory=SampleRequest)
    args: Json = Field(default_factory=dict)
    expect: Literal["passed", "failed"] | None = None


class VerifierBody(Body):
    """A new version of a verifier; the first one makes it. With a `sample` it is tried before it is registered."""

    name: Name
    kind: str
    config: Json = Field(default_factory=dict)
    description: str = ""
    sample: Sample | None = None


class VerifierView(BaseModel):
    """A version of a verifier; `config` is null where the key may use it but not read what it is made of."""

    name: str
    version: int
    kind: str
    config: Json | None
    description: str
    owner: str
    created_at: float
    archived_at: float | None = None
    revoked_at: float | None = None
    revoked_reason: str = ""


class TrialView(BaseModel):
    """The verdict on a sample. `cause` says why it abstained; `stdout` is what code printed, bounded."""

    status: str
    score: float
    reason: str
    duration_ms: float
    cause: str = ""
    stdout: str = ""


class RegisteredView(VerifierView):
    """A version that was registered, or was there already, and the verdict on the sample that came with it."""

    trial: TrialView | None = None


class KindView(BaseModel):
    """A kind of verifier: its configuration is part of a version, its arguments come with each request."""

    name: str
    summary: str
    config_schema: Json
    args_schema: Json


class RevocationBody(Body):
    """Why a version is revoked: for people, and for the audit log."""

    reason: str = Field(min_length=1, max_length=2000)


class VerifierTrial(Body):
    """An answer to try a verifier on: text, or an OpenAI assistant message."""

    answer: str | Json
    version: Count | None = None
    messages: list[Json] = Field(default_factory=list)
    tools: list[Json] = Field(default_factory=list)
    args: Json = Field(default_factory=dict)
    when: Json = Field(default_factory=dict)


class FeedbackBody(Body):
    """What turned out later about an episode's answer. `source` says from where: a name of the client's own."""

    episode_id: str = Field(min_length=1, max_length=100)
    passed: StrictBool
    source: Name
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    comment: str = Field("", max_length=4000)
    replace: StrictBool = False


class RoundBody(Body):
    """A round to run; `options` override the trainer's settings."""

    options: Json = Field(default_factory=dict)


class PromotionBody(Body):
    """A promotion by hand. `canary`: try it on live traffic first, or not; null: as the task's policy says."""

    comment: Comment
    force: bool = False  # also what the gate did not pass; it is marked as forced for good
    canary: bool | None = None


class RejectionBody(Body):
    """A rejection by hand."""

    comment: Comment


class RollbackBody(Body):
    """A rollback. `to` is a former champion, or `base`; null: end the canary, or go back by one champion."""

    to: str | None = None
    comment: str = Field("", max_length=2000)


@dataclass(frozen=True, slots=True)
class AdapterView(Adapter):
    """An adapter, whether its round's gate passed it, and its latest canary."""

    passed_gate: bool = False
    trial: Canary | None = None


class KeyLimitsBody(Body):
    """What a key may use; what is left out is not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    token_budget: int | None = None
    budget_period: str = KeyLimits().budget_period


class KeyBody(Body):
    """A new API key. `docs/keys.md` has the roles, the scopes and the exact meaning of the limits."""

    name: str = Field(min_length=1, max_length=200)
    role: str = "client"
    scopes: list[str] | None = None  # those that the role begins with
    tasks: list[str] = Field(default_factory=list)  # the only ones that it may use; none named: all
    limits: KeyLimitsBody = Field(default_factory=KeyLimitsBody)
    trains: bool = True
    expires_at: float | None = Field(None, allow_inf_nan=False)  # Unix seconds
    verifiers: list[str | TaskVerifierBody] = Field(default_factory=list)  # where request and task name none


class KeyChanges(Body):
    """What may be changed of a key. Lists are replaced as a whole; of limits only what is named, null for none."""

    name: str | None = Field(None, min_length=1, max_length=200)
    scopes: list[str] | None = None
    tasks: list[str] | None = None  # none named: all
    limits: KeyLimitsBody | None = None
    trains: bool | None = None
    expires_at: float | None = Field(None, allow_inf_nan=False)  # null: never
    verifiers: list[str | TaskVerifierBody] | None = None
