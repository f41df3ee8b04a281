"""Decides whether a candidate is better than the champion: both answer the same held-out problems.

Called by trainer.gate_round. Problems run through the server's own loop, so that what is measured is what is served. It
must never look at a training problem, and never write anything. docs/gate.md has what it decides and how surely.

- Promoted: second-try accuracy is higher, with the 95 % interval above zero at one of the looks, and every guard holds
  (trainer.gate_guards): first tries, other tasks, plain problems, length and latency are not worse by their margins.
- Regressed: second-try accuracy is lower, with the interval below zero.
- Inconclusive: anything else, and always below `gate_min_problems` problems.
What the task's hidden verifiers make of it can only hold a candidate back (trainer.gate_audit); where it has any, the
gate does not stop early, so that they see every problem.
An adapter no better than the champion is promoted at most once in forty rounds: bench/gate_errors.py shows it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.domain import BindingMode, Episode
from server.engine.base import Engine
from server.orchestration.gate_plan import Spread
from server.store.gates import Pair
from trainer.errors import RoundFailed
from trainer.gate_asking import EngineAsker, Questioner, can_rerun, read_checked
from trainer.gate_audit import compare_hidden, heed_audits
from trainer.gate_controls import Failed, run_controls
from trainer.gate_tally import CANDIDATE, CHAMPION, Tally
from trainer.gate_weighing import weigh
from trainer.settings import TrainerSettings
from trainer.weighing import Decision

__all__ = ["Beside", "Decision", "judge_candidate", "read_checked"]


CONTROLS_SHARE = 0.8
"""Of what is left of the round's time controls may take so much: the promotion wants some as well."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a gate looks at beside the task's own problems: other tasks', plain ones, and what earlier gates saw."""

    other_tasks: Sequence[Episode] = ()
    probes: Sequence[Episode] = ()
    known: Spread | None = None


async def judge_candidate(
    episodes: Sequence[Episode],
    *,
    engine: Engine,
    champion: str,
    candidate: str,
    settings: TrainerSettings,
    beside: Beside | None = None,
    say: Callable[[str], Awaitable[None]] | None = None,
    keep_pairs: Callable[[Sequence[Pair]], Awaitable[None]] | None = None,
    seconds_left: Callable[[], float | None] | None = None,
) -> dict[str, Any]:
    """Compare two adapters on held-out episodes and report: figures, decision and the reason in words.

    `keep_pairs` is given what both made of each problem. Controls end early where `seconds_left` comes to an end: they
    decide nothing, and what is decided by then stays.

    Raises: the engine's errors.
    """
    started, beside = time.monotonic(), beside or Beside()
    problems = [episode for episode in episodes if can_rerun(episode)][: settings.gate_problems]
    random.Random(settings.seed).shuffle(problems)  # looks take them from the first on: these must be as any others
    others = [episode for episode in beside.other_tasks if can_rerun(episode)][: settings.guard_problems]
    questioner = Questioner(engine, asyncio.Semaphore(settings.concurrency))
    adapters = (champion, candidate)
    asker = EngineAsker(problems, others, list(beside.probes), adapters, questioner, settings)
    watched = any(binding.mode == BindingMode.AUDIT for one in problems for binding in one.bindings)
    report, tally = await weigh(asker, settings, known=beside.known, may_stop=not watched, say=say)
    if keep_pairs:
        await keep_pairs(list_pairs(problems, tally))
    hidden = compare_hidden(
        asker.list_by_side(CHAMPION, lambda one: one.watched),
        asker.list_by_side(CANDIDATE, lambda one: one.watched),
        settings,
    )
    report = heed_audits(report, hidden, settings)
    if settings.control_problems and problems:
        if say:
            await say("gate: controls")
        left_s = seconds_left() if seconds_left else None
        report["controls"] = await _run_controls(asker, settings, left_s)
        if report["controls"].get("beats_shuffled") is False:
            report["reason"] += "; the trained reflection does not beat a shuffled one"
    return {**report, "seconds": round(time.monotonic() - started, 2), "tokens": questioner.tokens}


async def _run_controls(asker: EngineAsker, settings: TrainerSettings, left_s: float | None) -> dict[str, Any]:
    failures = _list_failed(asker)
    try:
        async with asyncio.timeout(None if left_s is None else CONTROLS_SHARE * left_s):
            return await run_controls(failures, asker.adapters[CANDIDATE], asker.questioner, settings)
    except (TimeoutError, RoundFailed) as error:
        why = str(error) or "the round's time did not reach"
        return {"n": 0, "says": f"no controls: {why}"}


def _list_failed(asker: EngineAsker) -> list[Failed]:
    """List the candidate's first failed try on each problem that it failed."""
    found = zip(asker.held_out, asker.list_by_side(CANDIDATE, lambda one: one.failed), strict=True)
    tries = ((problem, next((one for one in failed if one), None)) for problem, failed in found)
    return [Failed(problem, attempt) for problem, attempt in tries if attempt is not None]


def list_pairs(problems: Sequence[Episode], tally: Tally) -> list[Pair]:
    """List what both adapters made of each problem that was looped under both."""
    kept = np.flatnonzero((tally.loops > 0).all(axis=1))
    firsts, seconds = tally.firsts(), tally.second_tries()
    return [
        Pair(
            episode_id=problems[number].id,
            samples_before=int(tally.loops[number, CHAMPION]),
            samples_after=int(tally.loops[number, CANDIDATE]),
            first_before=float(firsts[place, CHAMPION]),
            first_after=float(firsts[place, CANDIDATE]),
            second_before=float(seconds[place, CHAMPION]),
            second_after=float(seconds[place, CANDIDATE]),
        )
        for place, number in enumerate(kept.tolist())
    ]
