"""The verifier store, on both dialects."""

import asyncio

import pytest

from server.store.database import Database
from server.store.verifiers import VerifierStore


@pytest.fixture
def verifiers(database: Database) -> VerifierStore:
    return VerifierStore(database)


async def test_versions_count_up_and_stay_as_they_were(verifiers: VerifierStore) -> None:
    first = await verifiers.add("sql", "regex", {"pattern": "SELECT", "flags": {"b": 1, "a": 2}}, "a query")
    second = await verifiers.add("sql", "json_schema", {"schema": {}})
    assert (first.version, first.kind, first.description, second.version) == (1, "regex", "a query", 2)
    assert first.created_at > 1.7e9
    assert await verifiers.get("sql", 1) == first
    assert await verifiers.get("sql") == second
    assert await verifiers.get("sql", 3) is None
    assert await verifiers.get("other") is None
    assert await verifiers.versions("sql") == [second, first]
    assert await verifiers.versions("other") == []


async def test_the_order_of_keys_in_a_config_is_kept(verifiers: VerifierStore) -> None:
    await verifiers.add("shape", "json_schema", {"zebra": 1, "ape": {"y": 1, "x": 2}, "b": 3})
    found = await verifiers.get("shape")
    assert found is not None
    assert list(found.config) == ["zebra", "ape", "b"]
    assert list(found.config["ape"]) == ["y", "x"]


async def test_the_list_holds_the_latest_of_each(verifiers: VerifierStore) -> None:
    await verifiers.add("b", "regex", {"pattern": "1"})
    latest = await verifiers.add("b", "regex", {"pattern": "2"})
    other = await verifiers.add("a", "regex", {"pattern": "3"})
    assert await verifiers.list() == [other, latest]
    assert await verifiers.newest() == {"a": 1, "b": 2}


async def test_versions_added_at_once_all_get_a_number_of_their_own(verifiers: VerifierStore) -> None:
    added = await asyncio.gather(*(verifiers.add("sql", "regex", {"pattern": str(n)}) for n in range(5)))
    assert sorted(version.version for version in added) == [1, 2, 3, 4, 5]
    assert await verifiers.versions("sql") == sorted(added, key=lambda version: -version.version)
