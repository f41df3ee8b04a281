"""What child processes of these tests do. Forked from a server that has imported this module, which takes seconds."""

import asyncio
import itertools
from multiprocessing.connection import Connection
from pathlib import Path

from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from tests.fixtures.episodes import make_episode


def record_until_killed(url: str, spool: Path, told: Connection) -> None:
    """Record episodes, eight at a time, and send the id of each once `record` has returned."""

    async def record_forever(log: EpisodeLog) -> None:
        for _ in itertools.count():
            episode = make_episode()
            await log.record(episode)
            told.send(episode.id)

    async def work() -> None:
        log = EpisodeLog(Database(url), LogSettings(), spool)
        await log.start()
        await asyncio.gather(*(record_forever(log) for _ in range(8)))

    asyncio.run(work())
