"""`/v1/verifiers`: what checks answers. Registered versions are immutable; trying one runs the very path that serves.

All of it needs the `verifiers` scope: a configuration may be code, or carry what answers are compared with.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Depends

from server.api.context import Context, Rooms
from server.api.render import render_verdict
from server.api.resolution import bind_checked
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import Count, Page, VerifierBody, VerifierTrial
from server.api.roster import make_binding
from server.domain import Event, VerifierVersion
from server.errors import InvalidRequest, NotFound
from verifiers.base import InvalidVerifier
from verifiers.registry import compile_verifier

router = APIRouter(prefix="/v1/verifiers", tags=["verifiers"], dependencies=[Depends(needs("verifiers"))])


@router.post("", status_code=201)
async def add_verifier(body: VerifierBody, rooms: Rooms, key: Caller) -> VerifierVersion:
    """Register a verifier, or its next version."""
    try:
        await asyncio.to_thread(compile_verifier, body.kind, body.config)
    except InvalidVerifier as error:
        raise InvalidRequest(
            f"The verifier does not compile: {error}", param="config", code="invalid_verifier"
        ) from None
    version = await rooms.verifiers.add(body.name, body.kind, body.config, body.description)
    details = {"version": version.version, "kind": version.kind}
    await rooms.events.add(Event("verifier.added", version.name, key.id, details, time.time()))
    await rooms.roster.refresh()
    return version


@router.get("")
async def list_verifiers(rooms: Rooms) -> Page[VerifierVersion]:
    """List the latest version of each verifier."""
    return Page(data=await rooms.verifiers.list())


@router.get("/{name}")
async def show_verifier(name: str, rooms: Rooms, version: Count | None = None) -> VerifierVersion:
    """Show a version of a verifier; the latest where none is named."""
    return await _find(name, version, rooms)


@router.get("/{name}/versions")
async def list_versions(name: str, rooms: Rooms) -> Page[VerifierVersion]:
    """List all versions of a verifier."""
    await _find(name, None, rooms)
    return Page(data=await rooms.verifiers.versions(name))


@router.post("/{name}/run")
async def run_verifier(name: str, body: VerifierTrial, rooms: Rooms) -> dict[str, Any]:
    """Judge an answer as a request would have it judged. Nothing is logged."""
    binding = make_binding(await _find(name, body.version, rooms), body.args, body.when)
    answer = {"role": "assistant", "content": body.answer} if isinstance(body.answer, str) else body.answer
    request = {"messages": body.messages, "tools": body.tools}
    status, score, reason, verdicts = await (await bind_checked((binding,))).judge(request, answer)
    shown = [{**render_verdict(verdict), "safe_for_model": verdict.safe_for_model} for verdict in verdicts]
    return {"verifier": binding.pin, "status": status, "score": score, "reason": reason, "verdicts": shown}


async def _find(name: str, version: int | None, rooms: Context) -> VerifierVersion:
    found = await rooms.verifiers.get(name, version)
    if found is None:
        wanted = name if version is None else f"{name}@{version}"
        raise NotFound(f"There is no verifier {wanted!r}.", code="verifier_not_found")
    return found
