"""The engine as a round uses it: users go before it, and what it takes is counted.

Called by trainer.round, which puts it between the engine and whatever samples. Where the engine knows priorities
(`--enable-priority-scheduling`, and the embedded engine always), each request carries a low one
(server.engine.priority) and nothing is held back here. Where it does not, new requests wait here while users have
episodes under way, as the API processes say in the presence table; a few trickle through, or a busy server would never
end a round. It must never hold back what moves adapters.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from server.domain import Usage
from server.engine.base import Completion, Engine
from server.engine.inspection import inspect_engine
from server.engine.priority import ask_below_users
from server.errors import MulliganError, StoreUnavailable
from server.settings import Settings
from server.store.presence import Presence

LOOK_S = 0.25
"""How often presence is read while a round asks: how late a round notices users, and that they are gone."""

QUIET_S = 1.0
"""So long nobody must have been served before a round asks freely again: what it asks then runs on for seconds."""

TRICKLE_S = 0.25
"""While users are served, one request of a round is let through so often: a busy server must not keep it for ever."""

PRESENCE_MAX_AGE_S = 3.0
"""What an older report says of episodes under way counts for nothing: that process is gone, or hangs."""

Count = Callable[[Usage], None]
"""Is told what each answer took; may refuse more by raising."""


class Present(Protocol):
    """What is needed of the presence store."""

    async def live(self, max_age_s: float) -> list[Presence]:
        """List the API processes that reported lately."""
        ...


class Courtesy:
    """Holds requests back while users have episodes under way."""

    def __init__(self, presence: Present) -> None:
        self._presence = presence
        self._looked_at = self._busy_at = self._let_at = float("-inf")
        self._looking = asyncio.Lock()

    async def wait(self) -> None:
        """Return once users have been quiet for `QUIET_S`, or it is this request's turn to trickle through."""
        while await self._is_busy():
            if time.monotonic() - self._let_at >= TRICKLE_S:
                self._let_at = time.monotonic()
                return
            await asyncio.sleep(LOOK_S)

    async def _is_busy(self) -> bool:
        async with self._looking:
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._looked_at = time.monotonic()
                with suppress(StoreUnavailable):  # nobody can say: go on
                    live = await self._presence.live(PRESENCE_MAX_AGE_S)
                    if any(sum(process.in_flight.values()) > 0 for process in live):
                        self._busy_at = time.monotonic()
        return time.monotonic() - self._busy_at < QUIET_S


class _Guest:
    """Stands before an engine: all but answers goes straight through."""

    def __init__(self, engine: Engine, count: Count, courtesy: Courtesy | None) -> None:
        self._engine, self._count, self._courtesy = engine, count, courtesy

    async def complete(self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False) -> Completion:
        return await self._ask(lambda: self._engine.complete(body, adapter, with_tokens=with_tokens))

    async def complete_text(self, body: Mapping[str, Any], adapter: str) -> Completion:
        return await self._ask(lambda: self._engine.complete_text(body, adapter))

    async def complete_ids(self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]) -> Completion:
        return await self._ask(lambda: self._engine.complete_ids(prompt_ids, adapter, sampling))

    async def _ask(self, call: Callable[[], Awaitable[Completion]]) -> Completion:
        if self._courtesy is not None:
            await self._courtesy.wait()
        completion = await call()
        self._count(completion.usage)
        return completion

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


async def find_courtesy(settings: Settings, presence: Present) -> Courtesy | None:
    """Ask below users where every engine puts them first; else find what holds requests back while users are served."""
    try:
        engines = [await inspect_engine(url) for url in settings.engine.every_url]
    except MulliganError:
        engines = []
    if engines and all(engine.puts_users_first for engine in engines):
        ask_below_users()
        return None
    return Courtesy(presence)


def come_second(engine: Engine, count: Count, courtesy: Courtesy | None = None) -> Engine:
    """Put the count, and the courtesy where the engine knows no priorities, before an engine."""
    return cast("Engine", _Guest(engine, count, courtesy))
