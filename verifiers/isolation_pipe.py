"""The host's end of one isolated worker: starts it, sends it jobs, kills it. Called by `verifiers.isolation` alone."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from verifiers.base import Cause

START_S = 60.0
MAX_JOB_BYTES = 16 * 2**20
_SCRIPT = Path(__file__).with_name("isolation_worker.py")
_HEAD_BYTES = 4
_FRAME_SLACK_BYTES = 4096


class IsolationFailed(Exception):
    """There is no result. `reason` says why, in our words, and `cause` is its class."""

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause


class Worker:
    """One worker process. One thread at a time may use it.

    Raises: IsolationFailed where it does not start within START_S.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.runs = 0
        self._max_bytes = options["max_result_bytes"]
        options = {**options, "host_pid": os.getpid(), "path": str(_SCRIPT.parent.parent)}
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_SCRIPT), json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={}, cwd="/", start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise IsolationFailed(f"no worker starts: {error}", Cause.CRASHED) from None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        try:
            hello = self._read(time.monotonic() + START_S, 2**20)
        except IsolationFailed:
            self.kill()
            raise
        if "broken" in hello:
            self.kill()
            raise IsolationFailed(f"the worker cannot start: {hello['broken']}", Cause.BROKE)
        self.hardening: dict[str, bool] = hello["hardening"]

    def run(self, job: bytes, timeout_s: float) -> Any:
        """Run one job; after any failure but the function's own error the worker is dead.

        Raises: IsolationFailed.
        """
        self.runs += 1
        deadline = time.monotonic() + timeout_s
        try:
            self._write(len(job).to_bytes(_HEAD_BYTES, "big") + job, deadline)
            reply = self._read(deadline, self._max_bytes)
        except IsolationFailed:
            self.kill()
            raise
        if "value" in reply:
            return reply["value"]
        cause = Cause(reply["cause"])
        if cause is Cause.CRASHED:  # out of memory: what it has left is not enough for the next job
            self.kill()
        raise IsolationFailed(reply["reason"], cause)

    @property
    def is_dead(self) -> bool:
        """Whether it was killed, or ended by itself."""
        return self._child.returncode is not None or self._find_end() is not None

    def kill(self) -> None:
        """Kill it with all that it started, and wait for its end."""
        if self._child.returncode is None:  # not waited for, so nobody else can have its number by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _write(self, frame: bytes, deadline: float) -> None:
        rest = memoryview(frame)
        while rest:
            _wait(self._stdin, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._explain_end() from None

    def _read(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        """Read one frame."""
        length = int.from_bytes(self._read_exactly(_HEAD_BYTES, deadline), "big")
        if length > max_bytes + _FRAME_SLACK_BYTES:
            raise IsolationFailed(f"the worker's result has {length:,} bytes", Cause.BAD_RETURN)
        try:
            reply = json.loads(self._read_exactly(length, deadline))
        except (ValueError, RecursionError):
            raise IsolationFailed("the worker's result is no JSON", Cause.BAD_RETURN) from None
        if not isinstance(reply, dict):
            raise IsolationFailed("the worker's result is no object", Cause.BAD_RETURN)
        return reply

    def _read_exactly(self, count: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while count:
            _wait(self._stdout, select.POLLIN, deadline)
            try:
                part = os.read(self._stdout, min(count, 2**20))
            except BlockingIOError:
                continue
            if not part:
                raise self._explain_end()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _find_end(self) -> os.waitid_result | None:
        """Look whether it ended, and leave it to be waited for."""
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return None

    def _explain_end(self) -> IsolationFailed:
        deadline = time.monotonic() + 1.0
        while (end := self._find_end()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if end is None:
            return IsolationFailed("the worker closed its pipe", Cause.CRASHED)
        how = "with status" if end.si_code == os.CLD_EXITED else "by signal"
        return IsolationFailed(f"the worker ended {how} {end.si_status}", Cause.CRASHED)


def _wait(fd: int, events: int, deadline: float) -> None:
    """Wait in this thread until the pipe is ready.

    Raises: IsolationFailed at the deadline.
    """
    poll = select.poll()
    poll.register(fd, events)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise IsolationFailed("it ran longer than its time and was killed", Cause.TIMEOUT)
        if poll.poll(left_s * 1000):
            return
