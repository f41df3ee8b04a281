"""Brings an engine to what the database says: the champions of all tasks are loaded before it takes traffic.

Called by `server.api.watch` at the start and whenever the engine lost them (it was restarted), by every API process at
once. It only ever loads; unloading is `hot_swap`'s, which knows who still uses what. It never loads files that are not
those that were saved.
"""

import asyncio

import structlog

from server.adapters.hot_swap import check_files, push
from server.domain import BASE_ADAPTER, Adapter
from server.engine.base import Engine
from server.errors import AdapterRefused
from server.store.adapters import AdapterStore
from server.store.tasks import TaskStore

_log = structlog.get_logger(__name__)


async def reconcile(engine: Engine, task_store: TaskStore, adapter_store: AdapterStore) -> list[str]:
    """Load every champion that the engine lacks; return the names of those that were loaded.

    All are tried, so that one broken adapter does not keep the others out.

    Raises: EngineUnavailable, StoreUnavailable, AdapterRefused for a champion that cannot be loaded.
    """
    loaded, refused = [], []
    for name in sorted(await find_missing(engine, task_store)):
        try:
            if await _load(engine, await adapter_store.get(name), name):
                loaded.append(name)
        except AdapterRefused as error:
            refused.append(f"{name}: {error}")
    if loaded:
        _log.info("champions_loaded", adapters=loaded)
    if refused:
        raise AdapterRefused("Champions that cannot be loaded: " + "; ".join(refused))
    return loaded


async def find_missing(engine: Engine, task_store: TaskStore) -> set[str]:
    """Find the champions that the engine lacks. Raises: EngineUnavailable, StoreUnavailable."""
    champions = {task.champion for task in await task_store.list()} - {BASE_ADAPTER}
    return champions - set((await engine.state()).adapters)


async def _load(engine: Engine, adapter: Adapter | None, name: str) -> bool:
    if adapter is None:
        raise AdapterRefused(f"the adapter {name} is not in the database")
    await asyncio.to_thread(check_files, adapter)
    return await push(engine, adapter.name, adapter.path)
