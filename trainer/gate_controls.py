"""Runs a gate's controls: what the retry would have been worth with another reflection, or with none.

Called by trainer.gate. Failed first tries of the candidate on held-out problems are retried in four ways, always by
the candidate, so that nothing differs but what the retry is shown (the paper trains and retries with one model; were
the base to retry after its own reflection, its answers would differ too, and that is what the gate itself compares):
- trained: the candidate's own reflection, sampled anew: those that won the gate may have been lucky;
- plain: no reflection; the request is asked again as it was;
- base: a reflection of the base model on the same failure;
- shuffled: a trained reflection on the failed try of another problem.
A trained reflection that is worth no more than a shuffled one says nothing about the failure that it follows. Controls
never decide: they are reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from server.domain import BASE_ADAPTER, Attempt, Episode, Reflection, Usage
from server.orchestration.episode import Reflector, reflect
from server.orchestration.reflection import Prompts
from trainer.gate_asking import Questioner, gather_all
from trainer.settings import TrainerSettings
from trainer.weighing import Interval, measure_difference
from verifiers.base import Status

TRAINED, PLAIN, BASE, SHUFFLED = "trained", "plain", "base", "shuffled"
ARMS = {
    TRAINED: "the trained reflection",
    PLAIN: "a plain retry without reflection",
    BASE: "the base model's reflection",
    SHUFFLED: "a shuffled reflection of another episode",
}
LEAST = 10
"""Below so many failures the controls are told and nothing is said of them."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A held-out problem and a first try of the candidate that failed."""

    problem: Episode
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to retry: shares (n,) of retries that passed, by failure, and the tokens of one retry on average."""

    shares: np.ndarray
    tokens: float


async def run_controls(
    failures: Sequence[Failed], candidate: str, questioner: Questioner, settings: TrainerSettings
) -> dict[str, Any]:
    """Retry failures in four ways, and report the share that each mends, its tokens, and the trained one's lead.

    Raises: the engine's errors.
    """
    chosen = list(failures)[: settings.control_problems]
    if len(chosen) < 2:
        return {"n": len(chosen), "says": f"no controls: {len(chosen)} first tries failed, and 2 are needed"}
    samples = settings.control_samples
    trained = [await _run_arm(chosen, candidate, questioner, lambda _n: None) for _ in range(samples)]
    reflections = [[_last(one) for one in some] for some in trained]

    def base(number: int) -> Reflector:
        return _reflect_with(BASE_ADAPTER, chosen[number].problem, questioner)

    arms = {TRAINED: _measure(trained)}
    arms[PLAIN] = _measure([await _run_arm(chosen, candidate, questioner, lambda _n: _nothing) for _ in range(samples)])
    arms[BASE] = _measure([await _run_arm(chosen, candidate, questioner, base) for _ in range(samples)])
    others = [_shuffle(some, turn) for turn, some in enumerate(reflections, start=1)]
    arms[SHUFFLED] = _measure(
        [await _run_arm(chosen, candidate, questioner, lambda n, o=other: _given(o[n])) for other in others]
    )
    return _describe(arms, len(chosen), candidate, settings)


async def _run_arm(
    chosen: Sequence[Failed],
    candidate: str,
    questioner: Questioner,
    reflector: Callable[[int], Reflector | None],
) -> list[Episode]:
    return await gather_all(
        questioner.retry(one.problem, candidate, one.attempt, reflector(number)) for number, one in enumerate(chosen)
    )


async def _nothing(_failed: Attempt) -> None:
    return None


def _given(reflection: Reflection | None) -> Reflector:
    borrowed = reflection and replace(reflection, usage=Usage())  # its tokens were spent by the arm that wrote it

    async def give(_failed: Attempt) -> Reflection | None:
        return borrowed

    return give


def _reflect_with(adapter: str, problem: Episode, questioner: Questioner) -> Reflector:
    assert problem.request is not None
    body = {**problem.attempts[0].sampling, "messages": problem.request["messages"]}

    async def ask(failed: Attempt) -> Reflection:
        prompts, policy = Prompts(**problem.prompts), problem.retry
        return await reflect(failed, body, engine=questioner.engine, adapter=adapter, prompts=prompts, policy=policy)

    return ask


def _last(episode: Episode) -> Reflection | None:
    return episode.reflections[-1] if episode.reflections else None


def _shuffle(reflections: Sequence[Reflection | None], turn: int) -> list[Reflection | None]:
    """Give each failure the reflection of another: all moved on by as many places, so that none keeps its own."""
    count = len(reflections)
    places = 1 + (turn * 7919) % (count - 1)
    return [reflections[(number + places) % count] for number in range(count)]


def _measure(runs: Sequence[Sequence[Episode]]) -> Arm:
    passed = np.array([[_is_mended(one) for one in some] for some in runs], dtype=float)
    spent = [_count_tokens(one) for some in runs for one in some]
    return Arm(passed.mean(axis=0), float(np.mean(spent)))


def _is_mended(episode: Episode) -> bool:
    return len(episode.attempts) > 1 and episode.attempts[1].status == Status.PASSED


def _count_tokens(episode: Episode) -> int:
    """Count what the retry took, reflection included, and not the first try that all share."""
    return sum(part.usage.total_tokens for part in (*episode.attempts[1:], *episode.reflections))


def _describe(arms: dict[str, Arm], n: int, candidate: str, settings: TrainerSettings) -> dict[str, Any]:
    told: dict[str, Any] = {}
    leads: dict[str, Interval] = {}
    for name, arm in arms.items():
        told[name] = {"words": ARMS[name], "mended": float(arm.shares.mean()), "tokens": round(arm.tokens, 1)}
        if name != TRAINED:
            flip = 1 / settings.control_samples
            wide = measure_difference(arm.shares, arms[TRAINED].shares, settings, flip=flip)
            leads[name] = replace(wide, low=max(-1.0, wide.low), high=min(1.0, wide.high))
            told[name] |= {"lead": leads[name].difference, "lead_ci95": [leads[name].low, leads[name].high]}
    beaten = leads[SHUFFLED].low > 0
    return {
        "n": n,
        "samples": settings.control_samples,
        "retried_by": candidate,
        "arms": told,
        "beats_shuffled": beaten if n >= LEAST else None,
        "says": _say(n, arms, leads),
    }


def _say(n: int, arms: dict[str, Arm], leads: dict[str, Interval]) -> str:
    if n < LEAST:
        return f"{n} failed first tries: too few to compare reflections on"
    said = [
        f"{words} mends {arms[name].shares.mean() * 100:.1f} %"
        + ("" if name == TRAINED else f" ({_say_lead(leads[name])})")
        for name, words in ARMS.items()
    ]
    verdict = (
        "the trained reflection beats a shuffled one"
        if leads[SHUFFLED].low > 0
        else "the trained reflection does not beat a shuffled one: it is not shown that it says anything about the "
        "failure that it follows"
    )
    return f"{verdict}; on {n} failed first tries " + ", ".join(said)


def _say_lead(lead: Interval) -> str:
    return f"{lead.difference * 100:+.1f} points for the trained one, {lead.low * 100:+.1f} to {lead.high * 100:+.1f}"
