"""Verifiers as the server keeps them: versions, pins and bindings, and what is measured of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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


class BindingMode(StrEnum):
    """What one verifier's verdict is for, among those of a request."""

    ENFORCE = "enforce"  # it counts
    OBSERVE = "observe"  # it is logged and shown beside the others, and never counts: a version on trial
    AUDIT = "audit"  # likewise, and clients are never shown it: it measures whether the others are being gamed


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
