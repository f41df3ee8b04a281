"""The bodies that the REST routes take, and the envelopes that they answer with. Unknown fields are refused by name.

What is answered are mostly the domain's own dataclasses.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from server.domain import KeyLimits, TrainingPolicy, VerifyMode

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What tasks and verifiers may be called: nothing that `name@version` or `base:adapter` would be mistaken for."""

VERSION = re.compile(r"[1-9][0-9]{0,8}")

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]
Json = dict[str, Any]
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
    """A verifier of a task; without a version, the latest one now."""

    name: Name
    version: Count | None = None
    args: Json = Field(default_factory=dict)
    when: Json = Field(default_factory=dict)


class RetryBody(Body):
    """A task's retry policy; what is left out stays, or is the default."""

    max_retries: int | None = Field(None, ge=0, le=2**31 - 1)
    max_seconds: float | None = Field(None, gt=0)
    max_total_tokens: Count | None = None
    reflection_max_tokens: Count | None = None
    show: Literal["verdict", "reason"] | None = None
    on_failure: Literal["return_last", "error"] | None = None
    on_abstain: Literal["return", "error"] | None = None


class TrainingBody(Body):
    """When a task's rounds start by themselves and how they train; what is left out stays, or is the default."""

    train_on_new_failures: Count | None = None
    interval_s: float | None = Field(None, gt=0)
    promotion: Literal["auto", "approve"] = TrainingPolicy().promotion  # type: ignore[assignment]
    options: Json = Field(default_factory=dict)


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


class TaskBody(TaskChanges):
    """A new task."""

    name: Name


class VerifierBody(Body):
    """A new version of a verifier; the first one makes it."""

    name: Name
    kind: str
    config: Json = Field(default_factory=dict)
    description: str = ""


class VerifierView(BaseModel):
    """A version of a verifier; `config` is null where the key may use it but not read what it is made of."""

    name: str
    version: int
    kind: str
    config: Json | None
    description: str
    owner: str
    created_at: float


class VerifierTrial(Body):
    """An answer to try a verifier on: text, or an OpenAI assistant message."""

    answer: str | Json
    version: Count | None = None
    messages: list[Json] = Field(default_factory=list)
    tools: list[Json] = Field(default_factory=list)
    args: Json = Field(default_factory=dict)
    when: Json = Field(default_factory=dict)


class RoundBody(Body):
    """A round to run; `options` override the trainer's settings."""

    options: Json = Field(default_factory=dict)


class PromotionBody(Body):
    """A promotion by hand."""

    forced: bool = True


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
