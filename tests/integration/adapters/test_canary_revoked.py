"""A canary whose reward turns out to have been wrong: it is taken off the traffic, unless a person dared."""

import pytest

from server.adapters.canary import CanaryKeeper, begin_canary
from server.adapters.rooms import SwapRooms
from server.domain import Adapter, AdapterStatus, CanaryPolicy, CanaryState, Task
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.moves import Hand
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals
from tests.fixtures.engines import ScriptedEngine


@pytest.mark.parametrize(
    ("forced", "champion_too", "stays"), [(False, False, False), (True, False, True), (False, True, True)]
)
async def test_a_canary_ends_where_its_verifier_was_revoked(sqlite_url: str, forced, champion_too, stays):
    database = Database(sqlite_url)
    try:
        rooms = SwapRooms.open(database, ScriptedEngine())
        version = await VerifierStore(database).add("four", "regex", {"pattern": "4"})
        await TaskStore(database).create(Task("t"))
        pins = (f"{version.name}@{version.version}",)
        await AdapterStore(database).add(Adapter("t@1", "t", "/1", {}, verifiers=pins if champion_too else ()))
        await AdapterStore(database).add(Adapter("t@2", "t", "/2", {}, parent="t@1", verifiers=pins))
        await TaskStore(database).flip_champion("t", "t@1", expected_generation=0)
        await begin_canary("t@2", CanaryPolicy(), rooms, actor="p", hand=Hand("p", "I dare", forced=forced))
        assert await CanaryKeeper(drain_timeout_s=1.0).look(rooms) == 0
        await Withdrawals(database).revoke("four", 1, "it passes anything")
        assert await CanaryKeeper(drain_timeout_s=1.0).look(rooms) == (0 if stays else 1)
        task, adapter = await TaskStore(database).get("t"), await AdapterStore(database).get("t@2")
        canary = await rooms.canaries.find_latest("t@2")
        assert task
        assert adapter
        assert canary
        assert task.champion == "t@1"
        assert task.canary == ("t@2" if stays else "")
        assert adapter.status is (AdapterStatus.CANARY if stays else AdapterStatus.CANDIDATE)
        assert canary.state is (CanaryState.RUNNING if stays else CanaryState.SUPERSEDED)
        assert stays or canary.reason == "a verifier that rewarded it was revoked since: four@1"
    finally:
        await database.close()
