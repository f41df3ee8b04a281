"""`/v1/rounds`: training rounds. A round is a row first; the queue is only told that it is there."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from server.api.auth import ADMIN, APPROVE, READ_ALL
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import Page, RoundBody
from server.api.rest.tasks import find_task
from server.domain import Event, Round
from server.errors import NotFound
from server.orchestration.slots import find_room, refuse_unplaced
from server.orchestration.training_options import check_options

router = APIRouter(prefix="/v1", tags=["rounds"])
reader = [Depends(needs(READ_ALL))]


@router.post("/tasks/{task}/rounds", dependencies=[Depends(needs(ADMIN))], status_code=201)
async def start_round(task: str, rooms: Rooms, key: Caller, body: RoundBody | None = None) -> Round:
    """Ask for a round of a task. 409 while one is queued or running."""
    found = await find_task(task, rooms)
    options = body.options if body else {}
    await check_options(found.training.options, options)
    refuse_unplaced(await rooms.tasks.list(), await find_room(rooms.settings.engine), found)
    queued = await rooms.rounds.create(task, options)
    await rooms.events.add(Event("round.requested", queued.id, key.id, {"task": task, "options": options}, time.time()))
    await asyncio.to_thread(rooms.doorbell.ring_round, queued.id, queued.pool)  # blocks while the broker is away
    return queued


@router.get("/rounds", dependencies=reader)
async def list_rounds(
    rooms: Rooms, task: str | None = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> Page[Round]:
    """List rounds, newest first."""
    return Page(data=await rooms.rounds.list(task, limit))


@router.get("/rounds/{round_id}", dependencies=reader)
async def show_round(round_id: str, rooms: Rooms) -> dict[str, Any]:
    """Show a round with its steps."""
    found = await rooms.rounds.get(round_id)
    if found is None:
        raise NotFound(f"There is no round {round_id!r}.", code="round_not_found")
    return {"round": found, "steps": await rooms.rounds.steps(round_id)}


@router.post("/rounds/{round_id}/cancel", dependencies=[Depends(needs(APPROVE))])
async def cancel_round(round_id: str, rooms: Rooms, key: Caller) -> Round:
    """Ask a round to stop; it ends at its next step."""
    cancelled = await rooms.rounds.request_cancel(round_id)
    await rooms.events.add(Event("round.cancel_requested", round_id, key.id, {"task": cancelled.task}, time.time()))
    return cancelled
