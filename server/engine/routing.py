"""Sends each request to one of several engines, and to another one only where that cannot generate an answer twice.

Only `server.engine.replicas` calls it. A request goes to another replica where nothing was sent (no connection came
about) or the engine refused it before it began (it lacks the adapter); what may have been generated is never asked for
twice. Who is asked among those in rotation is for `server.engine.choice`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from typing import TypeVar

from server.engine.base import Engine
from server.engine.choice import Beginnings
from server.engine.replica import EJECT_AFTER_REQUESTS, Replica, nobody_of
from server.errors import (
    AdapterMissing,
    EngineBroken,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreached,
    MulliganError,
)

T = TypeVar("T")


class Router:
    """Routes requests over `members`, and takes note of how each did."""

    def __init__(self, members: Sequence[Replica]) -> None:
        self._members = members
        self._beginnings = Beginnings()

    def forget(self, one: Replica) -> None:
        """Forget what an engine read: it was away."""
        self._beginnings.forget(one)

    async def ask(self, beginning: int, adapter: str, call: Callable[[Engine], Awaitable[T]]) -> T:
        """Have one engine answer. Raises: what the engine raises, EngineUnavailable where none is left."""
        tried: list[Replica] = []
        while True:
            one = self._choose(beginning, adapter, tried)
            one.in_flight += 1
            try:
                answer = await call(one.engine)
            except MulliganError as error:
                if not self._may_ask_another(one, adapter, error, tried):
                    raise
            else:
                one.failed_requests = 0
                return answer
            finally:
                one.in_flight -= 1

    async def stream(
        self, beginning: int, adapter: str, open_stream: Callable[[Engine], AsyncIterator[bytes]]
    ) -> AsyncGenerator[bytes, None]:
        """Yield what one engine streams. Raises: what the engine raises, EngineUnavailable where none is left."""
        tried: list[Replica] = []
        begun = False
        while True:
            one = self._choose(beginning, adapter, tried)
            one.in_flight += 1
            try:
                async with aclosing(open_stream(one.engine)) as events:  # pyright: ignore[reportArgumentType]
                    async for event in events:
                        begun = True
                        yield event
            except MulliganError as error:
                if not self._may_ask_another(one, adapter, error, tried) or begun:
                    raise
            else:
                one.failed_requests = 0
                return
            finally:
                one.in_flight -= 1

    def _choose(self, beginning: int, adapter: str, tried: Collection[Replica]) -> Replica:
        among = [one for one in self._members if one.live and one not in tried]
        if not among:
            raise nobody_of(self._members)
        holding = [one for one in among if adapter in one.adapters] if adapter else among
        return self._beginnings.choose(beginning, holding or among)

    def _may_ask_another(self, one: Replica, adapter: str, error: MulliganError, tried: list[Replica]) -> bool:
        """Take note of a failure, and say whether another engine may be asked, and is there."""
        if isinstance(error, EngineUnreached):
            one.eject(str(error))
        elif isinstance(error, AdapterMissing):
            one.adapters -= {adapter}
        elif isinstance(error, EngineUnavailable | EngineTimeout | EngineBroken):
            one.failed_requests += 1
            # A request may be at fault itself: what requests say never takes the last engine out.
            if one.failed_requests >= EJECT_AFTER_REQUESTS and any(x.live for x in self._members if x is not one):
                one.eject(f"{one.failed_requests} requests in a row failed: {error}")
            return False
        else:
            return False
        tried.append(one)
        return any(other.live and other not in tried for other in self._members)
