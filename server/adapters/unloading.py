"""Keeps the hands of many processes off one adapter: who is about to need it, and who takes it out of the engines.

Called by the hot swap and by the sweep of orphans. Nothing is unloaded that anybody needs, and nothing becomes champion
that an engine which takes requests does not hold.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from server.domain import BASE_ADAPTER
from server.engine.base import Engine
from server.errors import Conflict, EngineUnavailable, MulliganError
from server.store.holds import HoldStore
from server.store.presence import PresenceStore

PRESENCE_MAX_AGE_S = 5.0
"""An API process that has not reported for so long is taken for gone; live ones report at least once a second."""

POLL_S = 0.1
SIGHT_TIMEOUT_S = 30.0
"""So long every API process is waited for to see a new adapter; they look twice a second."""
HOLD_TIMEOUT_S = 60.0


async def wait_until_seen(name: str, *, presence: PresenceStore, timeout_s: float = SIGHT_TIMEOUT_S) -> None:
    """Wait until every live API process sees an adapter on each engine that it sends requests to.

    An engine that this process cannot reach, but another one asks, is found out here.

    Raises: EngineUnavailable.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        blind = {
            f"{url} ({process.id})"
            for process in await presence.live(PRESENCE_MAX_AGE_S)
            for url, names in process.replicas.items()
            if name not in names
        }
        if not blind:
            return
        if time.monotonic() >= deadline:
            raise EngineUnavailable(
                f"Engines that take requests do not hold {name!r} after {timeout_s:g} s: {', '.join(sorted(blind))}. "
                "Who promotes has to reach every engine that the API asks (MULLIGAN_ENGINE__URLS, or --engine-url)."
            )
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def held(name: str, holds: HoldStore | None, timeout_s: float = HOLD_TIMEOUT_S) -> AsyncIterator[None]:
    """Keep everybody from unloading an adapter during the block. Raises: Conflict where its unload does not end."""
    if holds is None or name == BASE_ADAPTER:
        yield
        return
    deadline = time.monotonic() + timeout_s
    while not await holds.hold(name):
        if time.monotonic() >= deadline:
            raise Conflict(f"{name!r} is being unloaded and will not end: try again in a minute.")
        await asyncio.sleep(POLL_S)
    try:
        yield
    finally:
        with suppress(MulliganError):  # it ends by itself
            await holds.release(name)


async def unload_unused(engine: Engine, name: str, holds: HoldStore | None, *, round_id: str = "") -> str:
    """Unload an adapter unless somebody needs it; say why it was not unloaded, "" where it was.

    Raises: the engine's errors, StoreUnavailable.
    """
    if holds is None:
        await engine.unload_adapter(name)
        return ""
    if not await holds.begin_unload(name):
        return "it is being promoted, or unloaded by somebody else"
    try:
        why = await holds.find_use(name, except_round=round_id)
        if not why:
            await engine.unload_adapter(name)
        return why
    finally:
        with suppress(MulliganError):  # it ends by itself
            await holds.end_unload(name)
