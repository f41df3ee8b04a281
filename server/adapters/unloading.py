"""Keeps the hands of many processes off one adapter: who is about to need it, and who takes it out of the engines.

Called by the hot swap, the canaries and the sweep of orphans. Nothing is unloaded that anybody needs, and nothing
becomes champion that an engine which takes requests does not hold.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from server.adapters.rooms import SwapRooms
from server.domain import BASE_ADAPTER, Event, Task
from server.engine.base import Engine
from server.errors import Conflict, EngineUnavailable, MulliganError
from server.store.holds import HoldStore
from server.store.presence import PresenceStore

PRESENCE_MAX_AGE_S = 5.0
"""An API process that has not reported for so long is taken for gone; live ones report at least once a second."""

POLL_S = 0.1
DRAIN_TIMEOUT_S = 30.0
SIGHT_TIMEOUT_S = 30.0
"""So long every API process is waited for to see a new adapter; they look twice a second."""
HOLD_TIMEOUT_S = 60.0

_log = structlog.get_logger(__name__)


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
async def held(name: str, holds: HoldStore, timeout_s: float = HOLD_TIMEOUT_S) -> AsyncIterator[None]:
    """Keep everybody from unloading an adapter during the block. Raises: Conflict where its unload does not end."""
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


async def unload_unused(engine: Engine, name: str, holds: HoldStore, *, round_id: str = "") -> str:
    """Unload an adapter unless somebody needs it; say why it was not unloaded, "" where it was.

    Raises: the engine's errors, StoreUnavailable.
    """
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


async def retire(name: str, task: Task, rooms: SwapRooms, *, actor: str, timeout_s: float, round_id: str = "") -> bool:
    """Drain an adapter that is no longer champion and unload it; say whether it was unloaded.

    Past the timeout, or where the champion moved again meanwhile (perhaps back to this very adapter), or a round other
    than `round_id` uses it, it stays loaded, and an event says so. That does no harm: it takes a place in the engine
    until the sweep finds it.
    """
    if name in (task.champion, task.canary, BASE_ADAPTER):
        with suppress(MulliganError):
            await drain(BASE_ADAPTER, task, presence=rooms.presence, timeout_s=timeout_s)
        return False
    try:
        drained = await drain(name, task, presence=rooms.presence, timeout_s=timeout_s)
        why = "" if drained else "episodes still ran on it"
        now = await rooms.tasks.get(task.name)
        if now is None or now.generation != task.generation:
            why = "the champion moved again meanwhile"
        why = why or await unload_unused(rooms.engine, name, rooms.holds, round_id=round_id)
        if not why:
            return True
        left = {"waited_s": timeout_s, "why": why}
        await rooms.events.add(Event("adapter.left_loaded", name, actor, left, time.time()))
    except MulliganError as error:  # the swap itself is done
        _log.warning("adapter_left_loaded", adapter=name, error=str(error))
    return False


async def drain(name: str, task: Task, *, presence: PresenceStore, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Wait until every live API process serves `task` at its generation and has no episode left on adapter `name`.

    For the base model, which stays, that is until they serve at that generation. Returns false past the timeout.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        live = await presence.live(PRESENCE_MAX_AGE_S)
        if all(
            process.acknowledged.get(task.name, -1) >= task.generation
            and (name == BASE_ADAPTER or not process.in_flight.get(name, 0))
            for process in live
        ):
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
