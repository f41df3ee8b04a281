"""`/v1/episodes`: what was asked, answered, checked and reflected. A client key sees its own; the others see all."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from server.api.auth import READ, READ_ALL, may
from server.api.context import Rooms
from server.api.render import render_usage
from server.api.rest.access import Caller, needs
from server.domain import Episode, Outcome
from server.errors import NotFound

router = APIRouter(prefix="/v1/episodes", tags=["episodes"], dependencies=[Depends(needs(READ))])


@router.get("")
async def list_episodes(
    rooms: Rooms,
    caller: Caller,
    *,
    task: str | None = None,
    outcome: Outcome | None = None,
    key: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: str | None = None,
) -> Response:
    """List episodes, newest first, without token ids. `before` is the last id of the page before."""
    owner = key if may(caller, READ_ALL) else caller.id
    found = await rooms.episodes.list(task=task, outcome=outcome, key=owner, limit=limit + 1, before=before)
    data = [render_episode(episode, tokens=False) for episode in found[:limit]]
    return _respond({"object": "list", "data": data, "has_more": len(found) > limit})


@router.get("/{episode_id}")
async def show_episode(episode_id: str, rooms: Rooms, caller: Caller, *, tokens: bool = False) -> Response:
    """Show an episode, with the token ids and logprobs of its reflections where `tokens` asks for them."""
    episode = await rooms.episodes.get(episode_id)
    if episode is None or not (may(caller, READ_ALL) or episode.key == caller.id):
        raise NotFound(f"There is no episode {episode_id!r}.", code="episode_not_found")
    return _respond(render_episode(episode, tokens=tokens))


def render_episode(episode: Episode, *, tokens: bool) -> dict[str, Any]:
    """Render an episode as it is logged."""
    rendered = _render(episode)
    if not tokens:
        for reflection in rendered["reflections"]:
            for name in ("prompt_ids", "token_ids", "logprobs"):
                del reflection[name]
    return {**rendered, "object": "mulligan.episode", "usage": render_usage(episode.usage)}


def _render(thing: Any) -> Any:
    """Turn a dataclass and what it holds into what JSON knows; packed arrays become lists."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: _render(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [_render(part) for part in thing]
    return getattr(thing, "tolist", lambda: thing)()


def _respond(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
