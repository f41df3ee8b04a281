"""Calls addresses that clients registered: the one way out of this process for the kinds `webhook` and `judge`.

What a client registers may point anywhere, and what answers may be anything. So: HTTPS, and plain HTTP to this machine
alone where the operator allows that; only public addresses, judged at every connection (`verifiers.outbound_stream`);
no redirects, no proxies, no cookies, no other encodings than plain; bounds on time, on bytes and on calls at once. No
library's defaults are relied on for any of it: httpcore2 speaks HTTP and keeps connections, and knows none of those.

Connections belong to the event loop that made them and are closed with it: by `close`, or by the loop's own end, which
closes asynchronous generators, and so ours.
"""

import asyncio
import contextlib
import random
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

import anyio
import httpcore2

from verifiers.base import Cause
from verifiers.outbound_address import Names
from verifiers.outbound_stream import Gate, NotAllowed, NotFound, TooLong, TooMany
from verifiers.outbound_url import Target
from verifiers.policy import Policy, current

MAX_REPLY_BYTES = 64 * 2**10
MAX_FRAMING_BYTES = 32 * 2**10  # the reply's head, what comes before it, the lengths of its chunks
MAX_AT_ONCE = 64  # calls to one host and port, from one event loop
MAX_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
IDLE_S = 4.0  # servers close idle connections after 5 s: ours go first
BACK_OFF_S = 0.2  # before the first repetition, twice that before the next; times 0.5 to 1.5
PART_BYTES = 64 * 2**10  # of a request's body, so that no part keeps the event loop busy

RETRIED = frozenset({429, 502, 503, 504})
# As httpcore2 and h11 say it.
_CUT_OFF = ("Server disconnected without sending a response", "peer closed connection")

Headers = dict[str, str]


class Unanswered(Exception):
    """The call came to no reply that can be read. `may_retry`: another try might."""

    def __init__(self, reason: str, cause: Cause = Cause.UNREACHABLE, *, may_retry: bool = False) -> None:
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause
        self.may_retry = may_retry


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. `retry_after_s` is how long its sender asks to be left alone."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


@dataclass(eq=False)
class _Connections:
    """What one event loop keeps; `room` for a host only while calls to it are under way, for hosts may be endless."""

    plain: httpcore2.AsyncConnectionPool
    encrypted: httpcore2.AsyncConnectionPool
    room: WeakValueDictionary[tuple[str, int], asyncio.Semaphore] = field(default_factory=WeakValueDictionary)
    keeper: AsyncGenerator[None, None] | None = None
    closing: asyncio.Task[None] | None = None

    async def keep(self, forget: Callable[[], None]) -> AsyncGenerator[None, None]:
        """Wait as a generator that the event loop knows, and close everything when it is closed."""
        try:
            yield
        finally:
            forget()
            if self.closing is not None:
                await asyncio.wait([self.closing])
            await self.close()

    async def close(self) -> None:
        """Close all connections, also where an event loop that ends cancels it."""
        cancelled = False
        for connection in (*self.plain.connections, *self.encrypted.connections):
            try:
                await connection.aclose()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def start_closing(self) -> None:
        """Close all connections in a task of the running loop."""
        self.closing = asyncio.get_running_loop().create_task(self.close())


_Key = tuple[asyncio.AbstractEventLoop, bool, str]


class Outbound:
    """The way out. Safe to share between threads and event loops; nothing is opened before it is used.

    `names` and `inner` are for tests, which have no public addresses: who resolves, and who connects what was judged.
    """

    def __init__(self, names: Names | None = None, inner: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._names = names or Names()
        self._inner = inner or cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())
        self._lock = threading.Lock()
        self._kept: dict[_Key, _Connections] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def post(
        self, target: Target, body: bytes, make_headers: Callable[[], Headers], *, timeout_s: float, retries: int = 0
    ) -> Reply:
        """Send JSON and read the whole reply, whatever its status, within `timeout_s` seconds in all.

        `make_headers` gives the headers of each try. A try is repeated, `retries` times at most, where there was no
        connection or the status is one of RETRIED; it keeps to the time that is left.

        Raises: Unanswered.
        """
        clock = asyncio.get_running_loop().time
        ends = clock() + timeout_s
        retry = 0
        while True:
            try:
                outcome = await self._try(target, body, make_headers(), ends, timeout_s)
                if outcome.status not in RETRIED or retry == retries:
                    return outcome
                pause_s = outcome.retry_after_s
            except Unanswered as error:
                if not error.may_retry or retry == retries:
                    raise
                outcome, pause_s = error, 0.0
            pause_s = max(pause_s, BACK_OFF_S * 2**retry * random.uniform(0.5, 1.5))
            if clock() + pause_s >= ends:
                if isinstance(outcome, Unanswered):
                    raise outcome
                return outcome
            await asyncio.sleep(pause_s)
            retry += 1

    def close(self) -> None:
        """Close all connections, each in its own event loop, as soon as that runs. May be called from anywhere."""
        with self._lock:
            kept, self._kept = self._kept, {}
        for (loop, _, _), connections in kept.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and they are with it
                loop.call_soon_threadsafe(connections.start_closing)

    async def _try(self, target: Target, body: bytes, headers: Headers, ends: float, timeout_s: float) -> Reply:
        waiting = True
        try:
            async with asyncio.timeout_at(ends):
                connections = await self._find_connections(current())
                room = connections.room.setdefault((target.host, target.port), asyncio.Semaphore(MAX_AT_ONCE))
                async with room:
                    waiting = False
                    return await _exchange(connections, target, body, headers)
        except TimeoutError:
            if waiting:
                raise Unanswered(f"{MAX_AT_ONCE} calls to the host are under way", Cause.BUSY) from None
            raise Unanswered(f"no reply within {timeout_s:g} s", Cause.TIMEOUT) from None

    async def _find_connections(self, policy: Policy) -> _Connections:
        """Find or make what this event loop keeps under this policy."""
        key = (asyncio.get_running_loop(), policy.loopback, policy.ca_file)
        found = self._kept.get(key)
        if found is not None:
            return found
        context = await self._find_context(policy.ca_file)
        with self._lock:
            for gone in [one for one in self._kept if one[0].is_closed()]:
                del self._kept[gone]
            if key in self._kept:
                return self._kept[key]
            made = self._kept[key] = _Connections(self._make_pool(policy), self._make_pool(policy, context))
        made.keeper = made.keep(lambda: self._forget(key, made))
        await anext(made.keeper)
        return made

    async def _find_context(self, ca_file: str) -> ssl.SSLContext:
        found = self._contexts.get(ca_file)
        if found is None:
            try:
                found = await asyncio.to_thread(_make_context, ca_file)
            except (OSError, ValueError) as error:
                raise Unanswered(f"the certificates to trust cannot be read: {type(error).__name__}") from None
            self._contexts[ca_file] = found
        return found

    def _make_pool(self, policy: Policy, context: ssl.SSLContext | None = None) -> httpcore2.AsyncConnectionPool:
        gate = Gate(
            self._names,
            self._inner,
            plain=context is None,
            loopback=policy.loopback,
            most_bytes=MAX_REPLY_BYTES + MAX_FRAMING_BYTES,
        )
        return httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=MAX_AT_ONCE,
            keepalive_expiry=IDLE_S,
            retries=0,
            network_backend=gate,
        )

    def _forget(self, key: _Key, connections: _Connections) -> None:
        with self._lock:
            if self._kept.get(key) is connections:
                del self._kept[key]


def _make_context(ca_file: str) -> ssl.SSLContext:
    """Trust what the system trusts, and what stands in `ca_file` besides. Reads files, for some 30 ms."""
    context = httpcore2.default_ssl_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PART_BYTES):
        yield body[start : start + PART_BYTES]


async def _exchange(connections: _Connections, target: Target, body: bytes, headers: Headers) -> Reply:
    """Make one request on a kept or new connection.

    Raises: Unanswered.
    """
    pool = connections.encrypted if target.scheme == "https" else connections.plain
    url = httpcore2.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    own = {
        "host": target.authority,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "mulligan",
    }
    limits: dict[str, Any] = {"timeout": {"connect": CONNECT_TIMEOUT_S}}
    try:
        async with pool.stream(
            "POST", url, headers=list({**own, **headers}.items()), content=_cut(body), extensions=limits
        ) as reply:
            return await _read(reply)
    except NotAllowed as error:
        raise Unanswered(str(error)) from None
    except (NotFound, TooMany) as error:
        cause = Cause.BUSY if isinstance(error, TooMany) else Cause.UNREACHABLE
        raise Unanswered(str(error), cause, may_retry=True) from None
    except TooLong:
        raise Unanswered(f"the reply is longer than {MAX_REPLY_BYTES:,} bytes", Cause.BAD_RETURN) from None
    except httpcore2.ConnectTimeout:
        raise Unanswered(f"no connection within {CONNECT_TIMEOUT_S:g} s", may_retry=True) from None
    except (httpcore2.NetworkError, httpcore2.TimeoutException, anyio.ClosedResourceError, OSError) as error:
        raise _explain(error) from None
    except httpcore2.RemoteProtocolError as error:
        if str(error).startswith(_CUT_OFF):
            raise Unanswered("the connection broke off", may_retry=True) from None
        raise Unanswered(f"the reply is not HTTP: {str(error)[:200]!a}", Cause.BAD_RETURN) from None


async def _read(reply: httpcore2.Response) -> Reply:
    """Read the body of a reply whose head has come.

    Raises: Unanswered, TooLong.
    """
    told = [(name.lower(), value.strip().lower()) for name, value in reply.headers]
    encoded = next((value for name, value in told if name == b"content-encoding" and value != b"identity"), None)
    if encoded is not None:
        raise Unanswered(f"the reply is encoded ({encoded.decode('ascii', 'replace')[:40]!a})", Cause.BAD_RETURN)
    parts: list[bytes] = []
    size = 0
    async for part in reply.aiter_stream():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise TooLong
    after = dict(told).get(b"retry-after", b"0").decode("ascii", "replace")
    return Reply(reply.status, b"".join(parts), float(after) if after.isdecimal() and len(after) < 6 else 0.0)


def _explain(error: Exception) -> Unanswered:
    """Say what became of a connection, without saying more of the network than its own name for it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return Unanswered(f"the host's certificate is not accepted: {found.verify_message}")
        if isinstance(found, ssl.SSLError):
            return Unanswered(f"the host does not speak TLS as it should ({found.reason or 'it broke off'})")
        found = found.__cause__ or found.__context__
    if isinstance(error, httpcore2.ConnectError):
        return Unanswered("no connection could be made", may_retry=True)
    return Unanswered("the connection broke off", may_retry=True)
