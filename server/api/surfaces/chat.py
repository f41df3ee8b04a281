"""`/v1/chat/completions`: reads and renders OpenAI's chat completions. See `server.api.surfaces.base`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from server.api.chat_request import ParsedChat, parse_chat
from server.api.context import Context
from server.api.gathering import Gathering
from server.api.render import render_chunks, render_completion, render_mulligan, render_reasoning, render_usage_chunk
from server.api.surfaces.base import Ask, Choice
from server.api.surfaces.tolerance import read_tolerantly
from server.api.wire import DONE, frame_event, render_failure
from server.domain import ApiKey, Attempt, Episode, Reflection
from server.errors import MulliganError

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ChatSurface:
    """Implements `Surface` for chat completions."""

    def read(self, body: bytes, key: ApiKey, context: Context) -> Ask:
        """Read a chat request. Raises: InvalidRequest, naming the field."""
        limits, images = context.settings.limits, context.settings.engine.images

        def read(ignore_unknown: bool) -> ParsedChat:
            return parse_chat(body, limits, images=images, ignore_unknown=ignore_unknown)

        parsed = read_tolerantly(read, body, key, context)
        return Ask(parsed.request, fan_out(parsed.engine_body, parsed.logged, parsed.request.n or 1))

    async def extend(self, ask: Ask, key: ApiKey, context: Context) -> Ask:
        """Add nothing: a chat request is complete in itself."""
        return ask

    def render(self, ask: Ask, episodes: Sequence[Episode]) -> bytes:
        """Render the whole completion."""
        return _encode(render_completion(episodes))

    def open_events(self, ask: Ask, episodes: Sequence[Episode]) -> "ChatEvents":
        """Begin a stream of chunks."""
        return ChatEvents(ask, episodes)


def fan_out(body: dict[str, Any], logged: dict[str, Any], count: int) -> tuple[Choice, ...]:
    """Ask for several answers as so many single calls: each is verified by itself, and engines swap adapters safely.

    Each choice after the first gets a seed of its own, where there is one; else they would all be the same.
    """
    if count == 1:
        return (Choice(body, logged),)
    seed = body.get("seed")
    bodies = [body if seed is None else {**body, "seed": _shift(seed, index)} for index in range(count)]
    return tuple([Choice(one, logged) for one in bodies])


def _shift(seed: int, by: int) -> int:
    """Add to a seed, within the 64 bits that it may have."""
    return (seed + by + 2**63) % 2**64 - 2**63


class ChatEvents:
    """Implements `Events` with chunks. One live choice passes untouched, but for `mulligan` in its last chunk."""

    def __init__(self, ask: Ask, episodes: Sequence[Episode]) -> None:
        self._ask, self._episodes = ask, episodes
        self._kept: list[bytes] = []

    def begin(self) -> bytes:
        """Frame nothing."""
        return b""

    def reasoning(self, index: int, failed: Attempt, reflection: Reflection) -> bytes:
        """Frame a failed attempt and its reflection as `reasoning_content` deltas."""
        chunks = render_reasoning(self._episodes, index, failed, reflection)
        return b"".join([frame_event(_encode(chunk)) for chunk in chunks])

    def answer(self) -> bytes:
        """Frame the verified answers as chunks."""
        chunks = render_chunks(self._episodes, include_usage=self._ask.includes_usage)
        return b"".join([frame_event(_encode(chunk)) for chunk in chunks]) + DONE

    def passing(self, index: int, payload: bytes, gathering: Gathering) -> bytes:
        """Pass a chunk on, or keep it where it is the last of its choice or follows that."""
        if len(self._episodes) > 1:
            return self._passing_one_of_many(index, payload, gathering)
        if not (gathering.carried or self._ask.includes_usage):
            return b""  # the usage, which only the log asked for
        if gathering.finish_reason:
            self._kept.append(payload)
            return b""
        return frame_event(payload)

    def finish(self) -> bytes:
        """Frame what was kept; `mulligan` stands in the last chunk, and in the one that finishes.

        In both, for some clients make the chunk with the usage anew.
        """
        if len(self._episodes) > 1 and self._ask.includes_usage:
            self._kept.append(_encode(render_usage_chunk(self._episodes)))
        mulligan = b',"mulligan":' + _encode(render_mulligan(self._episodes)) + b"}"
        for place in {len(self._kept) - 1, len(self._kept) - 1 - self._ask.includes_usage} - {-1}:
            self._kept[place] = self._kept[place].rstrip()[:-1] + mulligan
        return b"".join(map(frame_event, self._kept)) + DONE

    def failure(self, error: MulliganError) -> bytes:
        """Frame an error; there is no `[DONE]` after it."""
        return render_failure(error)

    def _passing_one_of_many(self, index: int, payload: bytes, gathering: Gathering) -> bytes:
        """Give a chunk of one of several choices its index and the id that all of them share."""
        if not gathering.carried:
            return b""
        chunk = _decode(payload)
        chunk["id"] = render_usage_chunk(self._episodes)["id"]
        for choice in chunk["choices"]:
            choice["index"] = index
        if gathering.finish_reason:
            self._kept.append(_encode(chunk))
            return b""
        return frame_event(_encode(chunk))
