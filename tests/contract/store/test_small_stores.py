"""Adapters, keys, events and presence, on both dialects."""

import asyncio
import hashlib
import re
from dataclasses import replace

import pytest

from server.domain import Adapter, AdapterStatus, Event, KeyLimits
from server.errors import Conflict, NotFound, StoreUnavailable
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.events import EventStore
from server.store.keys import KeyStore, digest_secret
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore

ADAPTER = Adapter("sql@1", "sql", "/adapters/sql@1", {"adapter_model.safetensors": "ab12"}, created_at=5.5)


async def test_an_adapter_comes_back_as_it_was_added(database: Database) -> None:
    adapters = AdapterStore(database)
    assert await adapters.add(ADAPTER) == ADAPTER
    assert await adapters.get("sql@1") == ADAPTER
    assert await adapters.get("sql@2") is None


async def test_an_adapter_name_is_written_once(database: Database) -> None:
    adapters = AdapterStore(database)
    await adapters.add(ADAPTER)
    with pytest.raises(Conflict):
        await adapters.add(replace(ADAPTER, path="/elsewhere"))
    assert await adapters.get("sql@1") == ADAPTER


async def test_the_holder_of_a_lease_adds_its_adapter(database: Database) -> None:
    adapters, rounds = AdapterStore(database), RoundStore(database)
    leased = await rounds.lease((await rounds.create("sql", {})).id, "w")
    assert leased is not None
    added = await adapters.add(replace(ADAPTER, round_id=leased.id), epoch_of_round=(leased.id, leased.epoch))
    assert await adapters.get("sql@1") == added


async def test_adapters_are_listed_newest_first(database: Database) -> None:
    adapters = AdapterStore(database)
    for name, task, made_at in (("a@1", "a", 1.0), ("a@2", "a", 2.0), ("b@1", "b", 3.0)):
        await adapters.add(Adapter(name, task, "/", {}, created_at=made_at))
    assert [adapter.name for adapter in await adapters.list()] == ["b@1", "a@2", "a@1"]
    assert [adapter.name for adapter in await adapters.list("a")] == ["a@2", "a@1"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "../a"])
async def test_a_name_that_no_adapter_can_have_is_not_there(database: Database, name: str) -> None:
    assert await AdapterStore(database).get(name) is None


async def test_a_status_moves_and_force_stays_marked(database: Database) -> None:
    adapters = AdapterStore(database)
    await adapters.add(ADAPTER)
    forced = await adapters.set_status("sql@1", AdapterStatus.CHAMPION, forced=True)
    assert forced == replace(ADAPTER, status=AdapterStatus.CHAMPION, forced=True)
    retired = await adapters.set_status("sql@1", AdapterStatus.RETIRED)
    assert (retired.status, retired.forced) == (AdapterStatus.RETIRED, True)
    with pytest.raises(NotFound):
        await adapters.set_status("sql@9", AdapterStatus.CANARY)


async def test_a_key_is_found_by_the_digest_of_its_secret_alone(database: Database) -> None:
    keys = KeyStore(database)
    secret, key = await keys.create("ci", scopes=["register_code", "pin_adapters"])
    assert re.fullmatch(r"mk-[A-Za-z0-9_-]{43}", secret)
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest() == digest_secret(secret)
    assert (key.name, key.role, key.scopes) == ("ci", "client", ("register_code", "pin_adapters"))
    assert (key.tasks, key.limits, key.trains, key.revoked_at) == ((), KeyLimits(), True, None)
    assert await keys.by_sha256(key.sha256) == key
    assert await keys.by_sha256(digest_secret("mk-other")) is None
    assert secret not in repr(await keys.list())


async def test_secrets_differ(database: Database) -> None:
    keys = KeyStore(database)
    assert (await keys.create("a"))[0] != (await keys.create("a"))[0]
    assert len(await keys.list()) == 2


async def test_a_revoked_key_is_still_found_and_says_so(database: Database) -> None:
    keys = KeyStore(database)
    _, key = await keys.create("old", "admin")
    revoked = await keys.revoke(key.id)
    assert revoked.revoked_at is not None
    await asyncio.sleep(0.002)
    assert await keys.revoke(key.id) == revoked
    assert await keys.by_sha256(key.sha256) == revoked
    with pytest.raises(NotFound):
        await keys.revoke("key_none")


async def test_events_are_listed_newest_first(database: Database) -> None:
    events = EventStore(database)
    first = await events.add(Event("promotion", "sql@1", "round", {"gain": 0.5}, 7.0))
    second = await events.add(Event("rollback", "sql@1", "key_1"))
    assert second.created_at > 1.7e9
    assert await events.list() == [second, first]
    assert await events.list(1) == [second]


async def test_presence_is_what_was_reported_last(database: Database) -> None:
    presence = PresenceStore(database)
    await presence.report("api-1", {"sql": 1}, {"": 2})
    await presence.report("api-2", {}, {})
    await presence.report("api-1", {"sql": 2, "chat": 0}, {"sql@1": 3})
    first, second = await presence.live(60)
    assert (first.id, first.acknowledged, first.in_flight) == ("api-1", {"sql": 2, "chat": 0}, {"sql@1": 3})
    assert (second.id, second.acknowledged, second.in_flight) == ("api-2", {}, {})


async def test_presence_ends_by_leaving_or_by_silence(database: Database) -> None:
    presence = PresenceStore(database)
    for process in ("api-1", "api-2"):
        await presence.report(process, {}, {})
    await presence.leave("api-1")
    assert [process.id for process in await presence.live(60)] == ["api-2"]
    await asyncio.sleep(0.03)
    assert await presence.live(0.02) == []
    await presence.report("api-2", {}, {})
    assert len(await presence.live(60)) == 1


async def test_a_database_that_was_never_migrated_says_what_to_do(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    with pytest.raises(StoreUnavailable, match="mulligan db upgrade"):
        await EventStore(database).list()
    await database.close()


async def test_an_outage_does_not_tell_clients_where_the_database_is() -> None:
    database = Database("postgresql://somebody:secret@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailable) as caught:
        await EventStore(database).add(Event("a", "b"))
    assert str(caught.value) == "The database cannot be used now"
    assert isinstance(caught.value.__cause__, OSError)
    await database.close()
