"""Users go first: where the engine knows no priorities, a round's requests wait here; all are counted."""

import asyncio
import time

import pytest

from server.domain import Usage
from server.engine import priority
from server.errors import StoreUnavailable
from server.store.presence import Presence
from tests.unit.trainer.conftest import ScriptedEngine
from trainer import yielding
from trainer.yielding import Courtesy, come_second


class Present:
    """Says, look by look, how many episodes each process has under way."""

    def __init__(self, *looks):
        self.looks = list(looks)

    async def live(self, max_age_s):
        counts = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if counts is None:
            raise StoreUnavailable("away")
        return [Presence(str(number), {}, {"": count}) for number, count in enumerate(counts)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(yielding, "LOOK_S", 0.001)
    monkeypatch.setattr(yielding, "QUIET_S", 0.005)
    monkeypatch.setattr(yielding, "TRICKLE_S", 3600.0)


async def test_a_request_waits_until_no_process_serves_anybody():
    present, engine = Present([0, 2], [1, 0], [0, 0]), ScriptedEngine(lambda _messages: "yes")
    counted: list[Usage] = []
    courtesy = Courtesy(present)
    courtesy._let_at = time.monotonic()  # one has just trickled through
    guest = come_second(engine, counted.append, courtesy)
    await guest.complete_ids([1], "a", {})
    assert len(present.looks) == 1
    await guest.complete({"messages": []}, "a")
    assert counted == [Usage(2, 3), Usage(4, 1)]


async def test_a_busy_server_lets_a_round_trickle(monkeypatch):
    courtesy = Courtesy(Present([1]))
    waiting = [asyncio.create_task(courtesy.wait()) for _ in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=0.05)
    assert len(done) == 1
    monkeypatch.setattr(yielding, "TRICKLE_S", 0.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_store_that_is_away_holds_nothing_back():
    async with asyncio.timeout(5):
        await Courtesy(Present(None)).wait()


async def test_all_else_goes_straight_through():
    engine = ScriptedEngine(lambda _messages: "yes")
    assert come_second(engine, lambda _usage: None).asked is engine.asked


async def test_a_priority_is_the_tasks_own_that_asked_for_it():
    async def ask() -> dict:
        priority.ask_below_users()
        return await asyncio.create_task(read())

    async def read() -> dict:
        return priority.name_priority()

    assert await asyncio.create_task(ask()) == {"priority": priority.ROLLOUT}
    assert priority.name_priority() == {}
