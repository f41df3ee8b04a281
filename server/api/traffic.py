"""Counts the episodes in flight in this process, by adapter, and lets no more than a bounded number run or wait.

A hot swap unloads an adapter only where every process reports zero; the walk of a request asks for room here.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from server.api.wire import Receive, until_gone
from server.errors import TooManyRequests


class Traffic:
    """The episodes that run, and those that wait for room, first come first served.

    `max_concurrent` episodes run at once; `max_queued` requests may wait, each for `queue_timeout_s` at most.
    """

    def __init__(self, max_concurrent: int, max_queued: int = 0, queue_timeout_s: float = 30.0) -> None:
        self._max_concurrent = max_concurrent
        self._max_queued = max_queued
        self._queue_timeout_s = queue_timeout_s
        self._running = 0
        self._by_adapter: Counter[str] = Counter()
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, count: int, receive: Receive) -> None:
        """Take room for `count` episodes; waits where there is none. `receive` tells if the client goes away meanwhile.

        Whoever enters must `leave`.

        Raises: TooManyRequests where the queue is full or the wait too long, ClientGone.
        """
        if count > self._max_concurrent:
            raise TooManyRequests(
                f"{count} choices are more than the {self._max_concurrent} that may run here at once."
            )
        if self._queue or self._running + count > self._max_concurrent:
            await until_gone(receive, self._wait(count))
        else:
            self._running += count

    def leave(self, count: int) -> None:
        """Give room back, and let in whoever fits, in order."""
        self._running -= count
        while self._queue and self._running + self._queue[0][0] <= self._max_concurrent:
            wanted, place = self._queue.popleft()
            if not place.done():
                self._running += wanted
                place.set_result(None)

    @contextmanager
    def counted(self, adapter: str, count: int) -> Iterator[None]:
        """Count episodes as long as they run. Enter in the same step, without an await, that chose the adapter."""
        self._by_adapter[adapter] += count
        try:
            yield
        finally:
            self._by_adapter[adapter] -= count
            if not self._by_adapter[adapter]:
                del self._by_adapter[adapter]

    def in_flight(self) -> dict[str, int]:
        """Count the episodes by adapter; "" is the base model."""
        return dict(self._by_adapter)

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    async def _wait(self, count: int) -> None:
        if len(self._queue) >= self._max_queued:
            waiting = f" and {len(self._queue)} wait" if self._queue else ""
            raise TooManyRequests(f"{self._running} requests are in flight here{waiting}. Try again shortly.")
        place = asyncio.get_running_loop().create_future()
        self._queue.append((count, place))
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await place
        except BaseException as error:
            let_in = place.done() and not place.cancelled()
            if not let_in:
                self._queue.remove((count, place))
            self.leave(count if let_in else 0)  # it may have stood before smaller ones
            if isinstance(error, TimeoutError):
                raise TooManyRequests(f"No room within {self._queue_timeout_s:g} s. Try again later.") from None
            raise
