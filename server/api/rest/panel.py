"""`GET /v1/tasks/{name}/panel`: what the frozen panel says of the base model and of every champion."""

from fastapi import APIRouter, Depends

from server.api.auth import READ_ALL
from server.api.context import Rooms
from server.api.rest.access import needs
from server.api.rest.tasks import find_task
from server.orchestration.panel import PanelReport, read_panel

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


@router.get("/{name}/panel", dependencies=[Depends(needs(READ_ALL))])
async def show_panel(name: str, rooms: Rooms) -> PanelReport:
    """Show what the newest version of a task's panel says of the base model and of each champion, beside the base."""
    return await read_panel((await find_task(name, rooms)).name, rooms.database)
