"""Looks for reward hacking in a task's log, and says so.

Called by the worker's tick, the API and the command line; `server.store.audit` reads for it. A signal is evidence to
look at, never a verdict: nothing here may change an outcome, a task or an adapter.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from server.domain import Episode, Feedback, JudgedAttempt, LoggedVerdict, Promotion, Task
from server.orchestration.signals import (
    THRESHOLDS,
    Finding,
    Signal,
    State,
    find_brevity,
    find_divergence,
    find_promotion_jump,
    find_repetition,
)

WINDOW = 2000
"""How many judged attempts of a task an audit looks at, the newest."""

Told = tuple[Sequence[LoggedVerdict], Sequence[Feedback]]
"""The verdicts on the answer of an episode, and the feedback on it."""

REPEAT_AFTER_S = 24 * 3600.0
"""For so long the same signal under the same champion is not told again."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How often feedback contradicts a verifier: of so many verdicts that have feedback, and in which way."""

    verifier: str  # the pin
    verdicts: int
    passed_but_wrong: int  # it passed what feedback calls failed
    failed_but_right: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of one task found."""

    task: str
    champion: str
    attempts: int
    findings: tuple[Finding, ...]
    feedback: tuple[Disagreement, ...] = ()
    suspected: bool = False


def examine(
    task: Task,
    newest_first: Sequence[JudgedAttempt],
    promotion: Promotion | None = None,
    feedback: Sequence[Disagreement] = (),
) -> AuditReport:
    """Look at a window of logged attempts, and at what was served around the champion's promotion."""
    looks: Mapping[Signal, Callable[[], Finding]] = {
        Signal.DIVERGENCE: lambda: find_divergence(newest_first),
        Signal.BREVITY: lambda: find_brevity(newest_first),
        Signal.REPETITION: lambda: find_repetition(newest_first),
        Signal.PROMOTION_JUMP: lambda: find_promotion_jump(promotion),
    }
    findings = tuple(
        Finding(signal, State.OFF, "switched off for this task", THRESHOLDS[signal])
        if signal in task.training.audit_off
        else look()
        for signal, look in looks.items()
    )
    suspected = any(finding.state is State.FIRED for finding in findings)
    return AuditReport(task.name, task.champion, len(newest_first), findings, tuple(feedback), suspected)


def contradicts(feedback: Feedback, episode: Episode) -> bool:
    """Say whether feedback contradicts the verdict on the answer that the client got."""
    status = episode.attempts[-1].status if episode.attempts else ""
    return status in ("passed", "failed") and feedback.passed != (status == "passed")


def compare_feedback(told: Sequence[Told]) -> list[Disagreement]:
    """Count, by verifier, how often feedback contradicts its verdict on the answer that the client got."""
    counts: dict[str, list[int]] = {}
    for verdicts, feedback in told:
        for verdict in verdicts:
            if verdict.status not in ("passed", "failed"):
                continue
            count = counts.setdefault(verdict.verifier, [0, 0, 0])
            for one in feedback:
                count[0] += 1
                count[1] += verdict.status == "passed" and not one.passed
                count[2] += verdict.status == "failed" and one.passed
    return [Disagreement(pin, *counts[pin]) for pin in sorted(counts)]


class AuditSource(Protocol):
    """What an audit reads and writes: `server.store.audit.AuditStore`."""

    async def read_window(self, task: str, limit: int) -> list[JudgedAttempt]:
        """Read the newest judged attempts, newest first."""
        ...

    async def read_promotion(self, task: str, champion: str) -> Promotion | None:
        """Read what was served around the champion's promotion."""
        ...

    async def read_feedback(self, task: str) -> list[Told]:
        """Read the verdicts on the newest answers that have feedback, and that."""
        ...

    async def suspect(
        self, task: str, champion: str, signal: str, details: Mapping[str, Any], *, after_s: float
    ) -> bool:
        """Add an event unless there was one within `after_s`; say whether it was added."""
        ...


async def audit_task(task: Task, source: AuditSource) -> AuditReport:
    """Audit a task on what is in the log. Raises: StoreUnavailable."""
    window = await source.read_window(task.name, WINDOW)
    promotion = await source.read_promotion(task.name, task.champion)
    told = await source.read_feedback(task.name)
    return await asyncio.to_thread(examine, task, window, promotion, compare_feedback(told))


async def tell_suspicions(report: AuditReport, source: AuditSource) -> list[str]:
    """Raise an event for each signal that fired; return those that were not told lately. Raises: StoreUnavailable."""
    told = []
    for finding in report.findings:
        if finding.state is State.FIRED:
            details = {name: value for name, value in asdict(finding).items() if name != "state"}
            details = {**details, "signal": finding.signal.value, "champion": report.champion}
            if await source.suspect(
                report.task, report.champion, finding.signal.value, details, after_s=REPEAT_AFTER_S
            ):
                told.append(finding.signal.value)
    return told
