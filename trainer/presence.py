"""Says, from a thread of the worker, that the worker lives: also while a round keeps the worker itself busy.

Started by trainer.worker. It writes one row every few seconds and must never end the worker, whatever the database
does.
"""

import asyncio
import threading
from contextlib import suppress

import structlog

from server.errors import MulliganError
from server.settings import Settings
from server.store.database import Database
from server.store.trainers import TrainerStore
from trainer.jobs import name_worker

_log = structlog.get_logger(__name__)


class Herald:
    """The thread of one worker that says that it lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=lambda: asyncio.run(self._tell()), name="herald", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Say that the worker is gone, and end; waits for a second at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    async def _tell(self) -> None:
        database, said = Database(self._settings.database_url), ""
        trainers, name = TrainerStore(database), name_worker()
        try:
            while not self._stop.is_set():
                try:
                    await trainers.report(name, self._settings.pool)
                    said = ""
                except Exception as error:  # noqa: BLE001 -- it goes on trying, and says each trouble once
                    if said != (said := f"{type(error).__name__}: {error}"):
                        _log.warning("presence_not_told", error=said)
                await asyncio.to_thread(self._stop.wait, self._settings.worker_heartbeat_s)
            with suppress(MulliganError):
                await trainers.leave(name)
        finally:
            await database.close()
