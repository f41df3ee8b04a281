"""`/v1/keys`: API keys. A secret is shown once, when its key is made; afterwards only its hash exists."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import ADMIN
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import KeyBody
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
    )
    details = {"role": made.role, "scopes": made.scopes, "tasks": made.tasks}
    await rooms.events.add(Event("key.created", made.id, caller.id, details, time.time()))
    return {**_render(made, {}), "key": secret}


@router.get("")
async def list_keys(rooms: Rooms) -> dict[str, Any]:
    """List the keys, never their secrets."""
    spent = await KeyLimitStore(rooms.database).spent()
    return {"object": "list", "data": [_render(key, spent) for key in await rooms.keys.list()]}


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
