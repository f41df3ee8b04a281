"""Writes responses to the client's connection, and notices when it goes away. Used by the gate and the chat endpoint.

Nothing here knows what is answered.
"""

import asyncio
import re
from collections.abc import Coroutine
from itertools import accumulate, count
from operator import sub
from typing import Any, TypeVar

from server.api.errors import encode_error, error_headers
from server.api.render import Headers
from server.errors import InvalidRequest, MulliganError, TooLarge

T = TypeVar("T")

Receive = Any
Send = Any
Scope = Any

MAX_DEPTH = 100
_HEADERS = "mulligan.headers"
UNWATCHED_S = 0.2
STALLED_S = 30.0
"""How long a client that is there may take nothing where an answer begins or ends."""

# Possessive, and a text without an end goes to the end: to look again from each quote in it would take for ever.
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class ClientGone(Exception):
    """The client went away before its answer was whole."""


def read_header(scope: Scope, name: bytes) -> bytes:
    """Read a request's header; empty where it is not there."""
    headers = scope.get(_HEADERS)
    if headers is None:
        headers = scope[_HEADERS] = dict(reversed(scope["headers"]))  # of a header that is there twice, the first
    return headers.get(name, b"")


def read_request_id(scope: Scope) -> str | None:
    """Read the client's own request id, if it is one that is safe to log."""
    given = read_header(scope, b"x-request-id")
    return given.decode() if _REQUEST_ID.fullmatch(given) else None


async def read_body(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """Read a request's whole body.

    Raises: TooLarge, ClientGone.
    """
    too_large = TooLarge(f"The body is over the limit of {most_bytes} bytes.")
    announced = read_header(scope, b"content-length")
    if announced.isdigit() and int(announced) > most_bytes:
        raise too_large
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > most_bytes:
            raise too_large
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run work to its end, or cancel it as soon as the client goes away; its clean-up is awaited either way.

    Nobody looks whether the client is there in the first moments: most work that is quick ends before, and a task of
    its own for that look would be a good part of what a request costs.

    Raises: ClientGone, and what the work raises; a result or an error that the work has in spite of it all goes first.
    """
    watch = _Watch(receive)
    first_look = asyncio.get_running_loop().call_later(UNWATCHED_S, watch.begin)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.end():
            raise ClientGone from None
        raise
    finally:
        first_look.cancel()
        watch.end()


class _Watch:
    """Cancels the task that made it once the client has gone."""

    __slots__ = ("_cancelled_before", "_client_gone", "_looking", "_receive", "_work")

    def __init__(self, receive: Receive) -> None:
        work = asyncio.current_task()
        assert work is not None
        self._work = work
        self._cancelled_before = work.cancelling()
        self._receive = receive
        self._looking: asyncio.Task[None] | None = None
        self._client_gone = False

    def begin(self) -> None:
        self._looking = asyncio.ensure_future(self._look())

    def end(self) -> bool:
        """Look no more, and take back the request to cancel; say whether that was the only one, as a timeout does."""
        if self._looking is not None:
            self._looking.cancel()
        if not self._client_gone:
            return False
        self._client_gone = False
        return self._work.uncancel() <= self._cancelled_before

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._client_gone = True
        self._work.cancel()


def refuse_deep(body: bytes) -> None:
    """Refuse JSON that is nested deeper than anything asks for: what can be read here could not be read elsewhere.

    Raises: InvalidRequest.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return  # the common case, at the speed of a search
    steps = _TEXTS.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    depths = map(sub, accumulate(steps), count(1))  # each bracket adds 2 or 0, less the 1 that is counted for it
    if max(depths, default=0) > MAX_DEPTH:
        raise InvalidRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.")


async def in_time(sending: Coroutine[Any, Any, None]) -> None:
    """Send what has no deadline of its own: room must not be held for ever for a client that reads nothing.

    Before the first byte of an answer, too: a client may have left one on the same connection unread.

    Raises: ClientGone.
    """
    try:
        async with asyncio.timeout(STALLED_S):
            await sending
    except TimeoutError:
        raise ClientGone from None


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole JSON response."""
    length = (b"content-length", str(len(body)).encode())
    content = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [content, length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: MulliganError, headers: Headers) -> None:
    """Send an error as a whole response."""
    ours = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send_json(send, error.status, encode_error(error), [*ours, *headers])


DONE = b"data: [DONE]\n\n"


def frame_event(payload: bytes) -> bytes:
    """Frame a payload as an event without a name: SDKs deliver named ones of a chat as chunks without choices."""
    return b"data: " + payload + b"\n\n"


def render_failure(error: MulliganError) -> bytes:
    """Frame an error inside a stream, as the SDKs expect it."""
    return frame_event(encode_error(error))


class EventStream:
    """A response of server-sent events. It starts with its first event, so that until then an error has a status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, headers: Headers) -> None:
        """Send the head of the response, if that was not done yet. Raises: ClientGone, as `end`."""
        if self.started:
            return
        self.started = True
        fixed = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await in_time(self._send({"type": "http.response.start", "status": 200, "headers": [*fixed, *headers]}))

    async def send(self, events: bytes) -> None:
        """Send framed events, in one write."""
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def send_comment(self) -> None:
        """Send a comment, which clients skip: it keeps the connection alive. Raises: ClientGone, as `end`."""
        await in_time(self.send(b": still at it\n\n"))

    async def end(self, events: bytes) -> None:
        """Send the last events. Raises: ClientGone, where the client takes nothing any more."""
        await in_time(self._send({"type": "http.response.body", "body": events, "more_body": False}))

    async def fail(self, events: bytes, error: MulliganError) -> None:
        """Send the last events, which tell an error. Servers skip what ASGI does not name; `replay` reads it.

        Raises: ClientGone, where the client takes nothing any more.
        """
        last = {"type": "http.response.body", "body": events, "more_body": False, "error": error}
        await in_time(self._send(last))
