"""`GET /v1/events`: the audit log, who did what to what."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from server.api.auth import READ_ALL
from server.api.context import Rooms
from server.api.rest.access import needs
from server.api.rest.schemas import Page
from server.store.events import LoggedEvent

router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[Depends(needs(READ_ALL))])


@router.get("")
async def list_events(
    rooms: Rooms,
    *,
    subject: str | None = None,
    kind: str | None = None,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Page[LoggedEvent]:
    """List the audit log, newest first, of one `subject` or one `kind`. `before` is the last id of the page before."""
    found = await rooms.events.page(subject=subject, kind=kind, before=before, limit=limit + 1)
    return Page(data=found[:limit], has_more=len(found) > limit)
