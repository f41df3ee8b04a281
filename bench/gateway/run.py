"""Runs the benchmark: starts every gateway once, and measures the rows round by round, so that ratios hold in one run.

Called by the command line in `bench.gateway.__main__`. A row that cannot be measured keeps the reason in its place.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway.load import Spec
from bench.gateway.measure import Measurement, measure
from bench.gateway.mulligan import LogIncomplete
from bench.gateway.rows import Gateway, Row
from bench.gateway.script import CHUNKS, PASSING, request_body
from bench.gateway.setting import ROOT, USUAL_POSTGRES, Setting
from bench.gateway.start import Cores, NotMeasured, Started, start_engine

Tell = Callable[[str], None]

MAIN = 32
"""The concurrency that the goals are set at."""

_FEWEST = 40


@dataclass(frozen=True)
class Plan:
    """How much is asked."""

    requests: int = 1200
    rounds: int = 9
    concurrencies: tuple[int, ...] = (MAIN, 1, 128)
    streams: tuple[int, ...] = (MAIN, 1)  # concurrencies of streams; none: no streams
    stream_requests: int = 160
    max_s: float = 15.0
    interval_ms: float = 4.0
    postgres: str = USUAL_POSTGRES
    checkout: Path = ROOT


@dataclass
class Findings:
    """What was measured: by row, concurrency and whether it was a stream."""

    measurements: dict[tuple[str, int, bool], list[Measurement]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)

    def median(self, row: str, concurrency: int, what: str, *, stream: bool = False) -> float | None:
        """Pick the median over the rounds of one figure; None where it was not measured."""
        found = self.measurements.get((row, concurrency, stream))
        if not found:
            return None
        return statistics.median(one.to_json()[what] for one in found)

    def span(self, row: str, concurrency: int, what: str) -> tuple[float, float] | None:
        """Pick the least and the most of one figure over the rounds."""
        found = [one.to_json()[what] for one in self.measurements.get((row, concurrency, False), ())]
        return (min(found), max(found)) if found else None

    def median_difference(
        self, row: str, other: str, concurrency: int, what: str, *, stream: bool = False
    ) -> float | None:
        """Pick the median over the rounds of how much more one row has than another in the same round."""
        pairs = zip(
            self.measurements.get((row, concurrency, stream), ()),
            self.measurements.get((other, concurrency, stream), ()),
            strict=False,  # a row that broke off has fewer rounds
        )
        differences = [one.to_json()[what] - another.to_json()[what] for one, another in pairs]
        return statistics.median(differences) if differences else None

    def median_ratio(self, row: str, other: str, concurrency: int, what: str) -> float | None:
        """Pick the median over the rounds of one row's figure divided by another's in the same round."""
        pairs = zip(
            self.measurements.get((row, concurrency, False), ()),
            self.measurements.get((other, concurrency, False), ()),
            strict=False,
        )
        ratios = [one.to_json()[what] / another.to_json()[what] for one, another in pairs]
        return statistics.median(ratios) if ratios else None


def specify(row: Row, concurrency: int, plan: Plan, *, stream: bool) -> Spec:
    """Say what one measurement asks."""
    wanted = plan.stream_requests if stream else plan.requests
    if concurrency == 1:
        wanted //= 16 if stream else 8
    requests = max(_FEWEST if not stream else 4, int(wanted * row.share))
    return Spec(
        host="",
        port=0,
        body=request_body(row.model, stream=stream, fail_once=row.fail_once).decode(),
        text=PASSING,
        requests=requests,
        warm_up=max(concurrency, min(200, requests // 4)),
        concurrency=concurrency,
        max_s=plan.max_s,
        stream=stream,
        chunks=CHUNKS if stream else 0,
        stagger_s=CHUNKS * plan.interval_ms / 1000 if stream and concurrency > 1 else 0.0,
        outcome=row.outcome,
    )


def list_round(rows: list[Row], plan: Plan, turn: int) -> list[tuple[Row, int, bool]]:
    """List one round: all rows side by side at one concurrency, then at the next.

    Every round has the first concurrency, of whole answers and of streams; the others come every third round. Rows
    of workers are measured at the first alone.
    """
    count = 1 if turn % 3 else None
    main = plan.concurrencies[0]
    whole = [
        (row, concurrency, False)
        for concurrency in plan.concurrencies[:count]
        for row in rows
        if concurrency == main or not row.workers
    ]
    streams = [row for row in rows if row.streams and not row.workers]
    return whole + [(row, concurrency, True) for concurrency in plan.streams[:count] for row in streams]


def list_measurements(rows: list[Row], plan: Plan) -> list[tuple[int, Row, int, bool]]:
    """List all rounds, each with its number from 0."""
    return [(turn, *one) for turn in range(plan.rounds) for one in list_round(rows, plan, turn)]


def run(rows: list[Row], plan: Plan, cores: Cores, tell: Tell) -> Findings:
    """Measure rows. `tell` hears what is done, once a measurement."""
    findings = Findings()
    with (
        tempfile.TemporaryDirectory(prefix="mulligan-bench-") as folder,
        start_engine(sys.executable, cores.rest, plan.interval_ms) as engine,
    ):
        setting = Setting(sys.executable, engine, cores, Path(folder), plan.postgres, plan.checkout)
        with start_all(rows, setting, findings, tell) as gateways:
            for turn, row, concurrency, stream in list_measurements(rows, plan):
                tell(f"round {turn + 1}: {row.title}, {'streams ' if stream else ''}{concurrency} at once")
                if row.id in findings.missing:
                    continue
                spec = specify(row, concurrency, plan, stream=stream)
                gateway = gateways[row.gateway.name]
                try:
                    one = measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)
                except NotMeasured as error:
                    findings.missing[row.id] = str(error)
                    findings.flaws.append(str(error))
                else:
                    findings.measurements.setdefault((row.id, concurrency, stream), []).append(one)
    return findings


@contextmanager
def start_all(rows: list[Row], setting: Setting, findings: Findings, tell: Tell) -> Iterator[dict[str, Started]]:
    """Start every gateway that the rows need; what cannot be started is noted."""
    gateways = {row.gateway.name: row.gateway for row in rows}
    open_ones: list[AbstractContextManager[Started]] = []
    started: dict[str, Started] = {}
    try:
        for name, gateway in gateways.items():
            tell(f"starting {name}")
            opened = gateway.start(setting)
            try:
                started[name] = (
                    opened.__enter__()
                )  # not in an ExitStack: one that fails to close must not hide the rest
                open_ones.append(opened)
            except NotMeasured as error:
                _note_missing(rows, gateway, str(error), findings)
        yield started
    finally:
        for opened in reversed(open_ones):
            try:
                opened.__exit__(None, None, None)
            except LogIncomplete as error:
                findings.flaws.append(str(error))


def _note_missing(rows: list[Row], gateway: Gateway, reason: str, findings: Findings) -> None:
    findings.missing |= {row.id: reason for row in rows if row.gateway is gateway}
