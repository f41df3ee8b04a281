"""Runs deletions in an API process: those that are asked for here, and those that another process left unfinished.

Called by the routes and by a loop of `server.app`. Any number of processes may work at one: a batch is a transaction.
"""

import asyncio

import structlog

from server.errors import NotFound
from server.orchestration.deletion import Folders, run_deletion
from server.settings import Settings
from server.store.database import Database
from server.store.deletions import Deletion, DeletionStore, Doomed

INTERVAL_S = 10.0
STALE_S = 30.0
"""So long after its last sign of life a deletion is gone on with by whoever looks."""

WAIT_S = 5.0
"""How long a request waits for its deletion; after that it goes on by itself."""

_log = structlog.get_logger(__name__)


class DeletionRunner:
    """The deletions that one process works at."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._store = DeletionStore(database)
        self._folders = Folders(settings.spool_dir, settings.rounds_dir)
        self._jobs: set[asyncio.Task[Deletion]] = set()

    async def ask(self, doomed: Doomed, *, actor: str) -> Deletion:
        """Begin a deletion and wait for it a little. Raises: InvalidRequest, StoreUnavailable."""
        deletion = await self._store.begin(doomed, actor=actor)
        job = asyncio.create_task(run_deletion(self._database, deletion, self._folders, wait_s=WAIT_S / 2))
        self._jobs.add(job)
        job.add_done_callback(self._end)
        done, _ = await asyncio.wait({job}, timeout=WAIT_S)
        return job.result() if done else await self.find(deletion.id)

    async def find(self, deletion_id: str) -> Deletion:
        """Find a deletion. Raises: NotFound."""
        found = await self._store.get(deletion_id)
        if found is None:
            raise NotFound(f"There is no deletion {deletion_id!r}.", code="deletion_not_found")
        return found

    async def recent(self, limit: int) -> list[Deletion]:
        """List deletions, newest first."""
        return await self._store.recent(limit=limit)

    async def look(self) -> None:
        """Go on with what is unfinished and nobody works at: a loop's work. Raises: StoreUnavailable."""
        for one in await self._store.recent(stale_s=STALE_S):
            await run_deletion(self._database, one, self._folders, wait_s=0.0)

    async def stop(self) -> None:
        """Break off what runs; it is gone on with later, here or elsewhere."""
        jobs = [*self._jobs]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def _end(self, job: "asyncio.Task[Deletion]") -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            _log.warning("deletion_broken_off", error=type(error).__name__)
