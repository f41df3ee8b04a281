"""What a surface is: how it reads a request into an `Ask`, and how it renders the episodes that answer it.

Used by `server.api.serve` and `server.api.streams`, which know no surface by name. A surface never runs anything: it
reads and renders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.api.chat_request import ChatRequest
from server.api.context import Context
from server.api.gathering import Gathering
from server.domain import ApiKey, Attempt, Episode, Reflection
from server.errors import MulliganError


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer that is asked for: what the engine is sent, and what of the request is logged with its episode.

    `body` always holds `messages`; with `prompt` beside them the first attempt continues that raw text.
    """

    body: dict[str, Any]
    logged: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks: the chat request that it amounts to, and one choice for each answer.

    `original` is what the surface keeps for its own rendering.
    """

    request: ChatRequest
    choices: tuple[Choice, ...]
    original: Any = None

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.request.stream)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.request.stream_options and self.request.stream_options.include_usage)

    @property
    def includes_attempts(self) -> bool:
        """Whether a held stream shows failed attempts and reflections meanwhile."""
        return bool(self.request.stream_options and self.request.stream_options.include_attempts)


class Events(Protocol):
    """The events of one stream, as framed bytes. Made for one request; it may keep count of what was sent."""

    def begin(self) -> bytes:
        """Frame what goes before everything else; may be empty."""
        ...

    def reasoning(self, index: int, failed: Attempt, reflection: Reflection) -> bytes:
        """Frame a failed attempt of a choice and the reflection on it."""
        ...

    def answer(self) -> bytes:
        """Frame the verified answers of all episodes, and the end."""
        ...

    def passing(self, index: int, payload: bytes, gathering: Gathering) -> bytes:
        """Frame a chunk of the engine on its way to the client; may keep it for `finish`, and then gives nothing.

        `gathering` has taken the chunk in.
        """
        ...

    def finish(self) -> bytes:
        """Frame what was kept of a live stream, what happened, and the end. The episodes are logged."""
        ...

    def failure(self, error: MulliganError) -> bytes:
        """Frame an error that ends a stream which has begun."""
        ...


class Surface(Protocol):
    """One of OpenAI's endpoints that generate."""

    def read(self, body: bytes, key: ApiKey, context: Context) -> Ask:
        """Read a request of a key. Raises: InvalidRequest, naming the field."""
        ...

    async def extend(self, ask: Ask, key: ApiKey, context: Context) -> Ask:
        """Add what has to be looked up, as an earlier response. Raises: NotFound, InvalidRequest, StoreUnavailable."""
        ...

    def render(self, ask: Ask, episodes: Sequence[Episode]) -> bytes:
        """Render the whole answer as JSON."""
        ...

    def open_events(self, ask: Ask, episodes: Sequence[Episode]) -> Events:
        """Begin a stream."""
        ...
