"""What a key may be, and what is kept of its use, on both dialects."""

import time
from dataclasses import replace

import pytest

from server.domain import BindingMode, KeyLimits, Role, Task, TaskVerifier
from server.errors import Conflict, InvalidRequest, NotFound
from server.store.database import Database
from server.store.keys import NOTED_EVERY_S, KeyStore
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore


@pytest.fixture
async def keys(database: Database) -> KeyStore:
    await TaskStore(database).create(Task("sql"))
    await TaskStore(database).create(Task("sums"))
    return KeyStore(database)


async def test_a_key_comes_back_with_all_that_it_was_given(keys: KeyStore) -> None:
    limits = KeyLimits(60, 1000, 4, 10**12, "month")
    expires_at = time.time() + 1000.5
    _, key = await keys.create(
        "app", scopes=["pin_adapters", "pin_adapters"], tasks=["sums", "sql", "sums"], limits=limits, trains=False,
        expires_at=expires_at,
    )  # fmt: skip
    assert (key.role, key.scopes, key.tasks) == (Role.CLIENT, ("pin_adapters",), ("sums", "sql"))
    assert (key.limits, key.trains, key.expires_at, key.last_used_at) == (limits, False, expires_at, None)
    assert await keys.by_sha256(key.sha256) == key
    assert await keys.list() == [key]


@pytest.mark.parametrize(
    ("role", "scopes"), [("client", ("inline_verifiers",)), ("viewer", ()), ("approver", ()), ("admin", ())]
)
async def test_a_role_begins_with_its_scopes(keys: KeyStore, role: str, scopes: tuple[str, ...]) -> None:
    _, key = await keys.create("k", role)
    assert (key.role, key.scopes) == (role, scopes)
    assert (await keys.create("k", role, scopes=[]))[1].scopes == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"role": "king"}, "role"),
        ({"scopes": ["inference"]}, "scopes"),
        ({"role": "viewer", "scopes": ["pin_adapters"]}, "scopes"),
        ({"role": "admin", "scopes": ["pin_adapters"]}, "scopes"),
        ({"tasks": ["sql", "nothing"]}, "tasks"),
        ({"role": "viewer", "tasks": ["sql"]}, "tasks"),
        ({"limits": KeyLimits(requests_per_minute=0)}, "limits.requests_per_minute"),
        ({"limits": KeyLimits(tokens_per_minute=2**31)}, "limits.tokens_per_minute"),
        ({"limits": KeyLimits(max_concurrent=-1)}, "limits.max_concurrent"),
        ({"limits": KeyLimits(token_budget=2**53)}, "limits.token_budget"),
        ({"limits": KeyLimits(token_budget=1, budget_period="week")}, "limits.budget_period"),
        ({"limits": KeyLimits(budget_period="day")}, "limits.budget_period"),
        ({"role": "approver", "limits": KeyLimits(max_concurrent=1)}, "limits"),
        ({"expires_at": 1.0}, "expires_at"),
        ({"expires_at": 1e12}, "expires_at"),
        ({"expires_at": float("nan")}, "expires_at"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(keys: KeyStore, fields: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await keys.create("k", **fields)
    assert caught.value.param == param
    assert await keys.list() == []


async def test_uses_are_written_once_a_minute(keys: KeyStore) -> None:
    first, second = (await keys.create("first"))[1], (await keys.create("second"))[1]

    async def written() -> list[float | None]:
        return [key.last_used_at for key in await keys.list()]

    await keys.note_uses({first.id: 1000.0, "key_gone": 1000.0})
    assert await written() == [1000.0, None]
    await keys.note_uses({first.id: 1000.0 + NOTED_EVERY_S - 1, second.id: 1030.0})
    assert await written() == [1000.0, 1030.0]
    await keys.note_uses({first.id: 1000.0 + NOTED_EVERY_S, second.id: 900.0})
    assert await written() == [1060.0, 1030.0]


async def test_a_verifier_keeps_its_first_owner(database: Database) -> None:
    verifiers = VerifierStore(database)
    assert (await verifiers.add("mine", "regex", {}, owner="key_1")).owner == "key_1"
    assert (await verifiers.add("mine", "regex", {}, owner="key_2")).owner == "key_1"
    assert (await verifiers.add("ours", "regex", {})).owner == ""
    assert (await verifiers.add("ours", "regex", {}, owner="key_1")).owner == ""


async def test_a_key_is_changed_in_what_is_named(keys: KeyStore) -> None:
    limits = KeyLimits(requests_per_minute=60, token_budget=1000, budget_period="day")
    _, key = await keys.create("app", tasks=["sql"], limits=limits)
    pins = (TaskVerifier("shape", 2, {"x": 1}),)
    expires_at = time.time() + 1000
    changed = await keys.update(key.id, limits={"requests_per_minute": 5}, verifiers=pins, expires_at=expires_at)
    assert changed == replace(key, limits=replace(limits, requests_per_minute=5), verifiers=pins, expires_at=expires_at)
    assert await keys.get(key.id) == changed
    again = await keys.update(key.id, name="new", scopes=[], tasks=["sums"], trains=False, expires_at=None)
    assert (again.name, again.scopes, again.tasks, again.trains, again.expires_at) == (
        "new",
        (),
        ("sums",),
        False,
        None,
    )
    assert (again.limits, again.verifiers, again.sha256) == (changed.limits, pins, key.sha256)
    assert await keys.by_sha256(key.sha256) == again
    assert await keys.update(key.id) == again


@pytest.mark.parametrize(
    ("role", "changes", "param"),
    [
        ("client", {"scopes": ["inference"]}, "scopes"),
        ("client", {"tasks": ["nothing"]}, "tasks"),
        ("client", {"limits": {"max_concurrent": 0}}, "limits.max_concurrent"),
        ("client", {"limits": {"token_budget": None}}, "limits.budget_period"),
        ("client", {"expires_at": 1.0}, "expires_at"),
        ("client", {"verifiers": [TaskVerifier("shape", 1, mode=BindingMode.OBSERVE)]}, "verifiers"),
        ("admin", {"scopes": ["pin_adapters"]}, "scopes"),
        ("admin", {"tasks": ["sql"]}, "tasks"),
        ("viewer", {"limits": {"max_concurrent": 1}}, "limits"),
        ("viewer", {"verifiers": [TaskVerifier("shape", 1)]}, "verifiers"),
    ],
)
async def test_a_change_that_cannot_be_changes_nothing(keys: KeyStore, role: str, changes: dict, param: str) -> None:
    limits = KeyLimits(token_budget=5, budget_period="day") if role == "client" else None
    _, key = await keys.create("k", role, limits=limits)
    with pytest.raises(InvalidRequest) as caught:
        await keys.update(key.id, **{"trains": False, **changes})
    assert caught.value.param == param
    assert await keys.list() == [key]


async def test_what_never_changes(keys: KeyStore) -> None:
    _, key = await keys.create("k")
    with pytest.raises(TypeError, match="role"):
        await keys.update(key.id, role="admin")
    await keys.revoke(key.id)
    with pytest.raises(Conflict, match="revoked"):
        await keys.update(key.id, trains=False)
    with pytest.raises(NotFound):
        await keys.update("key_none", trains=False)
