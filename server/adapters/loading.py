"""Brings adapters into the engines, so that requests can be given to them.

Called by the hot swap, the canaries, the reconciling and the trainer. Nothing here overwrites a name or a path, and
nothing is loaded that is not what was saved.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from server.adapters.files import check_files
from server.adapters.probing import Probe, probe_everywhere
from server.adapters.rooms import SwapRooms
from server.adapters.unloading import held, wait_until_seen
from server.domain import Adapter
from server.engine.base import Engine
from server.errors import AdapterRefused, MulliganError

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def brought_in(adapter: Adapter, rooms: SwapRooms, probe: Probe | None = None) -> AsyncIterator[dict[str, Any]]:
    """Have an adapter in every engine, probed and seen by every API process, and kept from being unloaded, for a block.

    The block is what lets it serve; where it fails, the adapter is taken out again, unless it was there before. Yields
    what the probe found, for the event.

    Raises: Conflict where its unload does not end, AdapterRefused, the engine's errors, StoreUnavailable.
    """
    async with held(adapter.name, rooms.holds):
        loaded_now = await load(rooms.engine, adapter)
        try:
            found: dict[str, Any] = {}
            if probe is not None:
                found["probe_gap"] = await probe_everywhere(rooms.engine, adapter.name, probe)
                found["told_apart"] = probe.told_apart
            await wait_until_seen(adapter.name, presence=rooms.presence)
            yield found
        except MulliganError:
            if loaded_now:
                await _take_out(adapter, rooms)
            raise


async def load(engine: Engine, adapter: Adapter) -> bool:
    """Load an adapter whose files are what was saved; say whether it was loaded now.

    Raises: AdapterRefused, the engine's errors.
    """
    await asyncio.to_thread(check_files, adapter)
    return await push(engine, adapter.name, adapter.path)


async def push(engine: Engine, name: str, path: str) -> bool:
    """Load an adapter under its name; say whether it was loaded now (it may have been there already).

    Raises: EngineUnavailable, AdapterRefused.
    """
    if await _is_loaded(engine, name, path):
        return False
    try:
        await engine.load_adapter(name, path)
    except AdapterRefused:
        if await _is_loaded(engine, name, path):  # another process was quicker: an engine loads a name once
            return False
        raise
    return True


async def _is_loaded(engine: Engine, name: str, path: str) -> bool:
    loaded = (await engine.state()).adapters
    if name in loaded and loaded[name] and Path(loaded[name]) != Path(path):
        raise AdapterRefused(f"The engine holds another adapter under the name {name!r}; a name is written once.")
    return name in loaded


async def _take_out(adapter: Adapter, rooms: SwapRooms) -> None:
    """Unload what came to nothing; an engine that cannot now has only one adapter too many.

    It stays where somebody else let it serve meanwhile: whoever lost that race must not take it from the winner.
    """
    try:
        task = await rooms.tasks.get(adapter.task)
        if task is None or adapter.name not in (task.champion, task.canary):
            await rooms.engine.unload_adapter(adapter.name)
    except MulliganError as error:
        _log.warning("adapter_not_unloaded", adapter=adapter.name, error=str(error))
