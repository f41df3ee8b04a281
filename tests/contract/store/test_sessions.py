"""Logins of the dashboard: kept by their hash, with the hash of their key, and swept out. On both dialects."""

import time

import pytest

from server.store.database import Database
from server.store.keys import KeyStore
from server.store.sessions import SessionStore


@pytest.fixture
async def key(database: Database):
    return (await KeyStore(database).create("ops", "viewer"))[1]


async def test_a_session_is_found_with_its_keys_hash(database: Database, key) -> None:
    store = SessionStore(database)
    expires_at = await store.begin("a" * 64, key.id, 60.0)
    found = await store.find("a" * 64)
    assert found is not None
    assert (found.key, found.key_sha256, found.expires_at) == (key.id, key.sha256, expires_at)
    assert abs(expires_at - time.time() - 60) < 60
    assert await store.find("b" * 64) is None


async def test_one_that_ended_is_gone_and_may_end_again(database: Database, key) -> None:
    store = SessionStore(database)
    await store.begin("a" * 64, key.id, 60.0)
    await store.end("a" * 64)
    await store.end("a" * 64)
    assert await store.find("a" * 64) is None


async def test_whoever_begins_sweeps_out_what_is_over(database: Database, key) -> None:
    store = SessionStore(database)
    await store.begin("a" * 64, key.id, -1.0)
    assert await store.find("a" * 64) is not None
    await store.begin("b" * 64, key.id, 60.0)
    assert await store.find("a" * 64) is None
    assert await store.find("b" * 64) is not None


async def test_a_session_of_no_key_is_nobodys(database: Database) -> None:
    await SessionStore(database).begin("a" * 64, "key_gone", 60.0)
    assert await SessionStore(database).find("a" * 64) is None
