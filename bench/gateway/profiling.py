"""Profiles one Python gateway while it is asked: which functions its CPU time goes to. `--profile ROW`.

With py-spy, which `make bench-peers` installs: it samples from outside and costs the gateway next to nothing. Without
it cProfile inside the gateway, which makes every call dearer: small functions look worse there than they are.
"""

import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.gateway.gateways import PEERS
from bench.gateway.measure import measure
from bench.gateway.rows import Row
from bench.gateway.run import Plan, specify
from bench.gateway.setting import Setting
from bench.gateway.start import Cores, NotMeasured, start_engine

_WRITE_S = 20.0
_SAMPLE_S = 10.0
_SAMPLES_PER_S = 500
_NOT_PYTHON = frozenset({"direct", "router"})


@dataclass(frozen=True)
class Spent:
    """Where one function stands: its own time and that with what it called, as shares of the whole."""

    name: str
    own: float
    whole: float


def profile(row: Row, plan: Plan, cores: Cores, *, concurrency: int, stream: bool, functions: int) -> str:
    """Measure a row while it is profiled and render the functions that cost most.

    Raises: NotMeasured where the gateway is no Python program, or does not run.
    """
    if row.gateway.name in _NOT_PYTHON:
        raise NotMeasured(f"{row.id} is no Python program")
    spy = PEERS / "bin" / "py-spy"
    with (
        tempfile.TemporaryDirectory(prefix="mulligan-bench-") as folder,
        start_engine(sys.executable, cores.rest, plan.interval_ms) as engine,
    ):
        written = Path(folder) / "profile"
        inside = None if spy.exists() else written
        setting = Setting(sys.executable, engine, cores, Path(folder), plan.postgres, plan.checkout, inside)
        with row.gateway.start(setting) as gateway:
            spec = specify(row, concurrency, plan, stream=stream)
            measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)  # warm
            if inside is None:
                spec = msgspec.structs.replace(spec, requests=10**6, max_s=_SAMPLE_S)
                sampling = _start_sampling(spy, gateway.child.pid, written)
            else:
                sampling = None
                gateway.child.send_signal(signal.SIGUSR1)
            found = measure(gateway, engine, spec, python=sys.executable, cores=cores.rest)
            if sampling is None:
                gateway.child.send_signal(signal.SIGUSR2)
            else:
                _finish_sampling(sampling)
        _wait_for(written)
        spent = read_samples(written.read_text()) if inside is None else _read_calls(written)
    how = "sampled by py-spy" if inside is None else "under cProfile, which itself costs: read the shares"
    head = f"{row.title}, {found.result.answered:,} requests, {found.cpu_us:.0f} CPU us each, {how}.\n"
    return head + render(spent, found.cpu_us, functions)


def _start_sampling(spy: Path, pid: int, written: Path) -> subprocess.Popen[bytes]:
    command = [str(spy), "record", "--pid", str(pid), "--format", "raw", "--output", str(written), "--nonblocking"]
    command += ["--rate", str(_SAMPLES_PER_S), "--duration", str(int(_SAMPLE_S))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish_sampling(sampling: subprocess.Popen[bytes]) -> None:
    try:
        _, said = sampling.communicate(timeout=_SAMPLE_S + _WRITE_S)
    except subprocess.TimeoutExpired:
        sampling.kill()
        sampling.communicate()
        raise NotMeasured("py-spy did not end") from None
    if sampling.returncode:
        raise NotMeasured(f"py-spy: {said.decode(errors='replace')[-500:]}")


def _wait_for(written: Path) -> None:
    deadline = time.monotonic() + _WRITE_S
    while not written.exists():
        if time.monotonic() > deadline:
            raise NotMeasured(f"the profile was not written in {_WRITE_S:.0f} s")
        time.sleep(0.05)


def read_samples(text: str) -> list[Spent]:
    """Read stacks as py-spy writes them: `outer (file:1);inner (file:2) COUNT` a line."""
    own, whole = Counter[str](), Counter[str]()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_strip_line(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        whole.update(dict.fromkeys(frames, int(count)))
    total = own.total() or 1
    return [Spent(name, own[name] / total, whole[name] / total) for name in whole]


def _strip_line(frame: str) -> str:
    """Make `function (dir/file.py)` of `function (/long/dir/file.py:12)`."""
    name, _, place = frame.rpartition(" (")
    if not name:
        return "(no Python frame)"
    path = place.rstrip(")").rpartition(":")[0]
    return f"{name} ({'/'.join(Path(path).parts[-2:])})"


def _read_calls(written: Path) -> list[Spent]:
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = vars(pstats.Stats(str(written)))["stats"]
    total = sum(own for _, _, own, _, _ in stats.values()) or 1.0
    return [
        Spent(f"{name} ({'/'.join(Path(file).parts[-2:])})", own / total, whole / total)
        for (file, _, name), (_, _, own, whole, _) in stats.items()
    ]


def render(spent: list[Spent], cpu_us: float, functions: int) -> str:
    """Render the functions by their own time, then those that call them by the whole."""
    lines: list[str] = []
    root = max((one.whole for one in spent), default=0.0)
    spent = [one for one in spent if one.own or one.whole < root]  # without the way down to the event loop
    for title, key in (("own time", lambda one: one.own), ("with what they call", lambda one: one.whole)):
        lines += ["", f"| by {title} | own us | whole us | whole |", "|---|---:|---:|---:|"]
        for one in sorted(spent, key=key, reverse=True)[:functions]:
            shares = f"{one.own * cpu_us:.1f} | {one.whole * cpu_us:.1f} | {one.whole:.1%}"
            lines.append(f"| `{one.name.replace('|', ' ')}` | {shares} |")
    return "\n".join(lines)
