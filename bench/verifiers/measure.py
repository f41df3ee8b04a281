"""Measures verdicts: how long one takes, how many two processes give, and how long others wait beside a slow one.

A verdict that is not `passed` is no measurement: it raises NotMeasured.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.verifiers.cases import REQUEST, SERVICE, Case
from server.domain import Binding
from server.orchestration.verification import VerifierSet, bind
from verifiers import registry
from verifiers.base import Status, Verifier
from verifiers.policy import Policy

WARM_UP_S = 0.3
PROCESSES = 2
_START_S = 60


class NotMeasured(Exception):
    """Says why a row has no figures."""


@dataclass(frozen=True)
class Figures:
    """Of one case: microseconds a verdict, and verdicts a second of PROCESSES processes together."""

    kind: str
    note: str
    goal_us: float | None
    verdicts: int
    p50_us: float
    p99_us: float
    judged_p50_us: float
    """p50 through `VerifierSet.judge`, as requests are judged: with the time limit and the entry for the log."""
    per_s: float

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal_us is None else self.p50_us <= self.goal_us


def pick(times: Sequence[float], share: float) -> float:
    """Pick a quantile of what is not empty."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def place(case: Case, service: str) -> dict[str, Any]:
    """Make the configuration of a case, with the address of the service in it."""
    return json.loads(json.dumps(case.config).replace(SERVICE, service))


async def repeat(work: Callable[[], Any], seconds: float, at_once: int) -> list[float]:
    """Do some work again and again, `at_once` at the same time; returns how long each took, in seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def go_on() -> None:
        while (started := time.perf_counter()) < end or not times:
            await work()
            times.append(time.perf_counter() - started)

    await asyncio.gather(*(go_on() for _ in range(at_once)))
    return times


async def ask(verifier: Verifier, case: Case) -> None:
    """Ask for one verdict. Raises: NotMeasured."""
    verdict = await verifier.verify(REQUEST, case.answer, case.args)
    if verdict.status is not Status.PASSED:
        raise NotMeasured(f"{case.kind}: {verdict.status}: {verdict.reason[:200]}")


async def judge(bound: VerifierSet, case: Case) -> None:
    """Ask for one verdict as a request does. Raises: NotMeasured."""
    status, _, reason, _ = await bound.judge(REQUEST, case.answer)
    if status is not Status.PASSED:
        raise NotMeasured(f"{case.kind}: {status}: {reason[:200]}")


def prepare(case: Case, service: str) -> tuple[Verifier, VerifierSet]:
    """Compile a case, and bind it as a request does."""
    registry.configure(Policy(loopback=True))
    config = place(case, service)
    registry.check_args(case.kind, config, case.args)
    return registry.compile_verifier(case.kind, config), bind([Binding(case.kind, config, args=case.args)])


def measure(case: Case, seconds: float, service: str) -> Figures:
    """Measure one case. Raises: NotMeasured."""
    verifier, bound = prepare(case, service)

    async def run() -> tuple[list[float], list[float]]:
        await repeat(lambda: ask(verifier, case), WARM_UP_S, case.at_once)
        alone = await repeat(lambda: ask(verifier, case), seconds, case.at_once)
        return alone, await repeat(lambda: judge(bound, case), seconds / 2, case.at_once)

    times, judged = asyncio.run(run())
    registry.close()
    return Figures(
        case.kind, case.note, case.goal_us, len(times), pick(times, 0.5) * 1e6, pick(times, 0.99) * 1e6,
        pick(judged, 0.5) * 1e6, measure_throughput(case, seconds, service),
    )  # fmt: skip


def measure_throughput(case: Case, seconds: float, service: str) -> float:
    """Count the verdicts a second of PROCESSES processes that begin together. Raises: NotMeasured."""
    asked = json.dumps({"case": asdict(case), "seconds": seconds, "service": service})
    command = [sys.executable, "-m", "bench.verifiers.worker", asked]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(PROCESSES)]
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise NotMeasured(f"{case.kind}: a process of its own did not become ready")
        counts = [child.communicate("go\n", timeout=_START_S + 10 * seconds)[0] for child in children]
        return sum(float(count) for count in counts)
    finally:
        for child in children:
            child.kill()
            child.communicate()


@contextmanager
def run_service() -> Iterator[str]:
    """Run the service on loopback in a process of its own while the block runs; gives its address."""
    command = [sys.executable, "-m", "bench.verifiers.service"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            child.stdin.close()
            child.wait(10)


def read_case(asked: Mapping[str, Any]) -> Case:
    """Read a case that was sent to another process."""
    return Case(**asked)
