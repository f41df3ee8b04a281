"""Looks at the canaries from the worker: at each tick, and while a round runs, when there are no ticks.

A canary that does harm must not wait for the end of a round. Any worker may look, and several may at once: every move
names the generation that it was decided on. It must never import torch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from server.adapters.canary import CanaryKeeper
from server.adapters.reconcile import ServingShelf
from server.adapters.rooms import SwapRooms
from server.engine.replicas import open_replicas
from server.errors import MulliganError
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.database import Database
from server.store.tasks import TaskStore

_log = structlog.get_logger(__name__)


class CanaryWatch:
    """Looks at every canary that runs, with engines that are opened for that look."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keeper = CanaryKeeper()

    async def look(self, database: Database) -> int:
        """Look once; return how many canaries were moved. Raises: StoreUnavailable."""
        if not await CanaryStore(database).running():
            return 0
        engine = open_replicas(self._settings.engine)
        try:
            await engine.look(ServingShelf(TaskStore(database), AdapterStore(database)))
            return await self._keeper.look(SwapRooms.open(database, engine))
        finally:
            await engine.close()

    @asynccontextmanager
    async def looking(self, database: Database) -> AsyncIterator[None]:
        """Look again and again while the block runs, as often as the worker else ticks."""

        async def keep_looking() -> None:
            while True:
                await asyncio.sleep(self._settings.beat_interval_s)
                try:
                    await self.look(database)
                except MulliganError as error:
                    _log.warning("canaries_not_looked_at", error=str(error))

        watching = asyncio.create_task(keep_looking())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
