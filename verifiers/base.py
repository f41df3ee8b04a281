"""What a verifier is and what it says. Used by the registry, the episode loop, training and the gate."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Request = Mapping[str, Any]
"""What the verifier may see of the request: `messages` and `tools`, in OpenAI's shape."""

Answer = Mapping[str, Any]
"""An OpenAI assistant message: `content` (text or None) and `tool_calls` (a list, or absent)."""

WHOLE = "(root)"
"""Where a flaw is that is one of the whole value, and not of a place in it."""


class Status(StrEnum):
    """What a verdict can be."""

    PASSED = "passed"
    FAILED = "failed"
    ABSTAINED = "abstained"  # the verifier itself broke or timed out: says nothing about the answer
    SKIPPED = "skipped"  # its binding's `when` does not apply to this request and answer


class Cause(StrEnum):
    """Why a verifier abstained. `stops` tells the causes that mean that it is broken, not that this input was odd."""

    TIMEOUT = "timeout"  # it gave no verdict in its time
    CRASHED = "crashed"  # its process died or was killed: memory, a signal
    BROKE = "broke"  # its code raised
    BAD_RETURN = "bad_return"  # it returned or answered what is no verdict
    UNREACHABLE = "unreachable"  # a webhook, a judge or a database could not be reached, or refused
    BUSY = "busy"  # no worker was free in time
    BAD_ARGS = "bad_args"  # the request's arguments cannot be used
    TOO_COSTLY = "too_costly"  # judging this answer would take too long, so it was not begun
    UNDECIDED = "undecided"  # it ran and could not tell: a judge without a majority, for example
    STOPPED = "stopped"  # the circuit breaker holds it
    REVOKED = "revoked"  # its version was revoked, and there is none before it

    @property
    def stops(self) -> bool:
        """Whether it counts against the verifier at the circuit breaker."""
        return self in _BREAKS


_BREAKS = frozenset({
    Cause.TIMEOUT, Cause.CRASHED, Cause.BROKE, Cause.BAD_RETURN, Cause.UNREACHABLE, Cause.BUSY,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one answer.

    `score` lies in [0, 1]. `reason` may carry the reference, so it is shown to the model only where the task says
    `show: reason` and `safe_for_model` is true. `stdout` is what user code printed, bounded. `cause` is why it
    abstained; None for every other status.
    """

    status: Status
    score: float
    reason: str = ""
    safe_for_model: bool = False
    stdout: str = ""
    cause: Cause | None = None

    @classmethod
    def passed(cls, reason: str = "", score: float = 1.0, **more: Any) -> "Verdict":
        """Build the verdict on an answer that is right."""
        return cls(Status.PASSED, score, reason, **more)

    @classmethod
    def failed(cls, reason: str, score: float = 0.0, **more: Any) -> "Verdict":
        """Build the verdict on an answer that is wrong."""
        return cls(Status.FAILED, score, reason, **more)

    @classmethod
    def abstained(cls, reason: str, cause: Cause = Cause.BROKE, **more: Any) -> "Verdict":
        """Build the verdict of a verifier that could not judge."""
        return cls(Status.ABSTAINED, 0.0, reason, cause=cause, **more)


class _Misplaced(ValueError):
    """Something given is wrong at some place. `where` points at it; None and the whole are not worth telling."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} (at {self.where})" if self.where not in (None, "", WHOLE) else self.message


class InvalidVerifier(_Misplaced):
    """The configuration of a verifier cannot be compiled. `where` points at the place (a path, line or column)."""


class InvalidArgs(_Misplaced):
    """Per-request arguments that do not fit the kind's schema. `where` is the path of the offending argument."""


class Verifier(Protocol):
    """A compiled verifier: immutable, safe to share between requests.

    `verify` returns `passed`, `failed` or `abstained`; it never raises for anything that an answer can contain.
    It never blocks the event loop: work that may take longer than a millisecond is awaited elsewhere. A verifier that
    never awaits anything may say `never_waits = True`: it needs no time limit, which costs as much as a quick verdict.
    """

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge `answer` to `request`, with the per-request `args` that the client gave."""
        ...
