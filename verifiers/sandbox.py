"""The one place where code of users runs: a pool of pydantic-monty workers, each its own process.

Called by the `python` kind. Four fences, none of which relies on another: the interpreter knows no files, no network
and no clock to sleep on; it counts time, memory and recursion; a watchdog in this process kills a worker that is late;
the operating system limits the worker (`verifiers.sandbox_worker`) and kills it with its host. Whatever the code does,
nothing but SandboxFailed and BadProgram leaves this module.

The pool is synchronous and driven by as many threads as there are workers, so it belongs to no event loop and serves
one after another; `verifiers.turns` sees to it that slow programs never hold them all. It starts with its first use,
and again after `close`. It does not survive a fork: what was forked from a process that used it has to do without.
"""

import asyncio
import hashlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pydantic_monty as monty
from pydantic_monty._binary import find_monty_binary

from verifiers.base import Cause
from verifiers.sandbox_report import TOO_MUCH, Printed, classify, explain, place
from verifiers.turns import Turns

MEMORY_BYTES = 64 * 2**20
ADDRESS_SPACE_BYTES = 512 * 2**20
RECURSION_DEPTH = 200
MAX_RUN_S = 10.0
CHECK_S = 1.0
KILL_GRACE_S = 0.5
QUEUE_S = 30.0
RUNS_PER_WORKER = 1000
CPU_S_PER_WORKER = int(RUNS_PER_WORKER * (MAX_RUN_S + KILL_GRACE_S))
MAX_REMEMBERED = 4096

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_BUSY = "all workers of the sandbox are busy"
_OS_POLICY: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}


class SandboxFailed(Exception):
    """The code raised, was stopped, or could not be run. `stdout` is what it printed before."""

    def __init__(self, reason: str, stdout: str = "", cause: Cause = Cause.BROKE) -> None:
        super().__init__(reason, stdout)
        self.reason = reason
        self.cause = cause
        self.stdout = stdout


class BadProgram(ValueError):
    """The code cannot be a verifier. `where` is its line and column, where one is to blame."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where


@dataclass(frozen=True, slots=True)
class Ran:
    """What the code came to, and what it printed."""

    value: Any
    stdout: str


@dataclass(frozen=True, eq=False)
class _Opened:
    pool: monty.Monty
    threads: Turns
    program: Path  # in a folder of its own, which only this user may enter


class Sandbox:
    """A pool of workers. Safe to share between threads and event loops."""

    def __init__(self, workers: int | None = None, *, queue_s: float = QUEUE_S) -> None:
        self._queue_s = queue_s
        self._workers = workers or min(8, max(2, os.cpu_count() or 2)) + 1  # one program holds all but one
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._host_pid = 0
        self._checked: set[bytes] = set()

    def check(self, code: str, function: str) -> None:
        """Load the code and look for the function; blocks, a millisecond as a rule, CHECK_S and a grace at most.

        Raises: BadProgram, also where the sandbox itself cannot run.
        """
        digest = hashlib.sha256(f"{function}\0{code}".encode(errors="surrogatepass")).digest()
        if digest in self._checked:
            return
        try:
            self._submit(_load, _load, code, function).result(self._queue_s + CHECK_S + KILL_GRACE_S)
        except SandboxFailed as error:
            raise BadProgram(error.reason) from None
        except TimeoutError:
            raise BadProgram(_BUSY) from None
        if len(self._checked) >= MAX_REMEMBERED:
            self._checked.clear()
        self._checked.add(digest)

    async def run(self, code: str, call: str, inputs: Mapping[str, Any], timeout_s: float) -> Ran:
        """Run the code in a fresh interpreter, then the expression `call` with `inputs` as its names.

        `timeout_s` is at most MAX_RUN_S; waiting for a worker comes on top, `queue_s` at most.

        Raises: SandboxFailed.
        """
        timeout_s = min(timeout_s, MAX_RUN_S)
        future = asyncio.wrap_future(self._submit(hash(code), _run, f"{code}\n{call}", dict(inputs), timeout_s))
        try:
            return await asyncio.wait_for(future, self._queue_s + timeout_s + KILL_GRACE_S)
        except TimeoutError:
            raise SandboxFailed(_BUSY, cause=Cause.BUSY) from None

    def close(self) -> None:
        """Let running code end, then end the workers. The next use opens the pool again."""
        with self._lock:
            if self._host_pid != os.getpid():
                return
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.threads.close()
            opened.pool.__exit__(None, None, None)
            shutil.rmtree(opened.program.parent, ignore_errors=True)

    def _submit(self, program: Hashable, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        try:
            opened = self._open()
            return opened.threads.submit(program, partial(work, opened.pool, *arguments))
        except (OSError, RuntimeError) as error:  # no worker program, no folder for it, forked, or being closed
            raise SandboxFailed(f"the sandbox cannot start: {error}", cause=Cause.CRASHED) from None

    def _open(self) -> _Opened:
        with self._lock:
            self._host_pid = self._host_pid or os.getpid()
            if self._host_pid != os.getpid():
                raise RuntimeError("this process was forked from one that uses it")  # its threads stayed behind
            if self._opened is None:
                self._opened = _open_pool(self._workers)
                weakref.finalize(self, _remove, self._opened.program, self._host_pid)
            elif not self._opened.program.exists():  # something tidied the temporary files up
                _make_private(self._opened.program.parent)
                _write_program(self._opened.program)
            return self._opened


def _open_pool(workers: int) -> _Opened:
    """Open the pool. Workers start when they are needed."""
    program = Path(tempfile.mkdtemp(prefix="mulligan-sandbox-")) / "worker"
    _write_program(program)
    pool = monty.Monty(
        binary_path=program,
        min_processes=0,
        max_processes=workers,
        checkout_timeout=MAX_RUN_S,
        request_timeout=MAX_RUN_S + 2 * KILL_GRACE_S,
        max_checkouts_per_worker=RUNS_PER_WORKER,
        feed_duration_limit_grace=KILL_GRACE_S,
    )
    pool.__enter__()
    return _Opened(pool, Turns(workers, thread_name="verifier-sandbox"), program)


def _make_private(folder: Path) -> None:
    """Make a folder again that only this user may enter.

    Raises: PermissionError where another user was faster.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")


def _write_program(program: Path) -> None:
    """Write the program that a worker starts as: it names this process, with which the worker has to die."""
    command = [
        sys.executable, "-I", "-S", str(_WORKER), str(os.getpid()), str(CPU_S_PER_WORKER), str(ADDRESS_SPACE_BYTES),
        find_monty_binary(),
    ]  # fmt: skip
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@" 2>/dev/null\n')
    program.chmod(0o700)


def _remove(program: Path, host_pid: int) -> None:
    if os.getpid() == host_pid:
        shutil.rmtree(program.parent, ignore_errors=True)


def _checkout(pool: monty.Monty, timeout_s: float) -> monty.MontySession:
    limits: monty.ResourceLimits = {
        "max_feed_duration_secs": timeout_s,
        "max_memory": MEMORY_BYTES,
        "max_recursion_depth": RECURSION_DEPTH,
        "max_suspensions": 100,
    }
    return pool.checkout(limits=limits, os_policy=_OS_POLICY)


def _run(pool: monty.Monty, source: str, inputs: dict[str, Any], timeout_s: float) -> Ran:
    """Run in a worker thread.

    Raises: SandboxFailed.
    """
    printed, started = Printed(), time.perf_counter()
    try:
        with _checkout(pool, timeout_s) as session:
            printed.stop = partial(_kill, session.worker_pid)
            started = time.perf_counter()
            value = session.feed_run(source, inputs=inputs, print_callback=printed)
        return Ran(value, printed.text)
    except (monty.MontyError, OSError, RuntimeError, ValueError, TypeError) as error:
        if printed.too_much:
            raise SandboxFailed(TOO_MUCH, printed.text, Cause.CRASHED) from None
        late = time.perf_counter() - started >= timeout_s
        raise SandboxFailed(explain(error, source.count("\n")), printed.text, classify(error, late=late)) from None


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _load(pool: monty.Monty, code: str, function: str) -> None:
    """Run the code alone, in a worker thread, and see that it defines the function.

    Raises: BadProgram, SandboxFailed.
    """
    lines = code.count("\n") + 1
    try:
        with _checkout(pool, CHECK_S) as session:
            session.feed_run(code, print_callback=Printed())
            try:
                kind = session.feed_run(f"str(type({function}))", print_callback=Printed())
            except monty.MontyRuntimeError:
                raise BadProgram(f"the code defines no function {function}") from None
    except (monty.MontySyntaxError, monty.MontyRuntimeError) as error:
        raise BadProgram(explain(error, lines), place(error)) from None
    except (monty.MontyError, OSError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, BadProgram):
            raise
        raise SandboxFailed(explain(error, lines)) from None
    if kind != "<class 'function'>":
        raise BadProgram(f"{function} is no function")
