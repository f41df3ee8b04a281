"""Measures one row once: lets the load generator ask, and reads the kernel's accounting before and after."""

import subprocess
import threading
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from bench.gateway.accounting import Usage, read_clocks_s, read_usage
from bench.gateway.load import Result, Spec
from bench.gateway.start import NotMeasured, Started, open_child, stop_child

_START_S = 30.0


@dataclass(frozen=True)
class Measurement:
    """One measurement. The times of `result` are in milliseconds; CPU time is that of the gateway's own processes."""

    result: Result
    cpu_s: float
    rss_bytes: int
    engine_cpu_us: float
    beside_cpu_us: float  # of the database's processes, a request; 0 where there are none or they cannot be seen

    @property
    def cpu_us(self) -> float:
        """CPU-microseconds a request."""
        return self.cpu_s / self.result.answered * 1e6

    @property
    def chunk_us(self) -> float:
        """CPU-microseconds a streamed chunk, the request's own share included."""
        return self.cpu_s / self.result.chunks * 1e6 if self.result.chunks else 0.0

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.result.answered / self.result.elapsed_s

    def to_json(self) -> dict[str, Any]:
        """Render it for machines."""
        figures = {"cpu_us": self.cpu_us, "chunk_us": self.chunk_us, "per_s": self.per_s}
        own = {name: value for name, value in asdict(self).items() if name != "result"}
        return {**figures, **own, **msgspec.to_builtins(self.result)}


def measure(gateway: Started, engine: Started, spec: Spec, *, python: str, cores: frozenset[int]) -> Measurement:
    """Measure once. Raises: NotMeasured where an answer was wrong or missing."""
    spec = msgspec.structs.replace(
        spec, host="127.0.0.1", port=gateway.port, headers={**spec.headers, **gateway.headers}
    )
    child = open_child([python, "-m", "bench.gateway.load"], cores, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watchdog = threading.Timer(2 * (spec.max_s + spec.patience_s) + _START_S, child.kill)
    watchdog.start()
    try:
        line = _tell(child, msgspec.json.encode(spec))
        if not line.startswith(b"ready "):
            raise NotMeasured(f"{gateway.name} answers wrongly: {_why(line)}")
        gateway.answered += int(line.split()[1])
        beside = gateway.find_beside() if gateway.find_beside else []
        before, engine_before, beside_before = _read_all(gateway, engine, beside)
        line = _tell(child, b"go")
        after, engine_after, beside_after = _read_all(gateway, engine, beside)
        result = msgspec.json.decode(line, type=Result)
    except (msgspec.MsgspecError, OSError) as error:
        raise NotMeasured(f"{gateway.name}: the load generator broke off: {error}") from error
    finally:
        watchdog.cancel()
        stop_child(child)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    if result.wrong or not result.answered:
        raise NotMeasured(f"{gateway.name}: {result.wrong} wrong of {result.answered}: {result.first_wrong}")
    gateway.answered += result.answered
    engine_us = (engine_after.cpu_s - engine_before.cpu_s) / result.answered * 1e6
    beside_us = sum(now - beside_before[pid] for pid, now in beside_after.items()) / result.answered * 1e6
    return Measurement(result, after.cpu_s - before.cpu_s, after.rss_bytes, engine_us, beside_us)


def _read_all(gateway: Started, engine: Started, beside: list[int]) -> tuple[Usage, Usage, dict[int, float]]:
    return read_usage(gateway.child.pid), read_usage(engine.child.pid), read_clocks_s(beside)


def _tell(child: subprocess.Popen[bytes], line: bytes) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + b"\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def _why(line: bytes) -> str:
    try:
        result = msgspec.json.decode(line, type=Result)
    except msgspec.MsgspecError:
        return line.decode(errors="replace") or "the load generator ended"
    return f"{result.wrong} of {result.answered} while warming up: {result.first_wrong}"
