"""`/v1/adapters`: promotion, rejection and rollback by hand. All are hot swaps: no request is dropped."""

from dataclasses import fields

from fastapi import APIRouter, Depends

from server.adapters import decisions
from server.adapters.decisions import RollbackPlan
from server.adapters.rooms import SwapRooms
from server.api.auth import APPROVE, READ_ALL
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import AdapterView, Page, PromotionBody, RejectionBody, RollbackBody
from server.domain import Adapter, Task
from server.errors import NotFound
from server.orchestration.fingerprints import flag_doubts

router = APIRouter(prefix="/v1", tags=["adapters"])
reader = [Depends(needs(READ_ALL))]
approver = [Depends(needs(APPROVE))]


@router.get("/adapters", dependencies=reader)
async def list_adapters(rooms: Rooms, task: str | None = None) -> Page[Adapter]:
    """List the adapters."""
    return Page(data=flag_doubts(await rooms.adapters.list(task), await rooms.tasks.list()))


@router.get("/adapters/{name}", dependencies=reader)
async def show_adapter(name: str, rooms: Rooms) -> AdapterView:
    """Show an adapter: where it stands, whether the gate passed it or a human forced it, and its canary's figures."""
    adapter = await rooms.adapters.get(name)
    if adapter is None:
        raise NotFound(f"There is no adapter {name!r}.")
    made_by = await rooms.rounds.get(adapter.round_id) if adapter.round_id else None
    trial = await _open(rooms).canaries.find_latest(name)
    told = {field.name: getattr(adapter, field.name) for field in fields(adapter)}
    return AdapterView(**told, passed_gate=decisions.passed_gate(adapter, made_by), trial=trial)


@router.post("/adapters/{name}/promote", dependencies=approver)
async def promote_adapter(name: str, rooms: Rooms, key: Caller, body: PromotionBody) -> Task:
    """Make an adapter its task's champion, or begin its canary where the task has a canary policy; say why.

    What the gate did not pass takes `force`, and is marked as forced wherever it shows. A canary that runs becomes
    champion.
    """
    task = await decisions.promote_by_hand(
        name, body.comment, _open(rooms), actor=key.id, force=body.force, canary=body.canary
    )
    await rooms.roster.refresh()
    return task


@router.post("/adapters/{name}/reject", dependencies=approver)
async def reject_adapter(name: str, rooms: Rooms, key: Caller, body: RejectionBody) -> Adapter:
    """Reject a candidate, for good, or end a canary: no round goes on from it. Say why."""
    adapter = await decisions.reject_by_hand(name, body.comment, _open(rooms), actor=key.id)
    await rooms.roster.refresh()
    return adapter


@router.get("/tasks/{name}/rollback", dependencies=approver)
async def plan_rollback(name: str, rooms: Rooms, to: str | None = None) -> RollbackPlan:
    """Say what a rollback would change, and what one can roll back to."""
    return await decisions.plan_rollback(name, to, _open(rooms))


@router.post("/tasks/{name}/rollback", dependencies=approver)
async def roll_back_task(name: str, rooms: Rooms, key: Caller, body: RollbackBody | None = None) -> Task:
    """Put a former champion back, or the base model; a canary ends. Without `to` a canary that runs ends, no more."""
    to, comment = (body.to, body.comment) if body else (None, "")
    swap = _open(rooms)
    plan = await decisions.plan_rollback(name, to, swap)
    task = await decisions.roll_back(plan, comment, swap, actor=key.id)
    await rooms.roster.refresh()
    return task


def _open(rooms: Context) -> SwapRooms:
    return SwapRooms.open(rooms.database, rooms.engine)
