"""Shares a few worker threads among many who ask, so that nobody waits for somebody else's slow work.

Called by `verifiers.sandbox` and `verifiers.isolation`. Work is done in the name of somebody (a program, a verifier).
Each name has a queue of its own; whoever is free takes from them in turn. One name holds at most all workers but one,
and so do all that were slow SLOW_RUNS times on end, taken together: a worker is always left for those that are quick,
however many slow ones wait. (A few times prove nothing: on a busy machine quick work is late, too.)
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

SLOW_S = 0.05
SLOW_RUNS = 5
MAX_REMEMBERED = 4096


class _Job:
    """Work in somebody's name, and when it began."""

    __slots__ = ("future", "name", "started", "work")

    def __init__(self, name: Hashable, work: Callable[[], Any]) -> None:
        self.name = name
        self.work = work
        self.future: Future[Any] = Future()
        self.started = 0.0


class Turns:
    """Worker threads and the queues before them. Safe to share between threads."""

    def __init__(self, workers: int, *, thread_name: str) -> None:
        self._workers = workers
        self._most = max(1, workers - 1)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=thread_name)
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: dict[Hashable, deque[_Job]] = {}  # who is first has the next turn
        self._running: set[_Job] = set()
        self._slow: OrderedDict[Hashable, int] = OrderedDict()  # how often on end

    def submit(self, name: Hashable, work: Callable[[], Any]) -> "Future[Any]":
        """Have the work done in a thread when it is its turn. A future that is cancelled before that is skipped.

        Raises: RuntimeError after `close`.
        """
        job = _Job(name, work)
        with self._lock:
            if self._closed:
                raise RuntimeError("it is closed")
            self._waiting.setdefault(name, deque()).append(job)
            self._start()
        return job.future

    def close(self, *, wait: bool = True) -> None:
        """Let running work end, cancel what waits, and end the threads; `wait` for that."""
        with self._lock:
            self._closed = True
            waiting = [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
        for job in waiting:
            job.future.cancel()
        self._threads.shutdown(wait=wait)

    def _start(self) -> None:
        """Start what may start. The lock is held."""
        while (job := self._take()) is not None:
            self._threads.submit(self._work, job)

    def _take(self) -> _Job | None:
        """Take the next job that may run, and send its name to the end. The lock is held."""
        if len(self._running) >= self._workers:
            return None
        for name in list(self._waiting):
            queue = self._waiting[name]
            while queue and queue[0].future.cancelled():
                queue.popleft()
            if queue and not self._may_start(name):
                continue
            del self._waiting[name]
            if not queue:
                continue
            job = queue.popleft()
            if queue:
                self._waiting[name] = queue
            job.started = time.monotonic()
            self._running.add(job)
            return job
        return None

    def _may_start(self, name: Hashable) -> bool:
        if sum(job.name == name for job in self._running) >= self._most:
            return False
        late = time.monotonic() - SLOW_S
        held = sum(self._is_slow(job.name) or job.started < late for job in self._running)
        return not self._is_slow(name) or held < self._most

    def _is_slow(self, name: Hashable) -> bool:
        return self._slow.get(name, 0) >= SLOW_RUNS

    def _work(self, job: _Job | None) -> None:
        """Do one job, and go on with the next one; runs in a thread."""
        while job is not None:
            value, error = None, None
            wanted = job.future.set_running_or_notify_cancel()
            if wanted:
                job.started = time.monotonic()
                try:
                    value = job.work()
                except BaseException as raised:  # noqa: BLE001 -- it is for whoever waits for the future
                    error = raised
            done, job = job, self._finish(job, ran=wanted)
            if wanted and error is None:
                done.future.set_result(value)
            elif wanted:
                done.future.set_exception(error)

    def _finish(self, job: _Job, *, ran: bool) -> _Job | None:
        """Note what became of a job, start others that now may run, and say with which this thread goes on."""
        with self._lock:
            self._running.discard(job)
            if ran:
                times = self._slow.pop(job.name, 0)
                if time.monotonic() - job.started > SLOW_S:
                    self._slow[job.name] = times + 1
            if len(self._slow) > MAX_REMEMBERED:
                self._slow.popitem(last=False)
            following = self._take()
            if following is not None:
                self._start()
            return following
