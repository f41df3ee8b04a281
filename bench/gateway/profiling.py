"""Profiles one Python gateway while it is asked: which functions its CPU time goes to. `--profile ROW`."""

import pstats
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.gateway.measure import measure
from bench.gateway.rows import Row
from bench.gateway.run import Plan, specify
from bench.gateway.setting import Setting
from bench.gateway.start import Cores, NotMeasured, start_engine

_WRITE_S = 20.0
_UNPROFILED = frozenset({"direct", "router", "litellm"})


def profile(row: Row, plan: Plan, cores: Cores, *, concurrency: int, stream: bool, functions: int) -> str:
    """Measure a row once under cProfile and render the functions that cost most.

    Raises: NotMeasured where the gateway is not ours to profile, or does not run.
    """
    if row.gateway.name in _UNPROFILED:
        raise NotMeasured(f"{row.id} is no Python program of ours: only Mulligan's rows and the plain proxies are")
    with (
        tempfile.TemporaryDirectory(prefix="mulligan-bench-") as folder,
        start_engine(sys.executable, cores.rest, plan.interval_ms) as engine,
    ):
        written = Path(folder) / "profile"
        setting = Setting(sys.executable, engine, cores, Path(folder), plan.postgres, plan.checkout, written)
        with row.gateway.start(setting) as gateway:
            spec = specify(row, concurrency, plan, stream=stream)
            measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)  # warm
            gateway.child.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            found = measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)
            gateway.child.send_signal(signal.SIGUSR2)
            _wait_for(written)
        requests = found.result.answered + spec.warm_up
        return _render(written, functions, requests)


def _wait_for(written: Path) -> None:
    deadline = time.monotonic() + _WRITE_S
    while not written.exists():
        if time.monotonic() > deadline:
            raise NotMeasured(f"the profile was not written in {_WRITE_S:.0f} s")
        time.sleep(0.05)


def _render(written: Path, functions: int, requests: int) -> str:
    """Render the functions by the time inside each, in microseconds a request."""
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = vars(pstats.Stats(str(written)))["stats"]
    total_us = sum(own for _, _, own, _, _ in stats.values()) / requests * 1e6
    lines = [
        f"{requests} requests, {total_us:.0f} us each under the profiler, which itself costs: read the shares.",
        "",
        "| share | own us | with callees | calls | function |",
        "|------:|-------:|-------------:|------:|----------|",
    ]
    ranked = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)
    for place, (_, calls, own, cumulated, _) in ranked[:functions]:
        each, whole = own / requests * 1e6, cumulated / requests * 1e6
        lines.append(
            f"| {each / total_us:5.1%} | {each:6.1f} | {whole:12.1f} | {calls / requests:5.2f} | {_name(place)} |"
        )
    return "\n".join(lines)


def _name(place: tuple[str, int, str]) -> str:
    """Name a function by the end of its file's path; built-in ones have none."""
    file, line, name = place
    if file == "~":
        return f"`{name.strip('<>')}`"
    return f"`{'/'.join(Path(file).parts[-2:])}:{line} {name}`"
