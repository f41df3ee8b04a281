"""What an API process says of itself while it comes up and while it stops."""

import asyncio

from server.api.traffic import Traffic
from server.api.watch import announce_presence, let_episodes_end
from tests.fixtures.stores import MemoryPresence


async def test_a_process_that_comes_up_is_seen_before_it_acknowledges_anything():
    presence = MemoryPresence()
    await announce_presence("api-1", presence)
    assert presence.reports == [("api-1", {}, {})]


async def test_a_stopping_process_waits_for_its_last_episodes():
    traffic = Traffic(4)

    async def run_episode() -> None:
        with traffic.counted("a@1", 1):
            await ended.wait()

    ended = asyncio.Event()
    episode = asyncio.create_task(run_episode())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(let_episodes_end(traffic))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    ended.set()
    await asyncio.wait_for(waiting, 1.5)
    await episode
