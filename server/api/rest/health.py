"""`GET /health` and `GET /ready`, for those who watch the server. Public, so they tell no names and no reasons of ours.

Live means that this process answers; ready means that an episode would find its engine, its champion and its log.
"""

import asyncio

from fastapi import APIRouter, Response

from server.api.context import Rooms
from server.errors import StoreUnavailable

DATABASE_TIMEOUT_S = 2.0

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def show_health() -> dict[str, str]:
    """Say that this process is alive."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def show_readiness(rooms: Rooms, response: Response) -> dict[str, object]:
    """Say whether requests can be served; 503 with what is missing where not."""
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
    if missing:
        response.status_code = 503
        response.headers["retry-after"] = "1"
    return {"status": "unready" if missing else "ready", "missing": missing}
