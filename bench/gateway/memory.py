"""Watches a gateway's memory over many requests: it has to stay flat. `--memory`."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.gateway.accounting import read_usage
from bench.gateway.measure import measure
from bench.gateway.rows import Row
from bench.gateway.run import MAIN, Plan, specify
from bench.gateway.setting import Setting
from bench.gateway.start import Cores, start_engine

STEPS = 10
FLAT = 0.05
"""How much the memory may grow from the end of the second step to the last, as a share."""

_STEP_S = 120.0


@dataclass(frozen=True)
class Memory:
    """Resident memory before, and after each step, in bytes."""

    row: str
    requests: tuple[int, ...]
    rss_bytes: tuple[int, ...]

    @property
    def growth(self) -> float:
        """How much it grew after the second step, when everything that is filled once has been."""
        return self.rss_bytes[-1] / self.rss_bytes[2] - 1

    @property
    def flat(self) -> bool:
        """Whether it did not grow."""
        return self.growth <= FLAT


def watch_memory(row: Row, plan: Plan, cores: Cores, requests: int, tell: Callable[[str], None]) -> Memory:
    """Ask many times, in steps. Raises: NotMeasured."""
    each = requests // STEPS
    with (
        tempfile.TemporaryDirectory(prefix="mulligan-bench-") as folder,
        start_engine(sys.executable, cores.rest, plan.interval_ms) as engine,
    ):
        setting = Setting(sys.executable, engine, cores, Path(folder), plan.postgres, plan.checkout)
        with row.gateway.start(setting) as gateway:
            spec = msgspec.structs.replace(specify(row, MAIN, plan, stream=False), requests=each, max_s=_STEP_S)
            sizes = [read_usage(gateway.child.pid).rss_bytes]
            asked = [0]
            for step in range(STEPS):
                tell(f"{row.title}: step {step + 1} of {STEPS}")
                found = measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)
                asked.append(asked[-1] + found.result.answered)
                sizes.append(read_usage(gateway.child.pid).rss_bytes)
    return Memory(row.id, tuple(asked), tuple(sizes))
