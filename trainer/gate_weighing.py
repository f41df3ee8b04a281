"""Weighs a candidate: asks for samples, look by look, until it is decided, and then for what the guards need.

Called by trainer.gate with an `Asker` that asks the engine, and by the simulations of the gate with one that draws.
It knows figures only: never an episode, an engine or a store.

1. A first look at a third of the planned problems shows how much answers vary, and the plan is made anew with that
   (an internal pilot: Wittes and Brittain, Statistics in Medicine 9, 1990): how many problems, how many samples.
2. At each look the interval of the second-try difference, at the level that the look needs (trainer.gate_looks), is
   above zero, below zero, or neither, and then the next look follows. All looks together err as rarely as one would.
3. Where the candidate won, the guards are asked: first tries on every held-out problem there is, other tasks' problems,
   plain ones. How often is chosen from how much they vary, never from who is ahead, so that their error stays theirs.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from server.orchestration.gate_plan import ASSUMED, Plan, Spread, choose_guard_samples, plan_gate
from trainer import gate_guards as guards
from trainer.gate_looks import find_levels
from trainer.gate_tally import CANDIDATE, CHAMPION, Tally, measure_spread, pair_counts
from trainer.settings import TrainerSettings
from trainer.weighing import Decision, Interval, measure_difference

SEEN = "seen by this gate"


class Asker(Protocol):
    """Lets both adapters answer. A tally has a row for every problem there is, also where it was not asked."""

    @property
    def problems(self) -> int:
        """Count the held-out problems, which stand in an order of chance."""
        ...

    @property
    def others(self) -> int:
        """Count the problems of other tasks."""
        ...

    @property
    def probes(self) -> int:
        """Count the plain problems."""
        ...

    async def loop(self, numbers: Sequence[int], samples: int) -> Tally:
        """Ask held-out problems, with a reflection and a retry where the first try fails."""
        ...

    async def ask_first(self, samples: np.ndarray) -> Tally:
        """Ask each held-out problem so often (N,), first tries alone."""
        ...

    async def ask_others(self, samples: int) -> Tally:
        """Ask other tasks' held-out problems, first tries alone."""
        ...

    async def ask_probes(self, samples: int) -> Tally:
        """Ask plain problems, first tries alone."""
        ...


@dataclass
class Scale:
    """One candidate on the scale."""

    asker: Asker
    settings: TrainerSettings
    known: Spread
    may_stop: bool
    say: Callable[[str], Awaitable[None]]
    tally: Tally = field(init=False)
    looped: Tally = field(init=False)  # without the first tries that guards ask besides
    plan: Plan = field(init=False)
    looks: list[dict[str, Any]] = field(default_factory=list)
    _asked: int = 0  # so many problems, the first ones
    _samples: int = 0

    def __post_init__(self) -> None:
        self.tally = self.looped = Tally.start(self.asker.problems)
        self.plan = plan_gate(self.asker.problems, self.known, self.settings)

    async def look_until_decided(self) -> Interval:
        """Ask and look; returns the interval of the last look, at the level that it needed."""
        first = self._size_first_look()
        await self._ask(first, self.settings.gate_samples)
        spread = measure_spread(self.tally.second, self.tally.loops, SEEN)
        self.plan = plan_gate(self.asker.problems, spread, self.settings)
        stops = self._list_stops(first)
        final = spread.error(*stops[-1])
        times: list[float] = []
        for number, (problems, samples) in enumerate(stops, start=1):
            await self._ask(problems, samples)
            last = number == len(stops)
            if not last and not self.may_stop:
                continue
            error = spread.error(problems, samples)
            times.append(1.0 if last or not error else min(0.999, (final / error) ** 2))
            interval = self._look(tuple(times), f"{number} of {len(stops)}")
            if last or interval.low > 0 or interval.high < 0:
                return interval
        raise AssertionError("unreachable: the last stop returns")

    def _size_first_look(self) -> int:
        third = math.ceil(self.plan.problems / self.settings.gate_looks)
        return min(self.plan.problems, max(third, self.settings.gate_min_problems))

    def _list_stops(self, first: int) -> list[tuple[int, int]]:
        """List the looks as problems and samples: the one that was asked already, and those that the plan adds."""
        begun, problems, samples = (
            (first, self.settings.gate_samples),
            max(first, self.plan.problems),
            self.plan.samples,
        )
        if problems == first:
            return [begun] if samples == begun[1] else [begun, (first, samples)]
        more = max(1, self.settings.gate_looks - 1)
        return [begun, *((first + math.ceil((problems - first) * i / more), samples) for i in range(1, more + 1))]

    async def _ask(self, problems: int, samples: int) -> None:
        """Ask until the first `problems` have `samples` each."""
        if samples > self._samples and self._asked:
            await self.say(f"gate: {self._asked} held-out problems, {samples - self._samples} more samples each")
            self.tally += await self.asker.loop(range(self._asked), samples - self._samples)
        if problems > self._asked:
            await self.say(f"gate: {problems - self._asked} held-out problems x {samples} under both adapters")
            self.tally += await self.asker.loop(range(self._asked, problems), samples)
        self._asked, self._samples, self.looped = problems, samples, self.tally

    def _look(self, times: tuple[float, ...], name: str) -> Interval:
        level = find_levels(times)[-1]
        pairs = self.tally.second_tries()
        wide = measure_difference(
            pairs[:, CHAMPION], pairs[:, CANDIDATE], self.settings, level=level, flip=1 / self._samples
        )
        interval = replace(wide, low=max(-1.0, wide.low), high=min(1.0, wide.high))
        seen = {"look": name, "n": len(pairs), "samples": self._samples, "information": times[-1], "level": level}
        self.looks.append({**seen, "difference": interval.difference, "low": interval.low, "high": interval.high})
        return interval

    async def ask_guards(self) -> list[guards.Guard]:
        """Ask what the guards need, and let them judge."""
        ask = (self._guard_first, self._guard_others, self._guard_probes)
        return [await one() for one in ask] + self.guard_amounts()

    def guard_amounts(self) -> list[guards.Guard]:
        """Judge length and latency, from what was asked already."""
        lengths, times = self.tally.lengths(), self.tally.times()
        most = int(self.tally.judged.max(initial=0))
        return [
            guards.guard_ratio(guards.LENGTH, lengths, most, self.settings),
            guards.guard_ratio(guards.LATENCY, times, self._samples, self.settings),
        ]

    async def _guard_first(self) -> guards.Guard:
        spread = measure_spread(self.tally.first, self.tally.judged, SEEN)
        least = max(self._samples, self.settings.first_try_samples)
        most = max(least, self.settings.guard_max_samples)
        margin = self.settings.first_try_margin
        wanted = choose_guard_samples(self.asker.problems, spread, margin, least=least, most=most)
        done = np.zeros(self.asker.problems, dtype=int)
        done[: self._asked] = self._samples
        await self.say(f"gate: first tries of all {self.asker.problems} held-out problems, {wanted} each")
        self.tally += await self.asker.ask_first(wanted - done)
        return guards.guard_share(guards.FIRST_TRY, self.tally.firsts(), wanted, self.settings)

    async def _guard_others(self) -> guards.Guard:
        return await self._guard_elsewhere(
            guards.OTHER_TASKS, self.asker.others, self.asker.ask_others, "held-out problems of other tasks"
        )

    async def _guard_probes(self) -> guards.Guard:
        return await self._guard_elsewhere(guards.PROBES, self.asker.probes, self.asker.ask_probes, "plain problems")

    async def _guard_elsewhere(
        self, topic: guards.Topic, count: int, ask: Callable[[int], Awaitable[Tally]], words: str
    ) -> guards.Guard:
        margin: float | None = getattr(self.settings, topic.setting)
        if margin is None:
            return topic.not_asked(None, f"{topic.setting} is off")
        if count < (least := self.settings.gate_min_problems):
            return topic.not_asked(margin, f"there are {count} {words}, and {least} are needed")
        begin = min(2, self.settings.guard_max_samples)
        await self.say(f"gate: {count} {words} under both adapters")
        tally = await ask(begin)
        spread = measure_spread(tally.first, tally.judged, SEEN)
        most = max(begin, self.settings.guard_max_samples)
        samples = choose_guard_samples(count, spread, margin, least=begin, most=most)
        if samples > begin:
            tally += await ask(samples - begin)
        return guards.guard_share(topic, tally.firsts(), samples, self.settings)


async def _keep_quiet(_words: str) -> None:
    return


async def weigh(
    asker: Asker,
    settings: TrainerSettings,
    *,
    known: Spread | None = None,
    may_stop: bool = True,
    say: Callable[[str], Awaitable[None]] | None = None,
) -> tuple[dict[str, Any], Tally]:
    """Weigh a candidate and report: figures, decision and the reason in words; with what was counted.

    `known` is how much answers varied before; without `may_stop` there is one look, at the end.

    What was counted are the loops alone. Raises: what asking raises.
    """
    scale = Scale(asker, settings, known or ASSUMED, may_stop, say or _keep_quiet)
    if not asker.problems:
        none = Interval(0.0, -1.0, 1.0, 1.0)
        return _report(scale, none, Decision.INCONCLUSIVE, _say_few(0, settings), []), scale.looped
    second = await scale.look_until_decided()
    n = len(scale.tally.second_tries())
    said = _say_figures(scale, second, n)
    judged: list[guards.Guard] = []
    if n < settings.gate_min_problems:
        few = _say_few(n, settings)
        decision, why = Decision.INCONCLUSIVE, f"{few} ({said})" if n else few
    elif second.high < 0:
        decision, why = Decision.REGRESSED, f"worse: {said}"
    elif second.low <= 0:
        decision, why = Decision.INCONCLUSIVE, f"no clear difference: {said}; {scale.plan.say()}"
    else:
        judged = await scale.ask_guards()
        against = guards.object_to(judged)
        decision = Decision.INCONCLUSIVE if against else Decision.PROMOTED
        why = f"better on the second try, but {against} ({said})" if against else f"better: {said}; every guard held"
    if not judged:
        judged = _leave_guards(scale)
    return _report(scale, second, decision, why, judged), scale.looped


def _leave_guards(scale: Scale) -> list[guards.Guard]:
    """Say of the guards what is known without asking for more: the candidate did not win."""
    first = guards.guard_share(guards.FIRST_TRY, scale.tally.firsts(), scale.plan.samples, scale.settings)
    left = [
        topic.not_asked(getattr(scale.settings, topic.setting), "the candidate did not win on the second try")
        for topic in (guards.OTHER_TASKS, guards.PROBES)
    ]
    return [first, *left, *scale.guard_amounts()]


def _say_few(n: int, settings: TrainerSettings) -> str:
    return f"{n} of {settings.gate_min_problems} held-out problems; too few to promote anything by itself"


def _say_figures(scale: Scale, second: Interval, n: int) -> str:
    firsts = scale.looped.firsts()
    first = float((firsts[:, CANDIDATE] - firsts[:, CHAMPION]).mean()) if n else 0.0
    early = f", decided at look {scale.looks[-1]['look']}" if _stopped_early(scale) else ""
    interval = "95 % interval over all looks" if early else "95 % interval"
    return (
        f"second-try accuracy {second.difference * 100:+.1f} points "
        f"({interval} {second.low * 100:+.1f} to {second.high * 100:+.1f}), "
        f"first-try {first * 100:+.1f}, on {n} held-out problems{early}"
    )


def _stopped_early(scale: Scale) -> bool:
    return bool(scale.looks) and scale.looks[-1]["information"] < 1


def _report(
    scale: Scale, second: Interval, decision: Decision, why: str, judged: Sequence[guards.Guard]
) -> dict[str, Any]:
    firsts, seconds = scale.looped.firsts(), scale.looped.second_tries()
    first = measure_difference(firsts[:, CHAMPION], firsts[:, CANDIDATE], scale.settings)
    seen = bool(scale.looks) and len(seconds) >= scale.settings.gate_min_problems
    return {
        "n": len(seconds),
        "samples": scale.plan.samples if not _stopped_early(scale) else scale.looks[-1]["samples"],
        "first_before": _mean(firsts[:, CHAMPION]),
        "first_after": _mean(firsts[:, CANDIDATE]),
        "second_before": _mean(seconds[:, CHAMPION]),
        "second_after": _mean(seconds[:, CANDIDATE]),
        "difference": second.difference,
        "ci95": [second.low, second.high],
        "error": second.error,
        "first_difference": first.difference,
        "first_ci95": [first.low, first.high],
        "first_error": first.error,
        "first_try_margin": scale.settings.first_try_margin,
        "plan": {**scale.plan.describe(), "seen": seen},
        "looks": scale.looks,
        "guards": [one.describe() for one in judged],
        "pairs": pair_counts(scale.looped),
        "decision": decision.value,
        "reason": why,
    }


def _mean(shares: np.ndarray) -> float:
    return float(shares.mean()) if len(shares) else 0.0
