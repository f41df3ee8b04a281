"""`GET /v1/responses/{id}`: a response as it is logged, and what it was asked with. A key sees only its own."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from server.api.auth import READ
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.surfaces.responses import find_own, input_items, read_echo
from server.api.surfaces.responses_render import render_logged
from server.domain import ApiKey, Episode
from server.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1/responses", tags=["responses"], dependencies=[Depends(needs(READ))])


@router.get("/{response_id}")
async def show_response(response_id: str, rooms: Rooms, caller: Caller, *, stream: bool = False) -> Response:
    """Show a stored response of the key's own."""
    if stream:
        raise InvalidRequest("A stored response is not streamed again: read it whole.", param="stream")
    episode = await _find(response_id, caller, rooms)
    return _respond(render_logged(episode, read_echo(episode)))


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    rooms: Rooms,
    caller: Caller,
    *,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """List the items that a stored response was asked with, the conversation before it too."""
    items = input_items(await _find(response_id, caller, rooms))
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [index for index, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"There is no item {after[:80]!r} in this response.", param="after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else "", "last_id": page[-1]["id"] if page else ""}
    return _respond({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


async def _find(response_id: str, caller: ApiKey, rooms: Context) -> Episode:
    episode = await find_own(response_id, caller, rooms)
    if episode is None:
        raise NotFound(f"There is no response {response_id[:80]!r} of this key.", code="response_not_found")
    return episode


def _respond(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
