"""An HTTP/1.1 client for one engine: pooled connections, whole replies and streams. Only the engine's clients use it.

Why not a library: the best of them that we measured costs three times as much a request as this, and a stream's chunk
four times, which alone keeps the gateway from its goal (docs/decisions/0007). So it does what an engine needs and
nothing else: one origin, no redirects, no proxies, no cookies, no compression. The parsing is llhttp's.

What it promises: an idle connection is given up before the server would close it, and one that was closed meanwhile is
never written to; nothing that may have reached the engine is sent a second time; a request that is cancelled or late
closes its connection, so that the engine notices; what is not HTTP is an EngineBroken, whatever the bytes.
"""

import asyncio
import ssl
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools

from server.addresses import check_engine_url
from server.engine.trace_context import name_trace
from server.errors import EngineBroken, EngineTimeout, EngineUnavailable, EngineUnreached, MulliganError

CONNECT_TIMEOUT_S = 5.0
# uvicorn, and so SGLang, closes idle connections after 5 s: ours go first, so that none is found dead.
IDLE_S = 4.0
MOST_HEAD_BYTES = 64 * 2**10
MOST_BODY_BYTES = 256 * 2**20
_PAUSE_AT_BYTES = 256 * 2**10


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on its way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: MulliganError | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._waiting_bytes = 0
        self._paused = False
        self.parts: deque[bytes] = deque()
        self.busy = False
        self.closed = False
        self.head_done = self.complete = False
        self.idle_since = 0.0
        self.status = 0

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.fail(EngineBroken("the engine sent something that nobody asked for"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(EngineBroken("the engine switched to another protocol"))
        except httptools.HttpParserError as error:
            self.fail(self._error or EngineBroken(f"the engine's reply is not HTTP: {error}"))
        if not self.head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.fail(EngineBroken("the head of the engine's reply is too long"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.busy or self.complete:
            return
        if self.head_done and exc is None and self._until_close:
            self.on_message_complete()  # a reply without a length ends with its connection
        elif self.head_done:
            self.fail(EngineUnavailable("the engine cannot be reached (it cut its reply off)"))
        else:
            self.fail(EngineUnavailable("the engine cannot be reached (it closed the connection without an answer)"))

    # what the parser calls

    def on_message_begin(self) -> None:
        if self.complete:  # a second reply, to nothing: the first one stands, and the connection is done with
            self._surplus = True
            self.abort()
        self._until_close = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._surplus:  # what is below is not the answer yet
            self.status, self.head_done = status, True
            self._wake()

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self.parts.append(body)
        self._body_bytes += len(body)
        self._waiting_bytes += len(body)
        if self._body_bytes > MOST_BODY_BYTES:
            self.fail(EngineBroken("the engine's reply is too long"))
        elif self._streams:
            if self._waiting_bytes > _PAUSE_AT_BYTES and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        if not self.head_done or self._surplus:
            return  # an interim reply
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()  # the parser forgets it at once
        self._wake()

    # what the client calls

    def send(self, head: bytes, body: bytes, *, streams: bool) -> None:
        """Send a request. `streams`: wake up at every part of the body, and not only at its end."""
        assert self._transport is not None
        self._streams = streams
        self._until_close = self._keep_alive = self._surplus = False
        self._error = None
        self._head_bytes = self._body_bytes = self._waiting_bytes = 0
        self.parts.clear()
        self.busy, self.head_done, self.complete = True, False, False
        self._transport.write(head + body)

    async def wait(self) -> None:
        """Wait until there is something new. Raises: what went wrong."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    async def wait_complete(self) -> bytes:
        """Wait for the whole body."""
        while not self.complete:
            await self.wait()
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def take(self) -> bytes:
        """Take what has come of the body, and let more of it come."""
        taken = self.parts.popleft() if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return taken

    def may_serve_again(self) -> bool:
        """Whether another request may use this connection."""
        return self.complete and self._keep_alive and not self.closed and self._error is None

    def fail(self, error: MulliganError) -> None:
        """End it with an error."""
        if self._error is None:
            self._error = error
        self.abort()
        self._wake(always=True)

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _wake(self, *, always: bool = False) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (always or self._streams or self.complete):
            waiter.set_result(None)

    _streams = _until_close = _keep_alive = _surplus = False


class Upstream:
    """The connections to one engine."""

    def __init__(
        self, url: str, *, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S, idle_s: float = IDLE_S
    ) -> None:
        parts = urlsplit(check_engine_url(url))
        self._host, self._tls = parts.hostname or "", ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._heads: dict[tuple[str, str], bytes] = {}
        self._netloc = parts.netloc.encode()
        self._timeout_s, self._connect_timeout_s, self._idle_s = timeout_s, connect_timeout_s, idle_s
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def exchange(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Send a request and read its whole reply: status and body.

        Raises: EngineUnavailable, EngineTimeout, EngineBroken.
        """
        connection = await self._begin(method, path, body, streams=False)
        limit_s = timeout_s or self._timeout_s
        late = asyncio.get_running_loop().call_later(limit_s, _expire, connection, limit_s)
        try:
            raw = await connection.wait_complete()
            return connection.status, raw
        finally:
            late.cancel()
            self.give_back(connection)

    async def open(self, method: str, path: str, body: bytes) -> "Reply":
        """Send a request whose reply is read part by part. The caller closes it.

        Raises: EngineUnavailable.
        """
        return Reply(self, await self._begin(method, path, body, streams=True), self._timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    @property
    def open_connections(self) -> int:
        """How many connections are in use or idle."""
        return len(self._idle) + len(self._busy)

    async def _begin(self, method: str, path: str, body: bytes, *, streams: bool) -> _Connection:
        connection = self._take_idle() or await self._connect()
        self._busy.add(connection)
        connection.send(self._head(method, path) + b"%d\r\n%b\r\n" % (len(body), name_trace()), body, streams=streams)
        return connection

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request, or close it where it cannot serve one."""
        self._busy.discard(connection)
        if connection.may_serve_again():
            connection.busy = False
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()

    def _take_idle(self) -> _Connection | None:
        """Take the connection that was used last; what is too old, or was closed meanwhile, is given up."""
        if not self._idle:
            return None
        oldest_s = asyncio.get_running_loop().time() - self._idle_s
        if self._idle[0].closed or self._idle[0].idle_since < oldest_s:
            kept = [one for one in self._idle if not one.closed and one.idle_since >= oldest_s]
            for one in self._idle:
                if one not in kept:
                    one.abort()
            self._idle = kept
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            message = f"the engine cannot be reached (no connection within {self._connect_timeout_s:g} s)"
            raise EngineUnreached(message) from None
        except OSError as error:
            raise EngineUnreached(f"the engine cannot be reached ({error.strerror or error})") from error
        return connection

    def _head(self, method: str, path: str) -> bytes:
        known = self._heads.get((method, path))
        if known is None:
            known = (
                b"%b %b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\ncontent-type: application/json\r\ncontent-length: "
                % (method.encode(), self._prefix + path.encode(), self._netloc)
            )
            self._heads[method, path] = known
        return known


def _expire(connection: _Connection, limit_s: float) -> None:
    connection.fail(EngineTimeout(f"the engine did not answer in time ({limit_s:g} s)"))


class Reply:
    """A reply on its way; closing it early closes its connection. It may pause for `limit_s` seconds at most."""

    __slots__ = ("_connection", "_last", "_limit_s", "_loop", "_timer", "_upstream")

    def __init__(self, upstream: Upstream, connection: _Connection, limit_s: float) -> None:
        self._upstream, self._connection, self._limit_s = upstream, connection, limit_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(limit_s, self._look)

    @property
    def status(self) -> int:
        """The reply's status, once a part of it has come."""
        return self._connection.status

    async def part(self) -> bytes:
        """Wait for more of the body; b"" at its end. Raises: EngineUnavailable, EngineTimeout, EngineBroken."""
        connection = self._connection
        while not connection.parts:
            if connection.complete:
                return b""
            await connection.wait()
        self._last = self._loop.time()  # cheaper than a new timer for each part
        return connection.take()

    def close(self) -> None:
        """Give the connection back, or close it where the reply is not whole."""
        self._timer.cancel()
        self._upstream.give_back(self._connection)

    def _look(self) -> None:
        left_s = self._last + self._limit_s - self._loop.time()
        if left_s <= 0:
            _expire(self._connection, self._limit_s)
        else:
            self._timer = self._loop.call_later(left_s, self._look)
