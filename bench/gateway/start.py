"""Starts and stops processes of the benchmark: on chosen cores, waiting until they answer, never leaving one behind."""

import ctypes
import http.client
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded here: between fork and exec as little as possible is done


class NotMeasured(Exception):
    """Says why a row has no figures."""


@dataclass(frozen=True)
class Cores:
    """Which cores the gateway gets, and which the engine, the load and everything else."""

    gateway: frozenset[int]
    rest: frozenset[int]

    @property
    def pinned(self) -> bool:
        """Whether the gateway has cores of its own."""
        return not self.gateway & self.rest


def pick_cores(count: int = 1) -> Cores:
    """Give the gateway the last `count` cores where others are left, else let all share all."""
    there = sorted(os.sched_getaffinity(0))
    if len(there) <= count:
        return Cores(frozenset(there), frozenset(there))
    return Cores(frozenset(there[-count:]), frozenset(there[:-count]))


@dataclass
class Started:
    """A process that listens."""

    name: str
    child: subprocess.Popen[bytes]
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    answered: int = 0
    """Answers that it gave and that were right: as many have to be in the log."""
    find_beside: Callable[[], list[int]] | None = None
    """Finds the processes that work for it without being its own: a database's."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Make one request. Raises: OSError, http.client.HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **self.headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def find_port() -> int:
    """Find a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def open_child(command: Sequence[str], cores: frozenset[int], **options: object) -> subprocess.Popen[bytes]:
    """Start a process on some cores, in a session of its own. Raises: OSError."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # a child inherits it from its first instruction on
    try:
        return subprocess.Popen(command, start_new_session=True, preexec_fn=_tie_to_parent, **options)  # noqa: PLW1509  # pyright: ignore[reportCallIssue, reportArgumentType]
    finally:
        os.sched_setaffinity(0, before)


def _tie_to_parent() -> None:
    """Let the kernel kill this process when the benchmark's own ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stop_child(child: subprocess.Popen[bytes]) -> None:
    """Stop a process and whatever it started."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(_STOP_S)


@contextmanager
def start_gateway(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    cores: frozenset[int],
    folder: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    ready_path: str = "/health",
    ready_s: float = 60.0,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Started]:
    """Run a gateway while the block runs; what it prints goes to a file in the folder.

    Raises: NotMeasured where it does not become ready.
    """
    printed = folder / f"{name.replace(' ', '-').replace('/', '-')}.log"
    with printed.open("wb") as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = open_child(command, cores, env=env, cwd=cwd, **options)
        started = Started(name, child, port, headers or {})
        try:
            _wait_until_ready(started, ready_path, ready_s, printed)
            yield started
        finally:
            stop_child(child)


def _wait_until_ready(started: Started, path: str, ready_s: float, printed: Path) -> None:
    deadline, seen = time.monotonic() + ready_s, "no answer"
    while time.monotonic() < deadline and started.child.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            status, body = started.ask("GET", path)
            if status == 200:
                return
            seen = f"{status} {body[:200]!r}"
        time.sleep(0.1)
    said = printed.read_text(errors="replace")[-1500:]
    raise NotMeasured(f"{started.name} did not become ready ({seen}): {said}")


@contextmanager
def start_engine(python: str, cores: frozenset[int], interval_ms: float) -> Iterator[Started]:
    """Run the mock engine while the block runs. It ends when this process does."""
    command = [python, "-m", "bench.gateway.engine", "--interval-ms", str(interval_ms)]
    child = open_child(command, cores, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], 30)[0]:
            raise NotMeasured("the mock engine did not start in 30 s")
        yield Started("engine", child, int(child.stdout.readline()))
    finally:
        stop_child(child)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
