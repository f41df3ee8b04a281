"""`GET /v1/tasks/{name}/audit`: whether a task's answers pass without being right. Never for those who are measured."""

from fastapi import APIRouter, Depends

from server.api.auth import READ_ALL
from server.api.context import Rooms
from server.api.rest.access import needs
from server.api.rest.tasks import find_task
from server.orchestration.audit import AuditReport, audit_task

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


@router.get("/{name}/audit", dependencies=[Depends(needs(READ_ALL))])
async def show_audit(name: str, rooms: Rooms) -> AuditReport:
    """Audit a task's newest answers now: the signals of reward hacking, and how feedback agrees with its verifiers."""
    return await audit_task(await find_task(name, rooms), rooms.audit)
