"""Measures what quick verifiers wait while a slow one works: SLOW_AT_ONCE verdicts of SLOW_S each, all the time.

Both are asked as requests ask them (`VerifierSet.judge`), in one event loop. A quick verdict is due every INTERVAL_S,
and its time counts from then: what keeps the loop busy counts too.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.verifiers.cases import CASES, REQUEST, text
from bench.verifiers.measure import NotMeasured, pick
from server.domain import Binding
from server.orchestration.verification import VerifierSet, bind
from verifiers import registry
from verifiers.base import Status

SLOW_S = 0.3
SLOW_AT_ONCE = 16
INTERVAL_S = 0.005
_SPIN = "def verify(request, answer, args):\n    n = 0\n    while n < {turns}: n += 1\n    return True\n"
_TRIAL_TURNS = 200_000


@dataclass(frozen=True)
class Beside:
    """Milliseconds that verdicts of one quick kind took, without and with the slow verifier beside them."""

    kind: str
    verdicts: int
    alone_p50_ms: float
    alone_p99_ms: float
    p50_ms: float
    p99_ms: float
    slow_s: float
    """How long the slow verifier's verdicts took at the median, their wait for a worker included."""


def bind_spin(turns: int) -> VerifierSet:
    """Bind a `python` verifier that counts to `turns`."""
    return bind([Binding("python", {"code": _SPIN.format(turns=turns), "timeout_s": 10})])


async def judge_slow(bound: VerifierSet) -> float:
    """Ask the slow one; returns the seconds it took. Raises: NotMeasured."""
    started = time.perf_counter()
    status, _, reason, _ = await bound.judge(REQUEST, text("x"))
    if status is not Status.PASSED:
        raise NotMeasured(f"the slow verifier: {status}: {reason}")
    return time.perf_counter() - started


async def find_turns() -> int:
    """Find how far a verifier counts in SLOW_S."""
    turns = _TRIAL_TURNS
    for _ in range(3):  # the longer it counts, the less of its time is something else
        trial = bind_spin(turns)
        took_s = min([await judge_slow(trial) for _ in range(3)])
        turns = max(1, int(turns * SLOW_S / took_s))
    return turns


async def judge_on_time(bound: VerifierSet, answer: object, seconds: float) -> list[float]:
    """Ask for a verdict every INTERVAL_S; returns the seconds from when each was due."""
    times: list[float] = []
    start = time.perf_counter()
    asked: set[asyncio.Task[None]] = set()

    async def ask(due: float) -> None:
        status, _, reason, _ = await bound.judge(REQUEST, answer)  # pyright: ignore[reportArgumentType]
        times.append(time.perf_counter() - due)
        if status is not Status.PASSED:
            raise NotMeasured(f"a quick verifier: {status}: {reason}")

    for number in range(max(1, int(seconds / INTERVAL_S))):
        due = start + number * INTERVAL_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.add(asyncio.create_task(ask(due)))
    await asyncio.gather(*asked)
    return times


@asynccontextmanager
async def keep_busy(slow: VerifierSet) -> AsyncIterator[list[float]]:
    """Ask for SLOW_AT_ONCE slow verdicts all the time while the block runs, which begins after the first of them.

    Gives the seconds that each took so far. Raises: NotMeasured.
    """
    took: list[float] = []
    first = asyncio.Event()

    async def go_on() -> None:
        try:
            while True:
                took.append(await judge_slow(slow))
                first.set()
        finally:
            first.set()

    tasks = [asyncio.create_task(go_on()) for _ in range(SLOW_AT_ONCE)]
    try:
        await first.wait()
        yield took
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for one in ended:
        if isinstance(one, NotMeasured):
            raise one


async def _measure(seconds: float, kinds: tuple[str, ...]) -> list[Beside]:
    slow = bind_spin(await find_turns())
    found = []
    for kind in kinds:
        case = next(case for case in CASES if case.kind == kind)
        quick = bind([Binding(kind, case.config, args=case.args)])
        await judge_on_time(quick, case.answer, 0.2)
        alone = await judge_on_time(quick, case.answer, seconds)
        async with keep_busy(slow) as took:
            beside = await judge_on_time(quick, case.answer, seconds)
        figures = [pick(times, share) * 1000 for times in (alone, beside) for share in (0.5, 0.99)]
        found.append(Beside(kind, len(beside), *figures, slow_s=pick(took, 0.5)))
    return found


def measure_beside(seconds: float, kinds: tuple[str, ...] = ("json_schema", "python")) -> list[Beside]:
    """Measure the quick kinds beside the slow verifier. Raises: NotMeasured."""
    try:
        return asyncio.run(_measure(seconds, kinds))
    finally:
        registry.close()
