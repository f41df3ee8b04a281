"""`/v1/adapters`, promotion and rollback by hand. Both are hot swaps: no request is dropped."""

from fastapi import APIRouter, Depends

from server.adapters import hot_swap
from server.api.auth import APPROVE, READ_ALL
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import Page, PromotionBody
from server.domain import Adapter, Task

router = APIRouter(prefix="/v1", tags=["adapters"])
reader = [Depends(needs(READ_ALL))]
approver = [Depends(needs(APPROVE))]


@router.get("/adapters", dependencies=reader)
async def list_adapters(rooms: Rooms, task: str | None = None) -> Page[Adapter]:
    """List the adapters."""
    return Page(data=await rooms.adapters.list(task))


@router.post("/adapters/{name}/promote", dependencies=approver)
async def promote_adapter(name: str, rooms: Rooms, key: Caller, body: PromotionBody | None = None) -> Task:
    """Make an adapter its task's champion. It is marked as forced, unless the gate passed it and `forced` is false."""
    forced = body.forced if body else PromotionBody().forced
    task = await hot_swap.promote(
        name,
        engine=rooms.engine,
        tasks=rooms.tasks,
        adapters=rooms.adapters,
        presence=rooms.presence,
        events=rooms.events,
        actor=key.id,
        forced=forced,
    )
    await rooms.roster.refresh()
    return task


@router.post("/tasks/{name}/rollback", dependencies=approver)
async def roll_back_task(name: str, rooms: Rooms, key: Caller) -> Task:
    """Put a task's former champion back."""
    task = await hot_swap.rollback(
        name,
        engine=rooms.engine,
        tasks=rooms.tasks,
        adapters=rooms.adapters,
        presence=rooms.presence,
        events=rooms.events,
        actor=key.id,
    )
    await rooms.roster.refresh()
    return task
