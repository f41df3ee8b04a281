"""`/v1/keys`: API keys. A secret is shown once, when its key is made; afterwards only its hash exists."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import ADMIN
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.pins import name_pins, pin_verifiers
from server.api.rest.schemas import KeyBody, KeyChanges, KeyLimitsBody
from server.domain import ApiKey, Event, KeyLimits
from server.store.key_limits import KeyLimitStore

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[Depends(needs(ADMIN))])


@router.post("", status_code=201)
async def create_key(body: KeyBody, rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Make a key; `key` holds its secret, this once."""
    secret, made = await rooms.keys.create(
        body.name,
        body.role,
        scopes=body.scopes,
        tasks=body.tasks,
        limits=KeyLimits(**body.limits.model_dump()),
        trains=body.trains,
        expires_at=body.expires_at,
        verifiers=await pin_verifiers(body.verifiers, rooms),
    )
    details = {"role": made.role, "scopes": made.scopes, "tasks": made.tasks, "verifiers": name_pins(made.verifiers)}
    await rooms.events.add(Event("key.created", made.id, caller.id, details, time.time()))
    return {**_render(made, {}), "key": secret}


@router.get("")
async def list_keys(rooms: Rooms) -> dict[str, Any]:
    """List the keys, never their secrets."""
    spent = await KeyLimitStore(rooms.database).spent()
    return {"object": "list", "data": [_render(key, spent) for key in await rooms.keys.list()]}


@router.patch("/{key_id}")
async def change_key(key_id: str, body: KeyChanges, rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Change a key, but not its role; within a second every process goes by it. A revoked one stays as it is."""
    before = await rooms.keys.get(key_id)
    changes = {name: value for name, value in body if name in body.model_fields_set and _says(name, value)}
    if body.limits is not None:
        changes["limits"] = _read_limits(body.limits)
    if body.verifiers is not None:
        changes["verifiers"] = await pin_verifiers(body.verifiers, rooms, before.verifiers if before else ())
    key = await rooms.keys.update(key_id, **changes)
    rooms.keyring.forget(key.sha256)
    await rooms.events.add(Event("key.changed", key_id, caller.id, {"changed": sorted(changes)}, time.time()))
    return _render(key, await KeyLimitStore(rooms.database).spent())


def _says(name: str, value: Any) -> bool:
    return value is not None or name == "expires_at"  # null is an end that was given: never


def _read_limits(body: KeyLimitsBody) -> dict[str, Any]:
    given = body.model_dump(exclude_unset=True)
    if "token_budget" in given and given["token_budget"] is None:
        given.setdefault("budget_period", KeyLimits().budget_period)  # of no budget there is no period
    return given


@router.delete("/{key_id}")
async def revoke_key(key_id: str, rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Revoke a key; within a second every process refuses it."""
    revoked = await rooms.keys.revoke(key_id)
    rooms.keyring.forget(revoked.sha256)
    await rooms.events.add(Event("key.revoked", key_id, caller.id, {}, time.time()))
    return _render(revoked, await KeyLimitStore(rooms.database).spent())


def _render(key: ApiKey, spent: Mapping[str, int]) -> dict[str, Any]:
    budget_spent = None if key.limits.token_budget is None else spent.get(key.id, 0)
    shown = {name: value for name, value in asdict(key).items() if name != "sha256"}
    return {**shown, "budget_spent": budget_spent}
