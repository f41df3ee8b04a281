"""`/v1/responses`: reads and renders OpenAI's responses. See `server.api.surfaces.base`.

A response is an episode like any other, logged as the chat that it amounts to. What went before is read from the log,
and only ever from the caller's own part of it.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from server.api.auth import may_use_task
from server.api.chat_request import ChatRequest
from server.api.context import Context
from server.api.surfaces.base import Ask, Choice
from server.api.surfaces.responses_events import ResponsesEvents
from server.api.surfaces.responses_items import Item, Message, answer_message, is_reference, to_items
from server.api.surfaces.responses_render import failure_of, render_output, render_response
from server.api.surfaces.responses_request import Draft, complete_draft, read_draft
from server.api.surfaces.tolerance import read_tolerantly
from server.domain import ApiKey, Episode, Outcome
from server.errors import InvalidRequest, NotFound
from server.settings import Settings

_RESPONSE_ID = re.compile(r"resp_(?P<suffix>[0-9a-f]{1,64})")
_encode = msgspec.json.Encoder().encode


class ResponsesSurface:
    """Implements `Surface` for responses."""

    def read(self, body: bytes, key: ApiKey, context: Context) -> Ask:
        """Read a request; `extend` looks up what it refers to. Raises: InvalidRequest, naming the field."""

        def read(ignore_unknown: bool) -> Ask:
            draft = read_draft(body, ignore_unknown=ignore_unknown)
            if draft.request.previous_response_id is None and not draft.references:
                return _complete(draft, draft.items, (), context.settings)
            placeholder = ChatRequest(model=draft.request.model, messages=[], task=draft.chat.get("task"))
            return Ask(placeholder, (), draft)

        return read_tolerantly(read, body, key, context)

    async def extend(self, ask: Ask, key: ApiKey, context: Context) -> Ask:
        """Add the conversation so far, and the items that are referred to.

        Raises: NotFound, InvalidRequest, StoreUnavailable.
        """
        if ask.choices:
            return ask
        draft: Draft = ask.original
        before: Sequence[Message] = ()
        if (previous := draft.request.previous_response_id) is not None:
            before = _conversation(await _find_previous(previous, key, context))
        items = await _resolve_references(draft.items, key, context)
        return _complete(draft, items, before, context.settings)

    def render(self, ask: Ask, episodes: Sequence[Episode]) -> bytes:
        """Render the whole response."""
        return _encode(render_response(episodes[0], ask.choices[0].logged["responses"]))

    def open_events(self, ask: Ask, episodes: Sequence[Episode]) -> ResponsesEvents:
        """Begin a stream of events."""
        return ResponsesEvents(ask, episodes)


def _complete(draft: Draft, items: Sequence[Item], before: Sequence[Message], settings: Settings) -> Ask:
    parsed = complete_draft(draft, items, before, settings)
    return Ask(parsed.request, (Choice(parsed.engine_body, parsed.logged),), draft)


async def find_own(response: str, key: ApiKey, context: Context) -> Episode | None:
    """Find the logged response of this id, if it is this key's: no role sees another key's here.

    Nothing is found, either, where `store: false` kept the content out of the log, or where the key may no longer use
    the task. Raises: StoreUnavailable.
    """
    known = _RESPONSE_ID.fullmatch(response)
    episode = await context.episodes.get(f"ep_{known['suffix']}") if known else None
    if episode is None or episode.key != key.id or not may_use_task(key, episode.task):
        return None
    return episode if episode.request is not None and "responses" in episode.request else None


def read_echo(episode: Episode) -> dict[str, Any]:
    """Read what a logged response repeats of its request."""
    assert episode.request is not None
    return dict(episode.request["responses"])


def input_items(episode: Episode) -> list[Item]:
    """List the items that a logged response was asked with, the conversation before it too; not its instructions."""
    return to_items(_asked(episode), episode.id.partition("_")[2])


def _asked(episode: Episode) -> list[Message]:
    """Read a logged conversation without the instructions: they are not carried on."""
    assert episode.request is not None
    skipped = 0 if episode.request["responses"]["instructions"] is None else 1
    return list(episode.request["messages"][skipped:])


def _conversation(episode: Episode) -> list[Message]:
    return [*_asked(episode), answer_message(episode)]


async def _find_previous(response: str, key: ApiKey, context: Context) -> Episode:
    episode = await find_own(response, key, context)
    if episode is None:
        message = f"There is no response {response[:80]!r} of this key; `store: false` leaves none."
        raise NotFound(message, param="previous_response_id", code="previous_response_not_found")
    if episode.outcome is Outcome.CANCELLED or failure_of(episode) is not None:
        message = f"The response {response!r} has no answer to go on from: send its input again."
        raise InvalidRequest(message, param="previous_response_id")
    return episode


async def _resolve_references(items: Sequence[Item], key: ApiKey, context: Context) -> list[Item]:
    """Put the items in place of the references to them."""
    seen: dict[str, dict[str, Item]] = {}
    resolved = []
    for index, item in enumerate(items):
        if not is_reference(item):
            resolved.append(item)
            continue
        suffix = item["id"].partition("_")[2].partition("_")[0]
        if suffix not in seen:
            episode = await find_own(f"resp_{suffix}", key, context)
            seen[suffix] = {} if episode is None else {one["id"]: one for one in _items_of(episode)}
        if item["id"] not in seen[suffix]:
            message = f"There is no item {item['id'][:80]!r} in a stored response of this key."
            raise NotFound(message, param=f"input[{index}].id", code="item_not_found")
        resolved.append(seen[suffix][item["id"]])
    return resolved


def _items_of(episode: Episode) -> list[Item]:
    output = [] if failure_of(episode) or episode.outcome is Outcome.CANCELLED else render_output(episode)
    return [*input_items(episode), *output]
