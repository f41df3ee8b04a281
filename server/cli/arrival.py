"""The HTTP protocol of the API's connections, with bounds on how long and how large a request may arrive.

Used by `server.cli.serving`. Without it whoever reaches the port, with a key or not, could fill the memory with the
head of one request, and all files with connections on which nothing ever comes. It must never cut a connection whose
reading we paused ourselves.

It also declines offers of another protocol: Java's own client offers HTTP/2 with every request, and uvicorn would take
what follows for that protocol and lose the body.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 64 * 2**10
"""How much of an unfinished head is read. What comes at once with the rest of the head may be more."""

HEAD_S = 30.0
"""How long the head of a request may take, and how long a connection may be silent at first."""

BODY_S = 120.0
"""How long the body may take after it."""

_OFFER = frozenset({b"upgrade", b"connection", b"http2-settings"})


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, less patient."""

    _head_open = _body_open = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request."""
        super().connection_made(transport)
        self._wait(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; a request that is not whole then has so long to become it."""
        within_head = self._head_open
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._head_open = self._body_open = False
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        if self._head_open:
            self._head_bytes += len(data) if within_head else 0
            if self._head_bytes > MOST_HEAD_BYTES:
                self._head_open = False
                self.send_400_response("The head of the request is too long.")
        if self._timer is None and (self._head_open or self._body_open):
            self._wait(HEAD_S if self._head_open else BODY_S)

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._head_open, self._body_open, self._head_bytes = True, False, 0

    def on_headers_complete(self) -> None:
        """Note that a body follows, if there is one."""
        self._head_open, self._body_open = False, True
        self._stop_waiting()
        if not self._is_offer():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._body_open = False
        self._stop_waiting()
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _feed(self, data: bytes) -> None:
        """Parse what came; a request that offers another protocol is parsed once more without its offer."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._is_offer():
                    return
                data = self._render_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            else:
                return

    def _render_head(self) -> bytes:
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        kept = [(name, value) for name, value in self.headers if name not in _OFFER]
        kept += [(b"connection", b"close")] * closes
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1", *(b": ".join(pair) for pair in kept)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._give_up, seconds)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, seconds: float) -> None:
        self._timer = None
        if self.flow.read_paused:
            self._wait(seconds)
        else:
            self.transport.close()
