"""What an isolated worker does for the kind `code_tests`: two throw-away processes, watched by this one.

The worker forks for each job (`verifiers.isolation`, `fork_each`). In that fork `prepare` makes the answer's process
before the job is read, so that no tests are in its memory, of this job or of any before. `judge` then reads the tests,
makes their process, gives each its source, and waits for the report with a timer. Both are killed when it is in.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from verifiers import code_tests_answer, code_tests_modules, code_tests_runner, isolation_limits, isolation_seccomp
from verifiers.code_tests_source import BadTests, NoCode, find_code, plan_tests
from verifiers.code_tests_wire import Wire

MEMORY_BYTES = 512 * 2**20
CPU_S = 60
TESTS_GRACE_S = 1.0
STDOUT_BYTES = 4096
MAX_REPORT_BYTES = 8 * 2**20
MAX_FAILURES = 3
_UNLOCKED = 99

code_tests_modules.load()


@dataclass
class Prepared:
    """The answer's process, which waits for its source, and our ends of its pipes."""

    pid: int
    source: int
    calls: int
    replies: int
    printed: int
    prints: int


@dataclass
class _Watched:
    """What came of a run: what was printed, the tests' report, and whether it was late."""

    printed: bytearray = field(default_factory=bytearray)
    printed_bytes: int = 0
    report: bytearray = field(default_factory=bytearray)
    late: bool = False


def prepare() -> Prepared:
    """Make the answer's process. It reads its source from one pipe, calls from another, and answers on a third."""
    source, source_in = os.pipe()
    calls, calls_in = os.pipe()
    replies, replies_in = os.pipe()
    printed, prints = os.pipe()

    def serve() -> None:
        code = _read_all(source).decode(errors="replace")
        code_tests_answer.serve(code, Wire(calls, replies_in))

    pid = _fork(serve, prints, keep=(source, calls, replies_in))
    for fd in (source, calls, replies_in):
        os.close(fd)
    return Prepared(pid, source_in, calls_in, replies, printed, prints)


def judge(job: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """Run an answer against tests, or, without an answer, only read the tests.

    Gives one of `flaw` (with `where`) of the tests, `no_code`, `broken` (the answer does not load), `late` (the tests),
    `died` (the tests' process), or `tests` and `failed`, their numbers, with the first
    `failures`; and what was `printed`.
    """
    children = [prepared.pid]
    try:
        try:
            plan = plan_tests(job["tests"], job.get("entry_points"))
        except BadTests as error:
            return {"flaw": str(error), "where": error.where}
        if "answer" not in job:
            return {"tests": len(plan.units), "entry_points": list(plan.entry_points)}
        try:
            code = find_code(job["answer"], job["block"])
        except NoCode as error:
            return {"no_code": str(error)}
        deadline = time.monotonic() + job["timeout_s"]
        report, reports = os.pipe()

        def run_tests() -> None:
            wire = Wire(prepared.replies, prepared.calls, deadline)
            told = code_tests_runner.run(job["tests"], plan, wire, objects=job["objects"])
            _write_all(reports, json.dumps(told).encode())

        children.append(_fork(run_tests, prepared.prints, keep=(prepared.replies, prepared.calls, reports)))
        for fd in (reports, prepared.replies, prepared.calls, prepared.prints):
            os.close(fd)
        watched = _watch(prepared, report, code.encode(errors="replace"), deadline + TESTS_GRACE_S)
    finally:
        statuses = [_end(pid) for pid in children]
    return {**_tell(watched, statuses[-1]), "printed": _tell_printed(watched)}


def _tell(watched: _Watched, status: int) -> dict[str, Any]:
    if watched.late:
        return {"late": True}
    try:
        told = json.loads(watched.report)
    except ValueError:
        return {"died": f"by signal {-status}" if status < 0 else f"with status {status}"}
    if "broken" in told:
        return told
    failures = [[name, why] for name, passed, why in told["results"] if not passed]
    return {"tests": len(told["results"]), "failed": len(failures), "failures": failures[:MAX_FAILURES]}


def _tell_printed(watched: _Watched) -> str:
    text = watched.printed.decode(errors="replace").replace("\0", "\ufffd")
    more = watched.printed_bytes - len(watched.printed)
    return f"{text}\n[{more} more bytes]" if more else text


def _watch(prepared: Prepared, report: int, code: bytes, deadline: float) -> _Watched:
    """Give the answer its source, and collect what comes until the tests have reported or time is up."""
    watched = _Watched()
    rest = memoryview(code)
    poll = select.poll()
    poll.register(report, select.POLLIN)
    poll.register(prepared.printed, select.POLLIN)
    poll.register(prepared.source, select.POLLOUT)
    os.set_blocking(prepared.source, False)
    while True:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            watched.late = True
            return watched
        for fd, _ in ready:
            if fd == prepared.source:
                with contextlib.suppress(BlockingIOError):
                    try:
                        rest = rest[os.write(fd, rest) :] if rest else rest
                    except BrokenPipeError:  # it ended already
                        rest = rest[:0]
                if not rest:
                    poll.unregister(fd)
                    os.close(fd)
                continue
            part = os.read(fd, 2**16)
            if fd == prepared.printed:
                watched.printed += part[: STDOUT_BYTES - len(watched.printed)]
                watched.printed_bytes += len(part)
                if not part:
                    poll.unregister(fd)
            elif not part or len(watched.report) > MAX_REPORT_BYTES:
                _drain(prepared.printed, watched)
                return watched
            else:
                watched.report += part


def _drain(fd: int, watched: _Watched) -> None:
    """Take what was printed last."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        part = os.read(fd, 2**16)
        watched.printed += part[: STDOUT_BYTES - len(watched.printed)]
        watched.printed_bytes += len(part)


def _fork(work: Callable[[], None], prints: int, keep: tuple[int, ...]) -> int:
    """Run `work` in a process that can compute, and read and write the pipes that it keeps."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(work, prints, keep, parent)
    return pid


def _become(work: Callable[[], None], prints: int, keep: tuple[int, ...], parent: int) -> NoReturn:
    status = _UNLOCKED
    try:
        for fd in (1, 2):
            os.dup2(prints, fd)
        _close_others({0, 1, 2, *keep})
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- /dev/null
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
        bound = isolation_limits.die_with(parent)
        bound &= isolation_limits.limit(memory_bytes=MEMORY_BYTES, cpu_s=CPU_S, open_files=32)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        gc.enable()
        if bound and isolation_seccomp.allow_computing_only():
            status = 1
            work()
            status = 0
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(status)


def _close_others(keep: set[int]) -> None:
    for fd in range(isolation_limits.MAX_OPEN_FILES):  # there can be none beyond; os.closerange(0, 0) closes them all
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _end(pid: int) -> int:
    """Kill a process unless it ended; its exit code."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended == 0:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 2**16):
        parts.append(part)
    return b"".join(parts)


def _write_all(fd: int, body: bytes) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(fd, rest) :]
