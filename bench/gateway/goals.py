"""The goals of the hot path, each judged from one run. Called by `bench.gateway.report`.

They are set at concurrency 32. Ratios and differences are taken within each round, and the median of the rounds counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.gateway.memory import FLAT, Memory
from bench.gateway.run import MAIN, Findings

DATABASES = {"sqlite": "SQLite", "postgres": "Postgres"}


@dataclass(frozen=True)
class Goal:
    """One goal: at most `bound`; `measured` None where the run did not have what it needs."""

    text: str
    bound: float
    unit: str
    measured: float | None

    def show(self, value: float) -> str:
        """Render a value of this goal's."""
        if self.unit == "share":
            return f"1/{1 / value:,.0f}"
        if self.unit == "growth":
            return f"{value * 100:+.1f} %"
        return f"{value:,.2f} {self.unit}"

    @property
    def verdict(self) -> str:
        """Say whether it was met."""
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.bound else "not met"


def judge_goals(findings: Findings, memories: list[Memory]) -> list[Goal]:
    """Judge every goal on every database that was measured."""
    return [goal for kind, shown in DATABASES.items() for goal in _judge(findings, memories, kind, shown)]


def _judge(findings: Findings, memories: list[Memory], kind: str, shown: str) -> Iterator[Goal]:
    plain, checked, recovered = f"mulligan-{kind}", f"checked-{kind}", f"recovered-{kind}"
    if not any(name in (plain, checked, recovered) for name, *_ in findings.measurements) and not memories:
        return

    def ratio(row: str, other: str) -> float | None:
        return findings.median_ratio(row, other, MAIN, "cpu_us")

    yield Goal(f"no verifier, CPU beside sglang-router ({shown})", 2.0, "x", ratio(plain, "router"))
    yield Goal(f"... the stretch ({shown})", 1.5, "x", ratio(plain, "router"))
    yield Goal(f"no verifier, CPU beside LiteLLM ({shown})", 1 / 60, "share", ratio(plain, "litellm"))
    added = findings.median_difference(checked, plain, MAIN, "cpu_us")
    yield Goal(f"a json_schema verdict adds ({shown})", 15.0, "us", added)
    yield Goal(f"fails once, CPU beside no verifier ({shown})", 4.0, "x", ratio(recovered, plain))
    chunk = findings.median(plain, MAIN, "chunk_us", stream=True)
    yield Goal(f"a streamed chunk ({shown})", 20.0, "us", chunk)
    first = findings.median_difference(plain, "direct", MAIN, "first_p50_ms", stream=True)
    yield Goal(f"added to the first chunk, p50 ({shown})", 1.0, "ms", first)
    grown = next((memory.growth for memory in memories if memory.row == plain), None)
    asked = next((f"{memory.requests[-1]:,}" for memory in memories if memory.row == plain), "100,000")
    yield Goal(f"memory grown over {asked} requests ({shown})", FLAT, "growth", grown)
