"""`/v1/episodes`: what was asked, answered, checked and reflected. A client key sees its own; the others see all."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from server.api.auth import READ, READ_ALL, may, may_read_configs
from server.api.context import Rooms
from server.api.render import render_usage
from server.api.rest.access import Caller, needs
from server.domain import ApiKey, BindingMode, Episode, Outcome
from server.errors import NotFound

PAGE_BYTES = 16 * 2**20
"""How big a page may be before it ends."""

AT_ONCE = 20
"""How many episodes are read together."""

router = APIRouter(prefix="/v1/episodes", tags=["episodes"], dependencies=[Depends(needs(READ))])


@router.get("")
async def list_episodes(
    rooms: Rooms,
    caller: Caller,
    *,
    task: str | None = None,
    outcome: Outcome | None = None,
    key: str | None = None,
    feedback: Literal["passed", "failed", "none"] | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: str | None = None,
) -> Response:
    """List episodes, newest first, without token ids. `before` is the last id of the page before.

    `feedback`: those that some feedback calls `passed`, or `failed`, or those that have `none`.
    A page ends early, with `has_more`, where its episodes are big: what clients send may be, and a page is in memory.
    """
    owner = key if may(caller, READ_ALL) else caller.id
    data: list[msgspec.Raw] = []
    length, has_more = 0, True
    while has_more and len(data) < limit and length <= PAGE_BYTES:
        wanted = min(AT_ONCE, limit - len(data))
        found = await rooms.episodes.list(
            task=task, outcome=outcome, key=owner, said=feedback, limit=wanted + 1, before=before
        )
        has_more = len(found) > wanted
        for episode in found[:wanted]:
            data.append(msgspec.Raw(msgspec.json.encode(render_episode(episode, caller, tokens=False))))
            length += len(data[-1])
            before = episode.id
            if length > PAGE_BYTES:
                has_more = has_more or episode is not found[:wanted][-1]
                break
    return _respond({"object": "list", "data": data, "has_more": has_more})


@router.get("/{episode_id}")
async def show_episode(episode_id: str, rooms: Rooms, caller: Caller, *, tokens: bool = False) -> Response:
    """Show an episode, with the token ids and logprobs of its reflections where `tokens` asks for them."""
    episode = await rooms.episodes.get(episode_id)
    if episode is None or not (may(caller, READ_ALL) or episode.key == caller.id):
        raise NotFound(f"There is no episode {episode_id!r}.", code="episode_not_found")
    return _respond(render_episode(episode, caller, tokens=tokens))


def render_episode(episode: Episode, caller: ApiKey, *, tokens: bool) -> dict[str, Any]:
    """Render an episode as it is logged; of registered verifiers, what they are made of only for who may see that."""
    rendered = _render(episode)
    if not may(caller, READ_ALL):
        _hide_audits(rendered)
    if not may_read_configs(caller):
        for binding in rendered["bindings"]:
            if binding["name"]:
                binding["config"] = None
    if not tokens:
        for reflection in rendered["reflections"]:
            for name in ("prompt_ids", "token_ids", "logprobs"):
                del reflection[name]
    return {**rendered, "object": "mulligan.episode", "usage": render_usage(episode.usage)}


def _hide_audits(rendered: dict[str, Any]) -> None:
    """Leave out what only measures: who is measured must not learn by what."""
    rendered["bindings"] = [one for one in rendered["bindings"] if one["mode"] != BindingMode.AUDIT]
    for attempt in rendered["attempts"]:
        attempt["verdicts"] = [one for one in attempt["verdicts"] if one["mode"] != BindingMode.AUDIT]


def _render(thing: Any) -> Any:
    """Turn a dataclass and what it holds into what JSON knows; packed arrays become lists."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: _render(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [_render(part) for part in thing]
    return getattr(thing, "tolist", lambda: thing)()


def _respond(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
