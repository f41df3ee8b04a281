"""Brings engines to what the database says: what serves is loaded before an engine takes requests, and orphans go.

Called by `server.api.watch` (every API process at once) and by the trainer, through `Replicas.look`, at the start and
whenever an engine lost its adapters (it was restarted) or returns. What serves is each task's champion and its canary.
It never loads files that are not those that were saved, and never unloads what may still be used: `HoldStore.find_use`.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping

import structlog

from server.adapters.loading import load, push
from server.adapters.unloading import PRESENCE_MAX_AGE_S, unload_unused
from server.domain import BASE_ADAPTER, Adapter, Task
from server.engine.base import Engine
from server.errors import AdapterRefused, MulliganError
from server.store.adapters import AdapterStore
from server.store.holds import HoldStore
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore

REFUSED_FOR_S = 30.0
"""So long an adapter that an engine would not take is not tried again: the other tasks are served meanwhile."""

ORPHAN_FOR_S = 60.0
"""So long an adapter has to have been of no use before it is unloaded."""

_OURS = re.compile(r"[^@]+@\d+(-\d+)?(\.\d+-[0-9a-f]+)?")  # adapters and pushes; what an operator loaded is his

_log = structlog.get_logger(__name__)


class ServingShelf:
    """Says what an engine has to hold: what serves, and `also` (name to path, as it is at the time).

    `glance` gives the names that serve from memory; the database is asked only where one of those is missing. What
    engines refused is remembered.
    """

    def __init__(
        self,
        tasks: TaskStore,
        adapters: AdapterStore,
        *,
        glance: Callable[[], Collection[str]] | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        self._tasks, self._adapters, self._glance = tasks, adapters, glance
        self._also = {} if also is None else also
        self._refused: dict[str, tuple[float, str]] = {}

    @property
    def refused(self) -> dict[str, str]:
        """What no engine would take, and why."""
        return {name: why for name, (_, why) in self._refused.items()}

    async def find_missing(self, held: Collection[str]) -> set[str]:
        """Find what an engine lacks that holds `held`, without what was refused a moment ago.

        Raises: StoreUnavailable.
        """
        late = time.monotonic() - REFUSED_FOR_S
        waiting = {name for name, (at, _) in self._refused.items() if at > late}
        lacking = {*self._also} - {*held}
        if self._glance is None or {*self._glance()} - {*held} - waiting:  # it may have moved since the last look
            lacking |= name_serving(await self._tasks.list()) - {*held}
        return lacking - waiting

    async def load(self, engine: Engine, names: Collection[str]) -> None:
        """Load adapters into one engine. All are tried, so that one broken adapter does not keep the others out.

        What is refused is remembered, and no error. Raises: the engine's errors, StoreUnavailable.
        """
        for name in sorted(names):
            try:
                if name in self._also:
                    await push(engine, name, self._also[name])
                else:
                    await load(engine, await self._find(name))
            except AdapterRefused as error:
                self._refused[name] = (time.monotonic(), str(error))
                _log.warning(
                    "adapter_refused", adapter=name, error=str(error), remedy="mulligan adapters rollback TASK"
                )
            else:
                self._refused.pop(name, None)
                _log.info("adapter_loaded", adapter=name, engine=[*engine.replicas()])

    async def _find(self, name: str) -> Adapter:
        adapter = await self._adapters.get(name)
        if adapter is None:
            raise AdapterRefused(f"the adapter {name} is not in the database")
        return adapter


def name_serving(tasks: Collection[Task]) -> set[str]:
    """Name the adapters that serve: champions and canaries."""
    return {name for task in tasks for name in (task.champion, task.canary)} - {BASE_ADAPTER}


class OrphanSweep:
    """Finds adapters in the engines that nobody needs any more, and unloads them.

    Orphans are the pushes of rounds that ended (a trainer that was killed leaves them), former champions that were
    still in use when they were retired, and candidates that were looked at. One is unloaded after it was of no use for
    `orphan_for_s` seconds: no champion, no canary, no running round of its task, no request under way on it.
    """

    def __init__(
        self, engine: Engine, holds: HoldStore, presence: PresenceStore, *, orphan_for_s: float = ORPHAN_FOR_S
    ) -> None:
        self._engine, self._holds, self._presence = engine, holds, presence
        self._orphan_for_s = orphan_for_s
        self._since: dict[str, float] = {}  # orphan -> when it was first seen as one, on the monotonic clock

    async def sweep(self) -> list[str]:
        """Look once; return what was unloaded. Raises: StoreUnavailable."""
        loaded = await self._list_loaded()
        in_flight = {name for process in await self._presence.live(PRESENCE_MAX_AGE_S) for name in process.in_flight}
        now = time.monotonic()
        orphans = {name for name in loaded - in_flight if not await self._holds.find_use(name)}
        self._since = {name: self._since.get(name, now) for name in orphans}
        due = [name for name, since in self._since.items() if now - since >= self._orphan_for_s]
        return [name for name in sorted(due) if await self._unload(name)]

    async def _unload(self, name: str) -> bool:
        try:
            why = await unload_unused(self._engine, name, self._holds)
        except MulliganError as error:
            why = str(error)
        self._since.pop(name, None)
        if why:
            _log.info("orphan_kept", adapter=name, why=why)
        else:
            _log.info("orphan_unloaded", adapter=name)
        return not why

    async def _list_loaded(self) -> set[str]:
        loaded: set[str] = set()
        for one in self._engine.replicas().values():
            try:
                loaded |= {*(await one.state()).adapters}
            except MulliganError:
                continue  # the looks at it tell
        return {name for name in loaded if _OURS.fullmatch(name)}
