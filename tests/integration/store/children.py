"""What child processes of these tests do. Forked from a server that has imported this module, which takes seconds."""

import asyncio
import itertools
import time
from multiprocessing.connection import Connection
from pathlib import Path

from server.api.limits import KeyLimiter
from server.domain import ApiKey
from server.errors import TooManyRequests
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.key_limits import KeyLimitStore
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


def take_requests(url: str, key: ApiKey, name: str, told: Connection) -> None:
    """Let in requests of a key until none was let in for two seconds; send how many it were."""

    async def work() -> int:
        database = Database(url)
        limiter = KeyLimiter(KeyLimitStore(database), name)
        loop = asyncio.create_task(limiter.run())
        count, last = 0, time.monotonic()
        while time.monotonic() - last < 2:
            try:
                await limiter.admit(key)
            except TooManyRequests:
                await asyncio.sleep(0.02)
                continue
            count, last = count + 1, time.monotonic()
            await asyncio.sleep(0.002)
        loop.cancel()
        await asyncio.wait([loop])
        await limiter.stop()
        await database.close()
        return count

    told.send(asyncio.run(work()))


def hold_slots(url: str, key: ApiKey, told: Connection) -> None:
    """Let in as many requests as may run at the same time, say so, and keep them running until killed."""

    async def work() -> None:
        limiter = KeyLimiter(KeyLimitStore(Database(url)), "api-held")
        for _ in range(key.limits.max_concurrent or 0):
            await limiter.admit(key)
        told.send(key.limits.max_concurrent)
        await limiter.run()

    asyncio.run(work())
