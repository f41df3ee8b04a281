"""`/v1/verifiers`: what checks answers. Registered versions are immutable; trying one runs the very path that serves.

A client key sees those that it may use, and what they are made of only where it may register some itself: a
configuration may be code, or carry what answers are compared with.
"""

import asyncio
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import READ, may_read_configs, may_use_verifier, require_scope
from server.api.context import Context, Rooms
from server.api.render import render_verdict
from server.api.resolution import bind_checked, runs_code
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import Count, Page, VerifierBody, VerifierTrial, VerifierView
from server.api.roster import make_binding
from server.domain import ApiKey, Event, Scope, VerifierVersion
from server.errors import Conflict, InvalidRequest, NotFound
from verifiers.base import InvalidVerifier
from verifiers.registry import compile_verifier

REGISTER = (Scope.REGISTER_VERIFIERS, Scope.REGISTER_CODE)

router = APIRouter(prefix="/v1/verifiers", tags=["verifiers"])
reader = [Depends(needs(READ))]
registrar = [Depends(needs(*REGISTER))]


@router.post("", dependencies=registrar, status_code=201)
async def add_verifier(body: VerifierBody, rooms: Rooms, key: Caller) -> VerifierView:
    """Register a verifier, or its next version."""
    require_scope(key, Scope.REGISTER_CODE if runs_code(body.kind, body.config) else Scope.REGISTER_VERIFIERS)
    latest = await rooms.verifiers.get(body.name)
    if latest is not None and not _may_use(key, latest, rooms):
        raise Conflict(f"The name {body.name!r} is taken.", param="name")
    try:
        await asyncio.to_thread(compile_verifier, body.kind, body.config)
    except InvalidVerifier as error:
        raise InvalidRequest(
            f"The verifier does not compile: {error}", param="config", code="invalid_verifier"
        ) from None
    version = await rooms.verifiers.add(body.name, body.kind, body.config, body.description, owner=key.id)
    details = {"version": version.version, "kind": version.kind}
    await rooms.events.add(Event("verifier.added", version.name, key.id, details, time.time()))
    await rooms.roster.refresh()
    return _show(version, key)


@router.get("", dependencies=reader)
async def list_verifiers(rooms: Rooms, key: Caller) -> Page[VerifierView]:
    """List the latest version of each verifier that the key may use."""
    return Page(data=[_show(one, key) for one in await rooms.verifiers.list() if _may_use(key, one, rooms)])


@router.get("/{name}", dependencies=reader)
async def show_verifier(name: str, rooms: Rooms, key: Caller, version: Count | None = None) -> VerifierView:
    """Show a version of a verifier; the latest where none is named."""
    return _show(await _find(name, version, rooms, key), key)


@router.get("/{name}/versions", dependencies=reader)
async def list_versions(name: str, rooms: Rooms, key: Caller) -> Page[VerifierView]:
    """List all versions of a verifier."""
    await _find(name, None, rooms, key)
    return Page(data=[_show(one, key) for one in await rooms.verifiers.versions(name)])


@router.post("/{name}/run", dependencies=registrar)
async def run_verifier(name: str, body: VerifierTrial, rooms: Rooms, key: Caller) -> dict[str, Any]:
    """Judge an answer as a request would have it judged. Nothing is logged."""
    binding = make_binding(await _find(name, body.version, rooms, key), body.args, body.when)
    answer = {"role": "assistant", "content": body.answer} if isinstance(body.answer, str) else body.answer
    request = {"messages": body.messages, "tools": body.tools}
    status, score, reason, verdicts = await (await bind_checked((binding,))).judge(request, answer)
    shown = [{**render_verdict(verdict), "safe_for_model": verdict.safe_for_model} for verdict in verdicts]
    return {"verifier": binding.pin, "status": status, "score": score, "reason": reason, "verdicts": shown}


async def _find(name: str, version: int | None, rooms: Context, key: ApiKey) -> VerifierVersion:
    found = await rooms.verifiers.get(name, version)
    if found is None or not _may_use(key, found, rooms):
        wanted = name if version is None else f"{name}@{version}"
        raise NotFound(f"There is no verifier {wanted!r}.", code="verifier_not_found")
    return found


def _may_use(key: ApiKey, version: VerifierVersion, rooms: Context) -> bool:
    return may_use_verifier(key, version, rooms.roster.snapshot.tasks)


def _show(version: VerifierVersion, key: ApiKey) -> VerifierView:
    config = dict(version.config) if may_read_configs(key) else None
    return VerifierView(**{**asdict(version), "config": config})
