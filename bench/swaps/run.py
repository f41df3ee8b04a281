"""Runs streams against one strategy while it swaps adapters, judges every answer, and works out the figures."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.swaps.client import CutError
from bench.swaps.letters import letter_of
from bench.swaps.strategies import TOKENS, Strategy
from server.errors import MulliganError

QUIET_ROUNDS = 2
"""Between two swaps every stream answers about so often, so that there is a quiet time to compare with."""
_STALL_S = 120.0


@dataclass(frozen=True)
class Answer:
    """One answer: when it was asked for and whole (seconds, monotonic), and what is wrong with it ("" = nothing)."""

    asked_at: float
    ended_at: float
    adapter: str
    fault: str = ""


@dataclass
class Run:
    """What was seen of one strategy. `swaps` are the begin and the end of each."""

    answers: list[Answer] = field(default_factory=list)
    swaps: list[tuple[float, float]] = field(default_factory=list)
    served: list[tuple[float, str]] = field(default_factory=list)  # from when on an adapter was meant to serve
    refusals: int = 0


@dataclass(frozen=True)
class Figures:
    """Of one strategy. Times are in milliseconds; `faults` are the first few of what went wrong.

    `during` are the answers that were asked for while a swap was under way, `quiet` those that met none at all;
    `met_p50_ms` is of all that met one, those included that were under way already when it began.
    """

    strategy: str
    answers: int
    during: int
    faulty: int
    faults: Sequence[str]
    refusals: int
    adapters_seen: int
    swap_p50_ms: float
    quiet_p50_ms: float
    quiet_p99_ms: float
    during_p50_ms: float
    during_p99_ms: float
    met_p50_ms: float

    @property
    def added_p50_ms(self) -> float:
        """What a swap adds to the median answer that is asked for meanwhile."""
        return self.during_p50_ms - self.quiet_p50_ms

    @property
    def added_p99_ms(self) -> float:
        """What a swap adds to the 99th percentile."""
        return self.during_p99_ms - self.quiet_p99_ms


async def drive(
    strategy: Strategy, names: Sequence[str], streams: int, note: Callable[[str], None] = lambda _: None
) -> Run:
    """Swap through the adapters, one after the other, under `streams` streams that ask without a pause.

    Raises: TimeoutError where no answers come any more, what a swap raises.
    """
    run, stop = Run(), asyncio.Event()

    async def ask_on(stream: int) -> None:
        while not stop.is_set():
            asked_at = time.monotonic()
            try:
                said = await strategy.ask(stream)
            except (CutError, MulliganError, OSError) as error:
                run.answers.append(Answer(asked_at, time.monotonic(), "?", f"failed: {error}"))
                await asyncio.sleep(0.1)
                continue
            fault = judge(said.text, said.adapter, said.finish_reason, done=said.done)
            run.answers.append(Answer(asked_at, time.monotonic(), said.adapter or "", fault))

    asking = [asyncio.create_task(ask_on(stream)) for stream in range(streams)]
    try:
        await _wait_for_answers(run, QUIET_ROUNDS * streams)
        for number, name in enumerate(names, start=1):
            begun = time.monotonic()
            await strategy.swap(name)
            run.swaps.append((begun, time.monotonic()))
            note(f"swap {number} of {len(names)}: {time.monotonic() - begun:.2f} s, {len(run.answers)} answers")
            await _wait_for_answers(run, QUIET_ROUNDS * streams)
    finally:
        stop.set()
        await asyncio.wait(asking, timeout=_STALL_S)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    run.refusals = strategy.refusals
    return run


def judge(text: str, adapter: str | None, finish_reason: str, *, done: bool) -> str:
    """Say what is wrong with an answer; "" where nothing is: it is whole, and every token is its adapter's."""
    if adapter is None:
        return "it does not say which adapter produced it"
    if not done or finish_reason != "length" or len(text) != TOKENS:
        return f"cut: {text!r}, finish_reason {finish_reason!r}, done {done}"
    if text != letter_of(adapter) * TOKENS:
        return f"mixed up: it names {adapter or 'the base'} and says {text!r}"
    return ""


def summarise(strategy: str, run: Run, names: Sequence[str]) -> Figures:
    """Work out the figures of a run."""
    ends = [end for _, end in run.swaps]
    faults = [answer.fault for answer in run.answers if answer.fault]
    faults += _find_stale(run, names, ends)
    during, met, quiet = [], [], []
    for answer in run.answers:
        taken_ms = 1000 * (answer.ended_at - answer.asked_at)
        meets = any(answer.asked_at < end and answer.ended_at > begin for begin, end in run.swaps)
        (met if meets else quiet).append(taken_ms)
        if any(begin <= answer.asked_at < end for begin, end in run.swaps):
            during.append(taken_ms)
    return Figures(
        strategy=strategy,
        answers=len(run.answers),
        during=len(during),
        faulty=len(faults),
        faults=tuple(faults[:5]),
        refusals=run.refusals,
        adapters_seen=len({answer.adapter for answer in run.answers if not answer.fault}),
        swap_p50_ms=1000 * median(end - begin for begin, end in run.swaps),
        quiet_p50_ms=_percentile(quiet, 50),
        quiet_p99_ms=_percentile(quiet, 99),
        during_p50_ms=_percentile(during, 50),
        during_p99_ms=_percentile(during, 99),
        met_p50_ms=_percentile(met, 50),
    )


def _find_stale(run: Run, names: Sequence[str], ends: Sequence[float]) -> list[str]:
    """Find answers that were asked for after a swap had ended, and came from an adapter before it."""
    stale = []
    for answer in run.answers:
        over = sum(end <= answer.asked_at for end in ends)
        if over and not answer.fault and answer.adapter not in names[over - 1 :]:
            stale.append(f"stale: {answer.adapter or 'the base'} answered after {names[over - 1]} had taken over")
    return stale


async def _wait_for_answers(run: Run, count: int) -> None:
    wanted, deadline = len(run.answers) + count, time.monotonic() + _STALL_S
    while len(run.answers) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {count} answers came within {_STALL_S:g} s")
        await asyncio.sleep(0.01)


def _percentile(values: Sequence[float], percent: int) -> float:
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(percent / 100 * (len(ranked) - 1)))]
