"""What gates keep of each problem, on both dialects."""

import dataclasses

import pytest

from server.domain import RoundState
from server.errors import Fenced
from server.store.database import Database
from server.store.gates import GateStore, Pair
from server.store.rounds import RoundStore

FIXED = Pair("ep_1", 2, 2, 0.0, 0.0, 0.0, 1.0)
BROKEN = Pair("ep_2", 2, 2, 0.5, 0.5, 1.0, 0.5)
SAME = Pair("ep_3", 2, 1, 0.5, 1.0, 1.0, 1.0)


@pytest.fixture
async def held(database: Database) -> tuple[str, int]:
    rounds = RoundStore(database)
    row = await rounds.lease((await rounds.create("sql", {})).id, "w1")
    assert row is not None
    return row.id, row.epoch


async def test_pairs_come_back_those_that_changed_most_first(database: Database, held) -> None:
    store = GateStore(database)
    await store.record(held, [SAME, BROKEN, FIXED])
    assert await store.list(held[0]) == [FIXED, BROKEN, SAME]
    assert [one.change for one in await store.list(held[0])] == ["fixed", "broken", "same"]
    assert await store.list(held[0], change="broken") == [BROKEN]
    assert await store.list(held[0], limit=1) == [FIXED]
    assert await store.list("rd_none") == []


async def test_a_gate_that_is_held_again_replaces_what_the_earlier_one_kept(database: Database, held) -> None:
    store = GateStore(database)
    await store.record(held, [SAME, BROKEN])
    again = dataclasses.replace(FIXED, samples_after=8)
    await store.record(held, [again])
    assert await store.list(held[0]) == [again]
    await store.record(held, [])
    assert await store.list(held[0]) == []


async def test_many_pairs_are_kept_whole(database: Database, held) -> None:
    many = [dataclasses.replace(SAME, episode_id=f"ep_{number:04}") for number in range(1201)]
    await GateStore(database).record(held, many)
    assert len(await GateStore(database).list(held[0], limit=5000)) == 1201


async def test_a_lease_that_is_over_keeps_nothing(database: Database, held) -> None:
    await RoundStore(database).finish(*held, RoundState.FAILED, "lost")
    with pytest.raises(Fenced):
        await GateStore(database).record(held, [FIXED])
    assert await GateStore(database).list(held[0]) == []
