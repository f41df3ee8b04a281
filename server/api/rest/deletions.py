"""`/v1/deletions` and `DELETE /v1/episodes/{id}`: what was logged goes for good. For admins alone."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from server.api.auth import ADMIN
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.errors import NotFound
from server.orchestration.deletion import describe_deletion, find_adapters
from server.store.deletions import Deletion, Doomed

router = APIRouter(tags=["deletions"], dependencies=[Depends(needs(ADMIN))])


class DeletionBody(BaseModel):
    """What to delete: the episodes that are all of what is named. At least one thing is."""

    model_config = ConfigDict(extra="forbid")

    user: str | None = Field(
        None, min_length=1, max_length=512, description="as requests said it: `user` or `safety_identifier`"
    )
    key: str | None = Field(None, min_length=1, max_length=256, description="the id of the API key that asked")
    episode: str | None = Field(None, min_length=1, max_length=256, description="the id of one episode")
    before: datetime | None = Field(None, description="only what began before this time, in UTC or the zone it names")

    def read(self) -> Doomed:
        """Read what is doomed; a time that names no zone is UTC, as on the command line."""
        before = self.before.replace(tzinfo=self.before.tzinfo or UTC).timestamp() if self.before else 0.0
        return Doomed(self.user or "", self.key or "", self.episode or "", before)


@router.post("/v1/deletions", status_code=202)
async def create_deletion(body: DeletionBody, rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Delete the episodes of a user, of a key, or from before a time; from database, spools and rounds' folders.

    Answers once it is done, or after five seconds with `status` `unfinished`: it goes on by itself then, and `left`
    says what it waits for. `adapters` may have learnt from what is gone.
    """
    return await _describe(await rooms.deletions.ask(body.read(), actor=caller.id), rooms)


@router.get("/v1/deletions")
async def list_deletions(rooms: Rooms, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
    """List deletions, newest first: users only by their hash, and never what was said."""
    found = await rooms.deletions.recent(limit)
    return {"object": "list", "data": [describe_deletion(one, []) for one in found]}


@router.get("/v1/deletions/{deletion_id}")
async def show_deletion(deletion_id: str, rooms: Rooms) -> dict[str, Any]:
    """Show how far a deletion is, and which adapters may have learnt from what is gone."""
    return await _describe(await rooms.deletions.find(deletion_id), rooms)


@router.delete("/v1/episodes/{episode_id}")
async def delete_episode(episode_id: str, rooms: Rooms, caller: Caller) -> dict[str, Any]:
    """Delete one episode with all that belongs to it."""
    if await rooms.episodes.find_owner(episode_id) is None:
        raise NotFound(f"There is no episode {episode_id!r}.", code="episode_not_found")
    return await _describe(await rooms.deletions.ask(Doomed(episode=episode_id), actor=caller.id), rooms)


async def _describe(deletion: Deletion, rooms: Context) -> dict[str, Any]:
    adapters = await find_adapters(rooms.database, list(deletion.report.get("rounds", ())))
    return describe_deletion(deletion, adapters)
