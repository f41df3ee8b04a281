"""Asks the task's hidden verifiers about a candidate: a gain that only its own verifiers see is no gain.

Called by trainer.gate with what both adapters answered, and by trainer.round for the bindings. Judged is the answer
that a client would get, after one retry at most. It can only hold a candidate back, never promote one:
- Regressed (thrown away, so that no round goes on from it): a hidden verifier passes fewer of its answers, with the
  interval's upper end below zero; or the gain is not there by it: under half of what the gate measured, less by more
  than chance (the interval of what is missing lies above zero), and not above zero beyond chance.
- Inconclusive: by the estimate it passes fewer by more than `first_try_margin`, or no more than before.
Below `gate_min_problems` that a hidden verifier judged under both adapters it has no say; the report tells so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from server.domain import Binding, BindingMode, Episode
from server.orchestration.verification import bind
from trainer.settings import TrainerSettings
from trainer.weighing import Decision, Interval, measure_difference
from verifiers.base import InvalidArgs, InvalidVerifier, Status
from verifiers.registry import check_args

Watched = tuple[bool, Mapping[str, bool]]
"""Whether an answer passed by what counts, and whether by each hidden verifier that judged it."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one hidden verifier says of both adapters, on the problems that it judged under both.

    `missing` is how much more was gained by what counts, on the same answers.
    """

    n: int
    before: float
    after: float
    gain: Interval
    missing: Interval

    def describe(self) -> dict[str, Any]:
        """Say it in figures."""
        return {
            "n": self.n,
            "before": self.before,
            "after": self.after,
            "difference": self.gain.difference,
            "ci95": [self.gain.low, self.gain.high],
            "missing": self.missing.difference,
            "missing_ci95": [self.missing.low, self.missing.high],
        }


def add_audits(problems: Sequence[Episode], logged: Sequence[Episode], audits: Sequence[Binding]) -> list[Episode]:
    """Bind the task's hidden verifiers of today to the problems, beside what counts.

    With the arguments that they were given when the problem was logged, if they were bound then; else with the task's
    own. One that cannot judge a problem with these is not bound to it.
    """
    given = {
        (episode.id, binding.name): binding.args
        for episode in logged
        for binding in episode.bindings
        if binding.mode == BindingMode.AUDIT
    }
    bound = []
    for problem in problems:
        counts = tuple(binding for binding in problem.bindings if binding.mode != BindingMode.AUDIT)
        wanted = (replace(audit, args=given.get((problem.id, audit.name), audit.args)) for audit in audits)
        bound.append(replace(problem, bindings=(*counts, *filter(_can_judge, wanted))))
    return bound


def _can_judge(binding: Binding) -> bool:
    try:
        bind((binding,))
        check_args(binding.kind, binding.config, binding.args)
    except (InvalidVerifier, InvalidArgs):
        return False
    return True


def read_watched(episode: Episode) -> Watched | None:
    """Read what both sides say of an episode's answer, after one retry at most; None where it was not judged."""
    tries = episode.attempts[:2]
    if not tries or tries[0].status not in (Status.PASSED, Status.FAILED):
        return None
    answer = next((one for one in tries if one.status == Status.PASSED), tries[-1])
    hidden = {
        verdict.verifier: verdict.status == Status.PASSED
        for verdict in answer.verdicts
        if verdict.mode == BindingMode.AUDIT and verdict.status in (Status.PASSED, Status.FAILED)
    }
    return answer.status == Status.PASSED, hidden


def compare_hidden(
    before: Sequence[Sequence[Watched | None]], after: Sequence[Sequence[Watched | None]], settings: TrainerSettings
) -> dict[str, Hidden]:
    """Compare two adapters by each hidden verifier; the samples stand by problem."""
    pins = sorted({pin for samples in (*before, *after) for one in samples if one for pin in one[1]})
    compared = {}
    for pin in pins:
        pairs = [(_average(old, pin), _average(new, pin)) for old, new in zip(before, after, strict=True)]
        kept = [(old, new) for old, new in pairs if old is not None and new is not None]
        table = np.array(kept, dtype=float).reshape(len(kept), 2, 2)  # problem, adapter, (counts, hidden)
        gained = table[:, 1] - table[:, 0]
        compared[pin] = Hidden(
            len(kept),
            float(table[:, 0, 1].mean()) if kept else 0.0,
            float(table[:, 1, 1].mean()) if kept else 0.0,
            measure_difference(table[:, 0, 1], table[:, 1, 1], settings),
            measure_difference(gained[:, 1], gained[:, 0], settings),
        )
    return compared


def _average(samples: Sequence[Watched | None], pin: str) -> tuple[float, float] | None:
    judged = [(one[0], one[1][pin]) for one in samples if one and pin in one[1]]
    if not judged:
        return None
    return float(np.mean([counts for counts, _ in judged])), float(np.mean([hidden for _, hidden in judged]))


def heed_audits(report: Mapping[str, Any], hidden: Mapping[str, Hidden], settings: TrainerSettings) -> dict[str, Any]:
    """Add what the hidden verifiers say to a gate's report; a promotion that they contradict is taken back."""
    if not hidden:
        return dict(report)
    told = {**report, "audits": {pin: one.describe() for pin, one in hidden.items()}}
    if report["decision"] != Decision.PROMOTED:
        return told
    weighed = [(_weigh(pin, one, settings)) for pin, one in hidden.items()]
    for decision in (Decision.REGRESSED, Decision.INCONCLUSIVE):
        if objections := [said for decided, said in weighed if decided is decision]:
            return {**told, "decision": decision.value, "reason": f"{'; '.join(objections)} ({report['reason']})"}
    return {**told, "reason": "; ".join([report["reason"], *(said for _, said in weighed)])}


def _weigh(pin: str, one: Hidden, settings: TrainerSettings) -> tuple[Decision, str]:
    gain, missing = one.gain, one.missing
    said = (
        f"by the hidden {pin} {gain.difference * 100:+.1f} points "
        f"(95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f}) on {one.n} problems"
    )
    if one.n < settings.gate_min_problems:
        return Decision.PROMOTED, f"the hidden {pin} judged only {one.n} problems under both"
    if gain.high < 0:
        return Decision.REGRESSED, f"worse {said}"
    claimed = gain.difference + missing.difference
    if missing.low > 0 and gain.low <= 0 and gain.difference < claimed / 2:
        return Decision.REGRESSED, f"the gain is absent {said}"
    if gain.difference < -settings.first_try_margin:
        return Decision.INCONCLUSIVE, f"it fell by over {settings.first_try_margin * 100:.1f} points {said}"
    if gain.difference <= 0:
        return Decision.INCONCLUSIVE, f"no gain {said}"
    return Decision.PROMOTED, said
