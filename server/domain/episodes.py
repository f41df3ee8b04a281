"""An episode: what a client asked, all that was done to answer it, and what was said of it later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.domain.names import BASE_ADAPTER
from server.domain.tasks import RetryPolicy, VerifyMode
from server.domain.verifiers import Binding, BindingMode


class Outcome(StrEnum):
    """How an episode ended."""

    PASSED = "passed"  # attempt 1 passed
    RECOVERED = "recovered"  # a later attempt passed
    EXHAUSTED = "exhausted"  # the last attempt that the budgets allowed failed
    UNVERIFIED = "unverified"  # abstained, skipped, or there was no verifier
    CANCELLED = "cancelled"  # the client went away
    ERRORED = "errored"  # the engine or the server broke


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
    feedback: tuple[Feedback, ...] = ()  # what arrived later, by source; the episode log never writes it

    @property
    def usage(self) -> Usage:
        """All attempts and reflections together."""
        if len(self.attempts) == 1 and not self.reflections:
            return self.attempts[0].usage
        return sum((part.usage for part in (*self.attempts, *self.reflections)), Usage())
