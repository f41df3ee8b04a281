"""What metrics cost a request: the counting alone beside prometheus-client's, and a whole request with and without it.

    python -m bench.telemetry [--rounds 9] [--requests 2000]

The whole request runs over the API in memory (no socket, no database), so its share is the largest that can be. All
rows take turns within a round, and ratios are those of the same round.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import structlog

from server.domain import Attempt, BindingMode, Episode, LoggedVerdict, Outcome, RetryPolicy, Usage, VerifyMode
from server.telemetry import catalogue as c
from server.telemetry.meter import Meter
from server.telemetry.tally import Tally
from tests.fixtures.api import make_api

COUNTS = 20_000


def make_finished() -> Episode:
    """Make an episode that passed at once, checked by one verifier."""
    verdict = LoggedVerdict("four@1", "passed", 1.0, duration_ms=0.02, mode=BindingMode.ENFORCE)
    answered = Attempt(1, {}, "stop", Usage(100, 20), "passed", verdicts=(verdict,), engine_ms=120.0)
    request = ("ep_1", "sums", "sums", "model", "", "key_1", None, (), VerifyMode.ENFORCE, RetryPolicy())
    return Episode(*request, outcome=Outcome.PASSED, attempts=[answered], duration_ms=121.0)


def time_tally() -> float:
    """Time our own counting: microseconds a request."""
    tally, episode = Tally(), make_finished()

    def count() -> None:
        tally.count_queued(0.0)
        tally.count_episode(episode)
        tally.count_request("chat", 200, 0.121)

    return time_each(count)


def time_library() -> float:
    """Time the same with prometheus-client, its children looked up as they have to be; by its environment's mode."""
    import prometheus_client as library  # noqa: PLC0415 -- its mode is chosen when it is loaded

    made: dict[str, Any] = {}
    for metric in c.CATALOGUE:
        if metric.kind == "histogram":
            made[metric.name] = library.Histogram(metric.name, metric.about, metric.labels, buckets=metric.bounds)
        elif metric.kind == "counter":
            made[metric.name] = library.Counter(metric.name, metric.about, metric.labels)
    verdict = make_finished().attempts[0].verdicts[0]

    def count() -> None:
        made[c.QUEUE_S.name].observe(0.0)
        made[c.EPISODES.name].labels("sums", "passed").inc()
        made[c.EPISODE_S.name].labels("passed").observe(0.121)
        made[c.ATTEMPTS.name].labels("sums", "attempt", "passed").inc()
        made[c.TOKENS.name].labels("sums", "attempt", "prompt").inc(100)
        made[c.TOKENS.name].labels("sums", "attempt", "completion").inc(20)
        made[c.ENGINE_S.name].labels("attempt").observe(0.12)
        made[c.VERDICTS.name].labels(verdict.verifier, "passed", "enforce").inc()
        made[c.VERIFY_S.name].labels(verdict.verifier).observe(0.00002)
        made[c.REQUESTS.name].labels("chat", "200").inc()
        made[c.REQUEST_S.name].labels("chat").observe(0.121)

    return time_each(count)


def time_each(work: Callable[[], None]) -> float:
    """Time one call in microseconds of this thread's CPU."""
    for _ in range(1000):
        work()
    began = time.thread_time()
    for _ in range(COUNTS):
        work()
    return (time.thread_time() - began) / COUNTS * 1e6


def time_elsewhere(row: str) -> float:
    """Time the library in a process of its own, for its mode holds for a whole process."""
    folder = tempfile.mkdtemp()
    environment = {**os.environ, **({"PROMETHEUS_MULTIPROC_DIR": folder} if row == "multiprocess" else {})}
    try:
        command = [sys.executable, "-m", "bench.telemetry", "--only-library"]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    finally:
        shutil.rmtree(folder)


async def time_requests(meter: Meter | None, requests: int) -> float:
    """Time whole requests over the API in memory: microseconds of CPU a request."""
    api = make_api("4")
    object.__setattr__(api.context, "meter", meter)
    fields: Any = {"verifiers": [{"kind": "regex", "config": {"pattern": "4"}}]}
    for _ in range(50):
        assert (await api.chat(**fields)).status == 200
    began = time.process_time()
    for _ in range(requests):
        await api.chat(**fields)
    return (time.process_time() - began) / requests * 1e6


def measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """Measure every row in every round."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        row = {
            "counting: plain dicts": time_tally(),
            "counting: prometheus-client, one process": time_elsewhere("alone"),
            "counting: prometheus-client, multiprocess mode": time_elsewhere("multiprocess"),
            "a request, metrics off": asyncio.run(time_requests(None, requests)),
            "a request, metrics on": asyncio.run(time_requests(Meter(), requests)),
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def main() -> None:
    """Run the bench and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--only-library", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_library:
        print(time_library())
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    found = measure(options.rounds, options.requests)
    base = found["counting: plain dicts"]
    print("| | us a request, median | least-most | x the dicts |\n|---|---:|---:|---:|")
    for name, values in found.items():
        times = statistics.median(value / own for value, own in zip(values, base, strict=True))
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f}-{max(values):.2f} | {times:.2f} |")
    on, off = found["a request, metrics on"], found["a request, metrics off"]
    print(f"\nmetrics on / off: {statistics.median(a / b for a, b in zip(on, off, strict=True)):.3f}")
    print(json.dumps({name: [round(value, 3) for value in values] for name, values in found.items()}))


if __name__ == "__main__":
    main()
