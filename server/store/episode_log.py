"""The episode log: one group-committing writer a process.

`record` returns once the episode is committed in the database, or synced to the spool while the database is away: an
answer that the client received is in the log. Owned by the composition roots; called by the API after each episode.
It must never let one bad episode or an absent database hold up the others.

How it paces itself: an idle writer commits at once. Whatever arrives during a commit goes into the next one together,
and under such load at least `commit_interval_ms` lie between the starts of two commits.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from server.domain import Episode
from server.errors import StoreUnavailable
from server.redaction import Redact, RedactionFailed
from server.settings import LogSettings
from server.store.backlog import Backlog
from server.store.database import Database
from server.store.episode_insert import EpisodeInserter
from server.store.episode_rows import EpisodeRows, encode_episode, hash_users
from server.store.outages import first_line
from server.store.redacting import redact_episode, withhold

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    rows: EpisodeRows
    done: "asyncio.Future[None]"

    def resolve(self, error: Exception | None = None) -> None:
        """Wake the caller, unless it went away."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class EpisodeLog:
    """Records episodes durably, many to a commit, idempotently by id."""

    def __init__(
        self,
        database: Database,
        settings: LogSettings,
        spool_dir: Path,
        *,
        commit_timeout_s: float = 10.0,
        probe_interval_s: float = 1.0,
        adopt_interval_s: float = 30.0,
        redact: Redact | None = None,
    ) -> None:
        self._settings = settings
        self._redact = redact
        self.note: Callable[[str, int, float], object] | None = None
        """Is told of each commit: to the `database` or the `spool`, or `refused`; how many episodes, and seconds."""
        self.withheld = 0  # episodes whose content the redactor's failure kept out
        self._probe_interval_s = probe_interval_s
        self._adopt_interval_s = adopt_interval_s
        self._inserter = EpisodeInserter(database, spool_dir, timeout_s=commit_timeout_s)
        self._replayer = EpisodeInserter(database, spool_dir, timeout_s=commit_timeout_s)
        self._backlog = Backlog(spool_dir, settings.spool_max_bytes, self._replayer)
        self._queue: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._spooled = asyncio.Event()  # something waits in the spool since the last look
        self._stopped = asyncio.Event()
        self._away = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def spooling(self) -> bool:
        """Whether the database is away, so that episodes go to the spool."""
        return self._away

    @property
    def spool_bytes(self) -> int:
        """How much is waiting in this process's spool."""
        return self._backlog.size_bytes

    async def start(self) -> None:
        """Start writing; episodes that earlier processes left in the spool follow in the background."""
        self._tasks = [asyncio.create_task(self._write_forever()), asyncio.create_task(self._replay_forever())]

    async def record(self, episode: Episode) -> None:
        """Log an episode; once this returns, it survives a kill -9.

        A caller that is cancelled while it waits does not take its episode out of the log.

        Raises: StoreUnavailable if neither the database nor the spool can take it; TypeError or OverflowError for an
        episode that cannot be written down.
        """
        if not self._tasks or self._backlog.stopping:
            raise StoreUnavailable("The episode log is closed")
        entry = _Entry(self._encode(episode), asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._arrived.set()
        await entry.done

    def _encode(self, episode: Episode) -> EpisodeRows:
        """Make an episode's rows, redacted; where the redactor fails, without anything that was said."""
        if self._redact is None:
            return encode_episode(episode)
        users = hash_users(episode.request)
        try:
            return encode_episode(redact_episode(episode, self._redact), users)
        except RedactionFailed as error:
            self.withheld += 1
            log.error(  # noqa: TRY400 - a traceback may hold the text
                "The redactor failed; the episode is logged without its content",
                episode=episode.id,
                error=str(error),
                so_far=self.withheld,
            )
            return encode_episode(withhold(episode))

    async def stop(self) -> None:
        """Write what is queued, then close the spool. Further calls of `record` are refused."""
        self._backlog.stopping = True
        for event in (self._arrived, self._spooled, self._stopped):
            event.set()
        await asyncio.gather(*self._tasks)
        self._tasks = []
        await self._backlog.close()
        await self._inserter.close()

    async def _write_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                started_at = clock()
                count = min(len(self._queue), self._settings.commit_max_episodes)
                await self._write([self._queue.popleft() for _ in range(count)])
                if 0 < len(self._queue) < self._settings.commit_max_episodes and not self._backlog.stopping:
                    await asyncio.sleep(started_at + self._settings.commit_interval_ms / 1000 - clock())
            if self._backlog.stopping:
                return

    async def _write(self, batch: list[_Entry]) -> None:
        """Bring a batch to the database or to the spool, and wake its callers."""
        started = time.perf_counter()
        if not self._away:
            try:
                await self._inserter.insert([entry.rows for entry in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, the spool takes the batch
                self._away = True
                log.error("The database is away; episodes go to the spool", error=first_line(error))  # noqa: TRY400
            else:
                for entry in batch:
                    entry.resolve()
                self._note("database", len(batch), started)
                return
        try:
            taken = await self._backlog.append([entry.rows for entry in batch])
        except Exception as error:  # noqa: BLE001 - the writer must outlive it, and the callers must be told
            log.error("The spool cannot be written", error=first_line(error))  # noqa: TRY400
            taken = [False] * len(batch)
        self._spooled.set()
        for entry, safe in zip(batch, taken, strict=True):
            entry.resolve(None if safe else StoreUnavailable("The database is away and the spool takes no more"))
        self._note("spool", sum(taken), started)
        self._note("refused", len(taken) - sum(taken), started)

    def _note(self, place: str, episodes: int, started: float) -> None:
        if self.note is not None and episodes:
            self.note(place, episodes, time.perf_counter() - started)

    async def _replay_forever(self) -> None:
        """Bring spooled episodes home: at the start, when the database is back, and now and then for the dead."""
        while not self._backlog.stopping:
            self._spooled.clear()
            try:
                if self._away:
                    await self._replayer.probe()
                await self._backlog.replay_own()
                if self._away:
                    self._away = False
                    log.info("The database is back")
                await self._backlog.adopt()
            except Exception as error:  # noqa: BLE001 - the loop must outlive it; the episodes stay in the spool
                log.warning("Spooled episodes still wait", error=first_line(error))
            finally:
                await self._replayer.close()
            await self._rest()

    async def _rest(self) -> None:
        """Wait for something to do."""
        waiting = self._away or not self._backlog.empty
        pause_s = self._probe_interval_s if waiting else self._adopt_interval_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await (self._stopped if waiting else self._spooled).wait()
