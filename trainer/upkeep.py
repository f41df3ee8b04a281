"""Keeps the log within its bounds, from the worker's tick: makes months ahead, and takes what is past its limit.

It also deletes here what a deletion on another machine could not reach.

A little at a time, for a tick has rounds to start; where more is left, the next tick goes on. It must never touch a
round that is queued or running, nor, for its age alone, a folder that an adapter lies in.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from server.errors import StoreUnavailable
from server.settings import LogSettings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.deletion_files import clean_rounds
from server.store.deletions import DeletionStore
from server.store.retention import DAY_S, Pruned, RetentionStore
from server.store.rollouts import RolloutStore
from server.store.rounds import RoundStore

LOOK_EVERY_S = 600.0
ANALYSE_EVERY_S = 86400.0
DELETIONS = 200
"""How many of the newest deletions are looked at, for folders that they could not reach."""

WITHIN_S = 2.0
"""How long one look may delete row by row."""

_log = structlog.get_logger(__name__)


class Upkeep:
    """Decides when to look, and what is past its limit."""

    def __init__(self, settings: LogSettings, rounds_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._rounds_dir = rounds_dir
        self._clock = clock
        self._due_at = -1.0
        self._analyse_at = -1.0

    async def look(self, database: Database) -> Pruned:
        """Make months, prune the log, the rollouts and the folders of old rounds, if it is time.

        Raises: StoreUnavailable.
        """
        if self._clock() < self._due_at:
            return Pruned()
        try:
            pruned = await self._keep_within(database)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 -- the rounds go on
            _log.exception("upkeep_broke")
            pruned = Pruned()
        self._due_at = -1.0 if pruned.more else self._clock() + LOOK_EVERY_S
        return pruned

    async def _keep_within(self, database: Database) -> Pruned:
        log = RetentionStore(database, self._settings.retention_days, self._settings.keep_problems)
        if made := await log.make_months():
            _log.info("log_months_made", months=made)
        pruned = await log.prune(within_s=WITHIN_S)
        if pruned.months or pruned.episodes:
            _log.info("log_pruned", months=pruned.months, episodes=pruned.month_episodes + pruned.episodes)
        if made or pruned.months or self._clock() >= self._analyse_at:
            await log.analyse()
            self._analyse_at = self._clock() + ANALYSE_EVERY_S
        await self._clean_rounds(database)
        if self._settings.retention_days:
            await self._forget_rounds(database, time.time() - self._settings.retention_days * DAY_S)
        return pruned

    async def _clean_rounds(self, database: Database) -> None:
        """Delete the folders that lie here of rounds that saw what was deleted: no API process may run here."""
        named = {one for deletion in await DeletionStore(database).recent(limit=DELETIONS) for one in deletion.rounds}
        there = await asyncio.to_thread(lambda: sorted(one for one in named if (self._rounds_dir / one).is_dir()))
        rows = [(one, await RoundStore(database).get(one)) for one in there]
        ended = [one for one, row in rows if row is None or row.state.ended]
        if cleaned := await asyncio.to_thread(clean_rounds, self._rounds_dir, ended):
            _log.info("rounds_cleaned", rounds=cleaned)

    async def _forget_rounds(self, database: Database, before: float) -> None:
        rollouts = await RolloutStore(database).delete_before(before)
        folders = await list_old_folders(self._rounds_dir, before, RoundStore(database), AdapterStore(database))
        for folder in folders:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if rollouts or folders:
            _log.info("rounds_forgotten", rollouts=rollouts, folders=len(folders))


async def list_old_folders(
    rounds_dir: Path, before: float, rounds: RoundStore, adapters: AdapterStore
) -> Sequence[Path]:
    """List the folders of rounds that ended before a time (Unix seconds), but for those that an adapter lies in."""
    found: list[Path] = []
    folders = await asyncio.to_thread(lambda: sorted(rounds_dir.glob("rd_*")) if rounds_dir.is_dir() else [])
    for folder in folders:
        row = await rounds.get(folder.name)
        if row is None or not row.state.ended or not 0 < row.ended_at < before:
            continue
        if not any(folder in Path(one.path).parents for one in await adapters.list(row.task)):
            found.append(folder)
    return found
