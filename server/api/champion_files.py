"""Watches the files of the adapters that serve: one that is gone or was altered makes this process unready, by name.

Run by `server.app` as a loop. The engine may hold such an adapter still, and would serve something else, or nothing,
the next time it starts. Files are read whole once, and again where their size, time or inode has changed.
"""

import asyncio
from pathlib import Path

import structlog

from server.adapters.preflight import find_damage
from server.api.roster import Roster
from server.api.watch import Readiness
from server.domain import BASE_ADAPTER, Adapter
from server.store.adapters import AdapterStore

INTERVAL_S = 5.0

Signature = tuple[tuple[int, ...], ...]

_log = structlog.get_logger(__name__)


class ChampionFiles:
    """What is known of the files of the champions and canaries."""

    def __init__(self, roster: Roster, adapters: AdapterStore, readiness: Readiness) -> None:
        self._roster, self._adapters, self._readiness = roster, adapters, readiness
        self._seen: dict[str, tuple[Signature, str]] = {}

    async def look(self) -> None:
        """Look at all of them, and tell `/ready` what is damaged. Raises: StoreUnavailable."""
        tasks = self._roster.snapshot.tasks.values()
        names = {name for task in tasks for name in (task.champion, task.canary)} - {BASE_ADAPTER}
        found: dict[str, tuple[Signature, str]] = {}
        for name in sorted(names):
            adapter = await self._adapters.get(name)
            found[name] = await asyncio.to_thread(self._check, name, adapter)
        broken = {name: why for name, (_, why) in found.items() if why}
        for name in broken.keys() - self._readiness.broken.keys():
            remedy = "put the files back from a backup, or `mulligan adapters rollback TASK`"
            _log.error("champion_damaged", adapter=name, why=broken[name], remedy=remedy)
        self._seen, self._readiness.broken = found, broken

    def _check(self, name: str, adapter: Adapter | None) -> tuple[Signature, str]:
        signature = _sign(adapter)
        known = self._seen.get(name)
        return known if known and known[0] == signature else (signature, find_damage(name, adapter))


def _sign(adapter: Adapter | None) -> Signature:
    """Read what changes when a file does."""
    marks = []
    for file in sorted(adapter.files) if adapter else ():
        try:
            told = (Path(adapter.path) / file).stat() if adapter else None
        except OSError:
            told = None
        marks.append((told.st_ino, told.st_size, told.st_mtime_ns) if told else ())
    return tuple(marks)
