"""Runs our own code on hostile input in processes that can be killed: a parser, a solver, a database engine.

Called by the kinds that need it. A job is JSON in, JSON out, for one function that the worker has imported before it
says that it is ready. A worker has no environment and no standard streams, is limited by the operating system, is
killed from outside when it is late, and with its host; on Linux it then drops the network, other programs and the
writing of files (`verifiers.isolation_seccomp`). `hardening` tells what of this the machine gives.

The pool is synchronous and driven by as many threads as there are workers, so it belongs to no event loop and serves
one after another; `verifiers.turns` sees to it that the slow jobs of one verifier never hold them all. Workers start
with their first job, and again after `close`. It does not survive a fork: what was forked from a process that used it
has to do without.
"""

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from verifiers.base import Cause
from verifiers.isolation_pipe import MAX_JOB_BYTES, IsolationFailed, Worker
from verifiers.turns import Turns

__all__ = ["Isolation", "IsolationFailed", "close_all"]

MEMORY_BYTES = 1024 * 2**20
MAX_RESULT_BYTES = 2**20
RUNS_PER_WORKER = 500
QUEUE_S = 30.0
CPU_S_PER_RUN = 15
_BUSY = "all isolated workers are busy"

_all: "weakref.WeakSet[Isolation]" = weakref.WeakSet()


class _Opened:
    """The threads, and the workers that exist. `idle` is a stack: the warmest works first."""

    def __init__(self, workers: int) -> None:
        self.threads = Turns(workers, thread_name="verifier-isolation")
        self.idle: list[Worker] = []
        self.lock = threading.Lock()
        self.closed = False

    def take(self) -> Worker | None:
        with self.lock:
            return self.idle.pop() if self.idle else None

    def give_back(self, worker: Worker) -> None:
        with self.lock:
            if not self.closed:
                self.idle.append(worker)
                return
        worker.kill()

    def end(self, *, wait: bool) -> None:
        """End the idle workers now, and the busy ones after their jobs."""
        self.threads.close(wait=wait)
        with self.lock:
            self.closed = True
            idle, self.idle = self.idle, []
        for worker in idle:
            worker.kill()


class Isolation:
    """A pool of workers for one function. Safe to share between threads and event loops.

    `function` is "module:name", importable from the repository's root; it gets and returns JSON values, and what it
    raises becomes `Cause.BROKE`. `memory_bytes` is address space. `preload` are modules to import before the first job.
    With `fork_each` every job has a process of its own, forked from the warmed worker; if the function's module has a
    `prepare`, that runs in the fork before the job is read, and the function is given its result as a second argument.
    """

    def __init__(
        self,
        function: str,
        *,
        workers: int = 2,
        memory_bytes: int = MEMORY_BYTES,
        runs_per_worker: int = RUNS_PER_WORKER,
        preload: tuple[str, ...] = (),
        fork_each: bool = False,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        self._options: dict[str, Any] = {
            "function": function,
            "memory_bytes": memory_bytes,
            "cpu_s": runs_per_worker * CPU_S_PER_RUN,
            "preload": list(preload),
            "fork_each": fork_each,
            "max_result_bytes": max_result_bytes,
        }
        self._workers = workers
        self._runs_per_worker = runs_per_worker
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._host_pid = 0
        self._hardening: dict[str, bool] | None = None
        _all.add(self)

    async def call(
        self, argument: Any, *, timeout_s: float, queue_s: float = QUEUE_S, name: Hashable | None = None
    ) -> Any:
        """Call the function in a worker. Waiting for a worker, and its start, come on top of `timeout_s`.

        Jobs of one `name`, whatever it is, hold all workers but one at most; without one, a job is nobody else's.

        Raises: IsolationFailed, with the cause BUSY where no worker was free in `queue_s`, TIMEOUT where it was late
        and killed, CRASHED where it died or ran out of memory, BROKE where the function raised, BAD_RETURN.
        """
        future = self._submit(argument, timeout_s, name)
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waiting}, timeout=queue_s)
            if not waiting.done() and future.cancel():
                raise IsolationFailed(_BUSY, Cause.BUSY)
            await asyncio.wait({waiting})
        except asyncio.CancelledError:
            waiting.cancel()  # a job that has begun runs on, at most for its time
            raise
        if waiting.cancelled():
            raise IsolationFailed("the pool was closed", Cause.CRASHED)
        return waiting.result()

    def call_blocking(self, argument: Any, *, timeout_s: float, queue_s: float = QUEUE_S) -> Any:
        """Call the function as `call` does, from a thread that may wait.

        Raises: IsolationFailed.
        """
        future = self._submit(argument, timeout_s)
        try:
            return future.result(queue_s)
        except TimeoutError:
            if future.cancel():
                raise IsolationFailed(_BUSY, Cause.BUSY) from None
        except CancelledError:
            raise IsolationFailed("the pool was closed", Cause.CRASHED) from None
        return future.result()

    def hardening(self) -> dict[str, bool]:
        """Say what holds a worker on this machine: `seccomp`, `memory`, `dies_with_host`. Blocks while one starts.

        Raises: IsolationFailed where none starts.
        """
        if self._hardening is None:
            try:
                self._submit_work(self._find_hardening).result(QUEUE_S)
            except (TimeoutError, CancelledError):
                raise IsolationFailed(_BUSY, Cause.BUSY) from None
        return dict(self._hardening or {})

    def close(self) -> None:
        """Let running jobs end, then end the workers. The next call opens the pool again."""
        with self._lock:
            if self._host_pid != os.getpid():
                return
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.end(wait=True)

    def _submit(self, argument: Any, timeout_s: float, name: Hashable | None = None) -> "Future[Any]":
        try:
            job = json.dumps(argument).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise IsolationFailed(f"the job is no JSON: {error}", Cause.BROKE) from None
        if len(job) > MAX_JOB_BYTES:
            raise IsolationFailed(f"the job has {len(job):,} bytes", Cause.TOO_COSTLY)
        return self._submit_work(lambda opened: self._run(opened, job, timeout_s), name)

    def _submit_work(self, work: Callable[[_Opened], Any], name: Hashable | None = None) -> "Future[Any]":
        with self._lock:
            self._host_pid = self._host_pid or os.getpid()
            if self._host_pid != os.getpid():  # its threads and workers stayed behind
                raise IsolationFailed("this process was forked from one that uses the pool", Cause.CRASHED)
            if self._opened is None:
                self._opened = _Opened(self._workers)
                weakref.finalize(self, _end, self._opened, self._host_pid)
            opened = self._opened
            try:
                return opened.threads.submit(object() if name is None else name, partial(work, opened))
            except RuntimeError as error:  # the interpreter is ending
                raise IsolationFailed(f"the pool cannot start: {error}", Cause.CRASHED) from None

    def _run(self, opened: _Opened, job: bytes, timeout_s: float) -> Any:
        """Run one job in a pool's thread.

        Raises: IsolationFailed.
        """
        worker = self._take(opened)
        try:
            return worker.run(job, timeout_s)
        finally:
            self._put_back(opened, worker)

    def _find_hardening(self, opened: _Opened) -> None:
        self._put_back(opened, self._take(opened))

    def _take(self, opened: _Opened) -> Worker:
        worker = opened.take()
        while worker is not None and worker.is_dead:
            worker.kill()
            worker = opened.take()
        if worker is None:
            worker = Worker(self._options)
            self._hardening = worker.hardening
        return worker

    def _put_back(self, opened: _Opened, worker: Worker) -> None:
        if worker.is_dead or worker.runs >= self._runs_per_worker:
            worker.kill()
        else:
            opened.give_back(worker)


def close_all() -> None:
    """Close every pool of this process."""
    for isolation in list(_all):
        isolation.close()


def _end(opened: _Opened, host_pid: int) -> None:
    """End a pool that nobody closed: at the end of the interpreter, or when its owner is forgotten."""
    if os.getpid() == host_pid:
        opened.end(wait=False)  # this may be one of its own threads
