"""`/v1/lineage`: from a request to the adapters that learnt from it, and back. A client key sees its own episodes."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from server.api.auth import READ, READ_ALL, may
from server.api.context import Rooms
from server.api.rest.access import Caller, needs
from server.errors import NotFound
from server.orchestration.lineage import describe_own, describe_trace
from server.store.lineage import LineageStore

router = APIRouter(prefix="/v1/lineage", tags=["lineage"], dependencies=[Depends(needs(READ))])


@router.get("/{id}")
async def show_lineage(thing: Annotated[str, Path(alias="id")], rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Show where an episode, a round or an adapter comes from and what became of it.

    A client key is shown its own episodes only, and of those nothing of rounds and adapters: these are null.
    """
    if may(caller, READ_ALL):
        return describe_trace(await LineageStore(rooms.database).trace(thing))
    episode = await rooms.episodes.get(thing)
    if episode is None or episode.key != caller.id:
        raise NotFound(f"There is no episode, round or adapter {thing!r}.", code="lineage_not_found")
    return describe_own(episode)
