"""`GET /health` and `GET /ready`, for those who watch the server. Public, so they tell no names and no reasons of ours.

Live means that this process answers; ready means that an episode would find its engine, its champion and its log. A
stopped verifier leaves a process ready, since answers are served and marked; it is `degraded`, and who shows a key that
reads everything is told which verifiers are stopped.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.auth import READ_ALL, may
from server.api.context import Context, Rooms
from server.errors import StoreUnavailable, Unauthorized

DATABASE_TIMEOUT_S = 2.0

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def show_health() -> dict[str, str]:
    """Say that this process is alive."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def show_readiness(rooms: Rooms, request: Request, response: Response) -> dict[str, Any]:
    """Say whether requests can be served, 503 with what is missing where not; and what is served worse than it should.

    With the key of a viewer, an approver or an admin, `broken` says by name which adapters that serve lack files or
    have altered ones, `stopped` lists the verifiers that are stopped in this process, and `engines_out`
    says of each engine that takes no requests of it, by its address, why not.
    """
    missing = []
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_S):
            await rooms.database.ping()
    except (StoreUnavailable, TimeoutError):
        missing.append("database")
    if not await rooms.engine.ready():
        missing.append("engine")
    elif not rooms.readiness.adapters:
        missing.append("adapters")
    if rooms.readiness.broken:
        missing.append("adapter files")
    if missing:
        response.status_code = 503
        response.headers["retry-after"] = "1"
    stops = rooms.watch.stops()
    out = rooms.engine.out()
    degraded = [*(["verifiers"] if stops else []), *(["engines"] if out and rooms.engine.seen() else [])]
    said = {"status": "unready" if missing else "ready", "missing": missing, "degraded": degraded}
    if await _reads_all(request, rooms):
        said["broken"] = dict(rooms.readiness.broken)
        said["stopped"] = [asdict(stop) for stop in stops]
        said["engines_out"] = dict(out)
    return said


async def _reads_all(request: Request, rooms: Context) -> bool:
    """Say whether the request shows a key that may read everything; nobody has to show one here."""
    shown = request.headers.get("authorization")
    if shown is None:
        return False
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_S):
            return may(await rooms.keyring.recognise(shown), READ_ALL)
    except (Unauthorized, StoreUnavailable, TimeoutError):
        return False
