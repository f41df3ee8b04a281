"""Opens the connections of `verifiers.outbound`: the one place where a socket to a client's address is made.

Every connection goes through `Gate.connect_tcp`, which resolves the host, judges all of its addresses and connects to
one of those very addresses; the certificate is then checked against the name. What comes back is bounded in bytes and
handed on in small parts, so that no reply, however it is cut, keeps the event loop busy.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore2

from verifiers.outbound_address import Names, NotAllowed, NotFound, TooMany, check_addresses

MAX_ADDRESSES = 4  # that are tried, of those that a name has
READ_BYTES = 2048


class TooLong(Exception):
    """The reply is longer than it may be."""


class Gate(httpcore2.AsyncNetworkBackend):
    """Connects where the policy allows. `plain`: its connections are not encrypted.

    `most_bytes` is what one reply may come to, with its head and framing.
    """

    def __init__(
        self, names: Names, inner: httpcore2.AsyncNetworkBackend, *, plain: bool, loopback: bool, most_bytes: int
    ) -> None:
        self._names, self._inner = names, inner
        self._plain, self._loopback = plain, loopback
        self._most_bytes = most_bytes

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, judge, connect, within `timeout` seconds in all.

        Raises: NotAllowed, NotFound, TooMany, httpcore2.ConnectError, httpcore2.ConnectTimeout.
        """
        clock = asyncio.get_running_loop().time
        ends = clock() + (timeout or 0.0)
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._names.resolve(host)
        except TimeoutError:
            raise NotFound("the name of the host was not resolved in time") from None
        checked = check_addresses(addresses, plain=self._plain, loopback=self._loopback)[:MAX_ADDRESSES]
        for left, address in zip(range(len(checked), 0, -1), checked, strict=True):
            share_s = max(0.0, ends - clock()) / left if timeout else None
            try:
                stream = await self._inner.connect_tcp(address, port, timeout=share_s)
                return _Bounded(stream, self._most_bytes)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 1:
                    raise
        raise AssertionError("check_addresses refuses a host without addresses")

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore2 does between its own retries, of which there are none."""
        await asyncio.sleep(seconds)


class _Bounded(httpcore2.AsyncNetworkStream):
    """A stream of which no more than `most_bytes` are read after each thing that is written."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream, most_bytes: int) -> None:
        self._inner, self._most_bytes = inner, most_bytes
        self._left_bytes = most_bytes

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._left_bytes <= 0:
            raise TooLong
        part = await self._inner.read(min(max_bytes, READ_BYTES), timeout)
        self._left_bytes -= len(part)
        await asyncio.sleep(0)  # what has arrived already is read without waiting: let others go first
        return part

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._left_bytes = self._most_bytes
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            encrypted = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with anyio.CancelScope(shield=True):  # who is late is cancelled, and the backend then leaves it open
                await self._inner.aclose()
            raise
        return _Bounded(encrypted, self._most_bytes)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


__all__ = ["Gate", "NotAllowed", "NotFound", "TooLong", "TooMany"]
