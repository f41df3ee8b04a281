"""Decides whether a candidate is better than the champion: both answer the same held-out problems.

Called by trainer.round. Problems run through the server's own loop, so that what is measured is what is served. It
must never look at a training problem, and never write anything.

How it decides. Every problem is sampled several times under both adapters; a problem's difference is the difference of
its two shares, and the interval comes from resampling problems (percentile bootstrap, seeded).
- Promoted: second-try accuracy is higher with the interval's lower end above zero, and first-try accuracy has not
  fallen by more than `first_try_margin` (the estimate itself: at the sizes that fit between two rounds the interval of
  a first-try difference is wider than any sensible margin, and would forbid every promotion). With a standard error s
  of that difference, a candidate without a true fall is held back with probability P(Z < -margin / s); s is reported.
  A fall of the first try also weighs against the second-try difference, which counts all problems.
- Regressed: second-try accuracy is lower with the interval's upper end below zero.
- Inconclusive: anything else, and always below `gate_min_problems` problems, where a percentile interval is too narrow.
With intervals of 95 % an adapter no better than the champion is promoted at most once in forty rounds.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from server.domain import Episode, Outcome, VerifyMode, new_id
from server.engine.base import Engine
from server.errors import EngineBroken, EngineTimeout
from server.orchestration.episode import run
from server.orchestration.verification import bind
from trainer.settings import TrainerSettings
from verifiers.base import InvalidVerifier, Status

Checked = tuple[bool, bool]
"""Whether the first try passed, and whether it or the retry did."""


class Decision(StrEnum):
    """What the gate says."""

    PROMOTED = "promoted"
    INCONCLUSIVE = "inconclusive"
    REGRESSED = "regressed"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the samples said of each problem: shares (N,) of first and second tries that passed, of one adapter."""

    first: np.ndarray
    second: np.ndarray
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of accuracies with its interval and standard error."""

    difference: float
    low: float
    high: float
    error: float


async def judge_candidate(
    episodes: Sequence[Episode],
    *,
    engine: Engine,
    champion: str,
    candidate: str,
    settings: TrainerSettings,
    say: Callable[[str], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Compare two adapters on held-out episodes and report: figures, decision and the reason in words.

    Raises: the engine's errors.
    """
    started = time.monotonic()
    problems = [episode for episode in episodes if _can_rerun(episode)][: settings.gate_problems]
    if not problems:
        report = decide(Verdicts(np.zeros(0), np.zeros(0)), Verdicts(np.zeros(0), np.zeros(0)), settings)
        return {**report, "samples": settings.gate_samples, "seconds": 0.0, "tokens": 0}
    slots = asyncio.Semaphore(settings.concurrency)
    shares: dict[str, list[list[Checked | None]]] = {}
    tokens = 0
    for role, adapter in (("champion", champion), ("candidate", candidate)):
        if say:
            await say(f"gate: {len(problems)} held-out problems x {settings.gate_samples} under the {role}")
        flat = await _run_all(problems, adapter, engine, settings.gate_samples, slots)
        tokens += sum(spent for _, spent in flat)
        answers = [checked for checked, _ in flat]
        size = settings.gate_samples
        shares[role] = [answers[i * size : (i + 1) * size] for i in range(len(problems))]
    before, after = pair_up(shares["champion"], shares["candidate"])
    return {
        **decide(before, after, settings),
        "samples": settings.gate_samples,
        "seconds": round(time.monotonic() - started, 2),
        "tokens": tokens,
    }


async def _run_all(
    problems: Sequence[Episode], adapter: str, engine: Engine, samples: int, slots: asyncio.Semaphore
) -> list[tuple[Checked | None, int]]:
    try:
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(_run_one(problem, adapter, engine, slots))
                for problem in problems
                for _ in range(samples)
            ]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [one.result() for one in runs]


async def _run_one(
    logged: Episode, adapter: str, engine: Engine, slots: asyncio.Semaphore
) -> tuple[Checked | None, int]:
    """Answer one held-out problem anew. None where no verdict was reached."""
    assert logged.request is not None
    body = {**logged.attempts[0].sampling, "messages": logged.request["messages"]}
    episode = dataclasses.replace(
        logged,
        id=new_id("ep"),
        adapter=adapter,
        verify=VerifyMode.ENFORCE,
        retry=dataclasses.replace(logged.retry, max_retries=1, max_seconds=None, max_total_tokens=None),
        outcome=Outcome.UNVERIFIED,
        attempts=[],
        reflections=[],
    )
    async with slots:
        for last in (False, True):  # what the engine breaks off once is an accident, and not the adapter's
            episode.attempts, episode.reflections, episode.error = [], [], ""
            try:
                await run(episode, engine=engine, verify=bind(episode.bindings), body=body)
            except (EngineBroken, EngineTimeout):
                if last:
                    raise
            if not episode.error:
                break
    return read_checked(episode), episode.usage.total_tokens


def read_checked(episode: Episode) -> Checked | None:
    """Read whether the first try and the second passed; None where the first was not judged."""
    statuses = [attempt.status for attempt in episode.attempts]
    if not statuses or statuses[0] not in (Status.PASSED, Status.FAILED):
        return None
    return statuses[0] == Status.PASSED, Status.PASSED in statuses[:2]


def _can_rerun(episode: Episode) -> bool:
    if episode.split != "held_out" or episode.request is None or not episode.attempts or not episode.bindings:
        return False
    try:
        bind(episode.bindings)
    except InvalidVerifier:
        return False
    return True


def pair_up(
    before: Sequence[Sequence[Checked | None]], after: Sequence[Sequence[Checked | None]]
) -> tuple[Verdicts, Verdicts]:
    """Average the samples of each problem under both adapters; a problem without a verdict under either is left out."""

    def average(samples: Sequence[Checked | None]) -> tuple[float, float]:
        judged = [checked for checked in samples if checked is not None]
        return (
            float(np.mean([first for first, _ in judged])),
            float(np.mean([second for _, second in judged])),
        )

    kept = [
        (average(old), average(new))
        for old, new in zip(before, after, strict=True)
        if any(one is not None for one in old) and any(one is not None for one in new)
    ]
    table = np.array(kept, dtype=float).reshape(len(kept), 2, 2)
    return Verdicts(table[:, 0, 0], table[:, 0, 1]), Verdicts(table[:, 1, 0], table[:, 1, 1])


def measure_difference(before: np.ndarray, after: np.ndarray, settings: TrainerSettings) -> Interval:
    """Estimate the paired difference of two accuracies (N,) with its 95 % interval from resampling problems."""
    if not len(before):
        return Interval(0.0, -1.0, 1.0, 1.0)
    differences = after - before
    rng = np.random.default_rng(settings.seed)
    draws = rng.integers(0, len(differences), size=(settings.bootstrap_draws, len(differences)))
    means = differences[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high), float(means.std()))


def decide(before: Verdicts, after: Verdicts, settings: TrainerSettings) -> dict[str, Any]:
    """Decide, and report the figures and the reason in words."""
    first = measure_difference(before.first, after.first, settings)
    second = measure_difference(before.second, after.second, settings)
    decision, why = _weigh(len(before.first), first, second, settings)
    return {
        "n": len(before.first),
        "first_before": _mean(before.first),
        "first_after": _mean(after.first),
        "second_before": _mean(before.second),
        "second_after": _mean(after.second),
        "difference": second.difference,
        "ci95": [second.low, second.high],
        "first_difference": first.difference,
        "first_ci95": [first.low, first.high],
        "first_error": first.error,
        "first_try_margin": settings.first_try_margin,
        "decision": decision.value,
        "reason": why,
    }


def _weigh(n: int, first: Interval, second: Interval, settings: TrainerSettings) -> tuple[Decision, str]:
    said = (
        f"second-try accuracy {second.difference * 100:+.1f} points "
        f"(95 % interval {second.low * 100:+.1f} to {second.high * 100:+.1f}), "
        f"first-try {first.difference * 100:+.1f}, on {n} held-out problems"
    )
    if n < settings.gate_min_problems:
        few = f"{n} of {settings.gate_min_problems} held-out problems; too few to promote anything by itself"
        return Decision.INCONCLUSIVE, few if not n else f"{few} ({said})"
    if second.high < 0:
        return Decision.REGRESSED, f"worse: {said}"
    if second.low <= 0:
        return Decision.INCONCLUSIVE, f"no clear difference: {said}"
    if first.difference < -settings.first_try_margin:
        limit = f"{settings.first_try_margin * 100:.1f}"
        return Decision.INCONCLUSIVE, f"better on the second try, but the first try fell by over {limit} points: {said}"
    return Decision.PROMOTED, f"better: {said}"


def _mean(shares: np.ndarray) -> float:
    return float(shares.mean()) if len(shares) else 0.0
