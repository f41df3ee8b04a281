"""Counts the episodes in flight in this process, by adapter, and lets no more than a bounded number run or wait.

A hot swap unloads an adapter only where every process reports zero; the walk of a request asks for room here.
"""

import asyncio
import math
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass

from server.api.wire import Receive, until_gone
from server.errors import InvalidRequest, TooManyRequests


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A place in the queue: for how many episodes, and whether it was let in."""

    count: int
    admitted: "asyncio.Future[None]"


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
        self._queue: deque[_Place] = deque()

    async def enter(self, count: int, receive: Receive, deadline_at: float = math.inf) -> None:
        """Take room for `count` episodes; waits where there is none. `receive` tells if the client goes away meanwhile.

        Whoever enters must `leave`. Nobody waits longer than to the deadline (Unix seconds).

        Raises: InvalidRequest for more than ever fit, TooManyRequests where the queue is full or the wait too long,
        ClientGone.
        """
        if count > self._max_concurrent:
            most = self._max_concurrent
            raise InvalidRequest(f"{count} choices are more than the {most} that may run here at once.", param="n")
        if not self._queue and self._running + count <= self._max_concurrent:
            self._running += count
            return
        if len(self._queue) >= self._max_queued:
            waiting = f" and {len(self._queue)} wait" if self._queue else ""
            raise TooManyRequests(f"{self._running} answers are under way here{waiting}. Try again shortly.")
        await until_gone(receive, self._wait(count, max(0.0, min(self._queue_timeout_s, deadline_at - time.time()))))

    def leave(self, count: int) -> None:
        """Give room back, and let in whoever fits, in order."""
        self._running -= count
        self._let_in()

    def counted(self, adapter: str, count: int) -> "Counted":
        """Count episodes as long as they run. Enter in the same step, without an await, that chose the adapter."""
        return Counted(self._by_adapter, adapter, count)

    def in_flight(self) -> dict[str, int]:
        """Count the episodes by adapter; "" is the base model."""
        return dict(self._by_adapter)

    @property
    def running(self) -> int:
        """For how many episodes room is taken."""
        return self._running

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    async def _wait(self, count: int, timeout_s: float) -> None:
        place = _Place(count, asyncio.get_running_loop().create_future())
        self._queue.append(place)
        try:
            async with asyncio.timeout(timeout_s):
                await place.admitted
        except BaseException as error:
            if place.admitted.done() and not place.admitted.cancelled():
                self._running -= count  # it was let in at the very moment at which it gave up
            else:
                with suppress(ValueError):  # it was passed over already
                    self._queue.remove(place)
            self._let_in()  # it may have stood before smaller ones
            if isinstance(error, TimeoutError):
                raise TooManyRequests(f"No room within {timeout_s:g} s. Try again later.") from None
            raise

    def _let_in(self) -> None:
        while self._queue:
            place = self._queue[0]
            if place.admitted.done():  # it gave up a moment ago
                self._queue.popleft()
            elif self._running + place.count <= self._max_concurrent:
                self._queue.popleft()
                self._running += place.count
                place.admitted.set_result(None)
            else:
                return


class Counted:
    """Counts episodes of an adapter while its block runs."""

    __slots__ = ("_adapter", "_by_adapter", "_count")

    def __init__(self, by_adapter: Counter[str], adapter: str, count: int) -> None:
        self._by_adapter, self._adapter, self._count = by_adapter, adapter, count

    def __enter__(self) -> None:
        self._by_adapter[self._adapter] += self._count

    def __exit__(self, *_error: object) -> None:
        self._by_adapter[self._adapter] -= self._count
        if not self._by_adapter[self._adapter]:
            del self._by_adapter[self._adapter]
