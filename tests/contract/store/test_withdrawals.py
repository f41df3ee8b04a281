"""What becomes of a version that is archived or revoked, and of everything that pins it, on both dialects."""

import asyncio
import time

import pytest
from sqlalchemy import update

from server.domain import Adapter, BindingMode, Task, TaskVerifier
from server.errors import InvalidRequest, NotFound
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.tables import api_keys
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals, put_back

OBSERVE, AUDIT = BindingMode.OBSERVE, BindingMode.AUDIT
FLAG = "trained_on_revoked:sql@2"


@pytest.fixture
async def verifiers(database: Database) -> VerifierStore:
    store = VerifierStore(database)
    for pattern in ("1", "2", "3"):
        await store.add("sql", "regex", {"pattern": pattern})
    return store


class TestRegistering:
    async def test_what_says_the_same_is_not_added_again(self, verifiers: VerifierStore) -> None:
        config = {"pattern": "4", "mode": "search"}
        made, new = await verifiers.register("sql", "regex", config, "four", owner="key_1")
        assert (made.version, new, made.owner) == (4, True, "")
        for description in ("", "four"):
            again = await verifiers.register("sql", "regex", dict(reversed(config.items())), description)
            assert again == (made, False)
        assert (await verifiers.register("sql", "regex", config, "another"))[0].version == 5
        assert (await verifiers.register("sql", "regex", {"pattern": "1"}))[0].version == 6

    @pytest.mark.parametrize("other", [{"pattern": 1}, {"pattern": True}, {"pattern": 1.5}])
    async def test_values_that_only_python_calls_equal_differ(self, database: Database, other: dict) -> None:
        store = VerifierStore(database)
        await store.register("odd", "regex", {"pattern": "1"})
        assert (await store.register("odd", "regex", other))[1]

    async def test_the_same_at_once_is_added_once(self, database: Database) -> None:
        store = VerifierStore(database)
        made = await asyncio.gather(*(store.register("sql", "regex", {"pattern": "\0"}) for _ in range(5)))
        assert [version.version for version, _ in made] == [1] * 5
        assert sum(new for _, new in made) == 1

    @pytest.mark.parametrize("name", ["kinds", "a@1", "", ".x", "x" * 65])
    async def test_names_that_cannot_be(self, database: Database, name: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await VerifierStore(database).register(name, "regex", {})
        assert caught.value.param == "name"


class TestArchiving:
    async def test_an_archived_verifier_is_bound_no_more_and_found_all_the_same(
        self, verifiers: VerifierStore, database: Database
    ) -> None:
        archival = await Withdrawals(database).archive("sql", actor="key_1")
        assert [one.version for one in archival.versions] == [3, 2, 1]
        assert await verifiers.list() == []
        assert await verifiers.newest() == {}
        assert [one.version for one in await verifiers.list(archived=True)] == [3]
        found = await verifiers.get("sql", 1)
        assert found is not None
        assert found.archived_at == pytest.approx(time.time(), abs=60)
        with pytest.raises(InvalidRequest) as caught:
            await verifiers.pin("sql")
        assert caught.value.code == "verifier_archived"
        (event,) = await EventStore(database).list()
        assert (event.kind, event.subject, event.actor) == ("verifier.archived", "sql", "key_1")

    async def test_registering_the_name_again_revives_it(self, verifiers: VerifierStore, database: Database) -> None:
        await Withdrawals(database).archive("sql")
        made, new = await verifiers.register("sql", "regex", {"pattern": "3"})  # as the newest one that is archived
        assert (made.version, new) == (4, True)
        assert await verifiers.list() == [made]
        assert (await verifiers.pin("sql")) == made

    async def test_one_version_may_go_alone(self, verifiers: VerifierStore, database: Database) -> None:
        await Withdrawals(database).archive("sql", 3)
        assert (await verifiers.pin("sql")).version == 2
        assert [one.version for one in await verifiers.list()] == [2]
        assert await verifiers.newest() == {"sql": 2}
        assert [one.pin for one in await verifiers.withdrawn()] == ["sql@3"]
        assert await verifiers.revoked() == frozenset()

    async def test_what_is_pinned_stays(self, verifiers: VerifierStore, database: Database) -> None:
        pins = (TaskVerifier("sql", 2, mode=OBSERVE),)
        await TaskStore(database).create(Task("t", pins))
        await TaskStore(database).create(Task("other", (TaskVerifier("sql_", 2),)))
        keys = KeyStore(database)
        _, key = await keys.create("k", verifiers=(TaskVerifier("sql", 1),))
        _, revoked = await keys.create("gone", verifiers=(TaskVerifier("sql", 1),))
        _, expired = await keys.create("over", verifiers=(TaskVerifier("sql", 1),))
        await keys.revoke(revoked.id)
        async with database.write() as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == expired.id).values(expires_at=1.0))
        archival = await Withdrawals(database).archive("sql")
        assert (archival.versions, archival.tasks, archival.keys) == ((), ("t",), (key.id,))
        assert await verifiers.withdrawn() == []
        assert (await Withdrawals(database).archive("sql", 3)).versions[0].version == 3
        for missing in (("nothing", None), ("sql", 9)):
            with pytest.raises(NotFound):
                await Withdrawals(database).archive(*missing)


class TestRevoking:
    async def test_everything_goes_back_in_one_step(self, verifiers: VerifierStore, database: Database) -> None:
        tasks, keys, adapters = TaskStore(database), KeyStore(database), AdapterStore(database)
        await tasks.create(Task("a", (TaskVerifier("sql", 2, {"x": 1}, {"answer": "text"}), TaskVerifier("b", 2))))
        await tasks.create(Task("c", (TaskVerifier("sql", 1), TaskVerifier("sql", 2, mode=OBSERVE))))
        await tasks.create(Task("d", (TaskVerifier("sql", 3),)))
        _, key = await keys.create("k", verifiers=(TaskVerifier("sql", 2),))
        await adapters.add(Adapter("a@1", "a", "/1", {}))
        await adapters.add(Adapter("a@2", "a", "/2", {}, parent="a@1", verifiers=("b@2", "sql@2")))
        await adapters.add(Adapter("a@3", "a", "/3", {}, parent="a@2"))
        await adapters.add(Adapter("a@4", "a", "/4", {}, parent="a@3", verifiers=("sql@20",)))
        await adapters.add(Adapter("d@1", "d", "/5", {}, verifiers=("sql@3", "sql@22")))

        done = await Withdrawals(database).revoke("sql", 2, "it lets all pass", actor="key_1")
        assert (done.former, done.reason) == ("sql@1", "it lets all pass")
        assert (done.tasks, done.keys, done.adapters) == (("a", "c"), (key.id,), ("a@2", "a@3", "a@4"))
        assert (done.tasks_left, done.keys_left) == ((), ())

        async def pins(name: str) -> tuple[TaskVerifier, ...]:
            found = await tasks.get(name)
            assert found is not None
            return found.verifiers

        assert await pins("a") == (TaskVerifier("sql", 1, {"x": 1}, {"answer": "text"}), TaskVerifier("b", 2))
        assert await pins("c") == (TaskVerifier("sql", 1),)
        assert await pins("d") == (TaskVerifier("sql", 3),)
        assert (await keys.list())[0].verifiers == (TaskVerifier("sql", 1),)
        flags = {one.name: one.flags for one in await adapters.list()}
        assert flags == {"a@1": (), "a@2": (FLAG,), "a@3": (FLAG,), "a@4": (FLAG,), "d@1": ()}
        assert await verifiers.revoked() == {"sql@2"}
        with pytest.raises(InvalidRequest) as caught:
            await verifiers.pin("sql", 2)
        assert caught.value.code == "verifier_revoked"
        (event,) = await EventStore(database).list()
        assert (event.kind, event.subject, event.actor) == ("verifier.revoked", "sql@2", "key_1")
        assert event.details["tasks"] == ["a", "c"]
        assert event.details["adapters"] == ["a@2", "a@3", "a@4"]

        late = await adapters.add(Adapter("a@5", "a", "/6", {}, verifiers=("sql@2", "b@2")))  # its round ran meanwhile
        child = await adapters.add(Adapter("a@6", "a", "/7", {}, parent="a@5"))
        assert (late.flags, child.flags) == ((FLAG,), (FLAG,))

    async def test_without_a_former_version_the_pin_stays(self, verifiers: VerifierStore, database: Database) -> None:
        await TaskStore(database).create(Task("t", (TaskVerifier("sql", 1),)))
        _, key = await KeyStore(database).create("k", verifiers=(TaskVerifier("sql", 1),))
        done = await Withdrawals(database).revoke("sql", 1, "wrong")
        assert (done.former, done.tasks, done.tasks_left, done.keys_left) == (None, (), ("t",), (key.id,))
        task = await TaskStore(database).get("t")
        assert task is not None
        assert task.verifiers == (TaskVerifier("sql", 1),)

    async def test_it_goes_back_past_what_was_withdrawn(self, verifiers: VerifierStore, database: Database) -> None:
        await verifiers.add("sql", "regex", {"pattern": "4"})
        await TaskStore(database).create(Task("t", (TaskVerifier("sql", 4, mode=AUDIT),)))
        await Withdrawals(database).revoke("sql", 3, "wrong")
        await Withdrawals(database).archive("sql", 2)
        assert (await Withdrawals(database).revoke("sql", 4, "wrong too")).former == "sql@1"
        task = await TaskStore(database).get("t")
        assert task is not None
        assert task.verifiers == (TaskVerifier("sql", 1, mode=AUDIT),)
        assert [one.version for one in await verifiers.list()] == [1]

    async def test_a_second_time_does_what_is_left(self, verifiers: VerifierStore, database: Database) -> None:
        first = await Withdrawals(database).revoke("sql", 2, "first")
        await TaskStore(database).create(Task("t", (TaskVerifier("sql", 2),)))  # by who had read it before
        again = await Withdrawals(database).revoke("sql", 2, "second")
        assert (again.reason, again.revoked_at, again.tasks) == ("first", first.revoked_at, ("t",))
        with pytest.raises(NotFound):
            await Withdrawals(database).revoke("sql", 9, "no such")

    async def test_an_adapter_that_is_added_meanwhile_is_flagged(
        self, verifiers: VerifierStore, database: Database
    ) -> None:
        adapters = AdapterStore(database)
        made = [Adapter(f"a@{n}", "a", f"/{n}", {}, verifiers=("sql@2",)) for n in range(8)]
        children = [Adapter(f"b@{n}", "a", f"/b{n}", {}, parent="a@p") for n in range(8)]
        await adapters.add(Adapter("a@p", "a", "/p", {}, verifiers=("sql@2",)))
        adding = [adapters.add(one) for one in (*made, *children)]
        await asyncio.gather(*adding[:8], Withdrawals(database).revoke("sql", 2, "wrong"), *adding[8:])
        assert {one.flags for one in await adapters.list()} == {(FLAG,)}


def test_what_would_watch_its_own_like_is_dropped():
    beside = [TaskVerifier("sql", 2), TaskVerifier("sql", 1, mode=OBSERVE), TaskVerifier("x", 1, mode=OBSERVE)]
    assert put_back(beside, "sql", 2, 1) == [TaskVerifier("sql", 1), TaskVerifier("x", 1, mode=OBSERVE)]
    assert put_back([TaskVerifier("sql", 2, mode=AUDIT)], "sql", 2, 1) == [TaskVerifier("sql", 1, mode=AUDIT)]
    twice = [TaskVerifier("sql", 2, {"x": 1}), TaskVerifier("sql", 2, {"x": 2})]
    assert [pin.args for pin in put_back(twice, "sql", 2, 1)] == [{"x": 1}, {"x": 2}]
