"""The engine's HTTP client against canned bytes: connections that are kept, that break, that send anything."""

import asyncio
import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import upstream as module
from server.engine.upstream import Upstream
from server.errors import EngineBroken, EngineTimeout, EngineUnavailable, MulliganError
from tests.component.engine.wire_server import read_request, reply, serve

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE


@contextlib.asynccontextmanager
async def client_of(answer, **options):
    async with serve(answer) as url:
        client = Upstream(url, **{"timeout_s": 5.0, **options})
        try:
            yield client
        finally:
            await client.close()


def canned(raw: bytes, cuts: tuple[int, ...] = (), *, close: bool = False):
    """Answer every request with these bytes, cut where it says."""

    async def answer(reader, writer):
        while True:
            await read_request(reader)
            places = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
            for start, end in itertools.pairwise(places):
                writer.write(raw[start:end])
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                return

    return answer


async def read_all(client: Upstream) -> tuple[int, bytes]:
    opened = await client.open("POST", "/x", b"{}")
    try:
        parts = []
        while part := await opened.part():
            parts.append(part)
        return opened.status, b"".join(parts)
    finally:
        opened.close()


@pytest.mark.parametrize("raw", [WHOLE, CHUNKED, UNTIL_CLOSE, INTERIM])
@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (17, 18, 40, 41), tuple(range(1, 90))])
async def test_whole_replies_and_streams_are_the_same_however_they_are_cut(raw, cuts):
    async with client_of(canned(raw, cuts, close=raw == UNTIL_CLOSE)) as client:
        assert await client.exchange("POST", "/x", b"{}") == (200, b"hello world")
        assert await read_all(client) == (200, b"hello world")


async def test_a_connection_serves_again_after_a_whole_reply():
    connections = 0

    async def answer(reader, writer):
        nonlocal connections
        connections += 1
        await canned(WHOLE)(reader, writer)

    async with client_of(answer) as client:
        for _ in range(3):
            await client.exchange("POST", "/x", b"{}")
            await read_all(client)
        assert (connections, client.open_connections) == (1, 1)


@pytest.mark.parametrize("raw", [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", UNTIL_CLOSE])
async def test_a_connection_that_the_engine_closes_is_not_kept(raw):
    async with client_of(canned(raw, close=True)) as client:
        await client.exchange("POST", "/x", b"{}")
        assert client.open_connections == 0


async def test_a_connection_that_was_closed_while_idle_is_never_written_to():
    """What may have reached the engine is not sent twice, so a stale connection has to be seen before."""
    asked = []

    async def answer(reader, writer):
        asked.append(await read_request(reader))
        writer.write(WHOLE)  # and closes the connection without having said so

    async with client_of(answer) as client:
        for number in range(3):
            await client.exchange("POST", f"/{number}", b"{}")
            while client.open_connections and not client._idle[0].closed:
                await asyncio.sleep(0.001)
    assert [path for path, _ in asked] == ["/0", "/1", "/2"]


async def test_an_idle_connection_is_given_up_before_the_engine_would():
    async with client_of(canned(WHOLE), idle_s=0.0) as client:
        await client.exchange("POST", "/x", b"{}")
        (first,) = client._idle
        await asyncio.sleep(0.002)
        await client.exchange("POST", "/x", b"{}")
        assert first.closed
        assert first not in client._idle


async def test_cancelling_closes_the_connection():
    async def hang(reader, writer):
        await read_request(reader)
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nh")
        with contextlib.suppress(ConnectionResetError):  # which it is where our byte came after the client's end
            assert await reader.read() == b""
        seen.set()

    asked, seen = asyncio.Event(), asyncio.Event()
    async with client_of(hang) as client:
        asking = asyncio.create_task(client.exchange("POST", "/x", b"{}"))
        await asyncio.wait_for(asked.wait(), 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(seen.wait(), 10)
        assert client.open_connections == 0


@pytest.mark.parametrize("how", ["exchange", "stream"])
async def test_a_pause_that_is_too_long_is_a_timeout(how):
    async def stall(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nh")
        await reader.read()

    async with client_of(stall, timeout_s=0.05) as client:
        with pytest.raises(EngineTimeout):
            await (client.exchange("POST", "/x", b"{}") if how == "exchange" else read_all(client))
        assert client.open_connections == 0


async def test_a_stream_may_take_longer_than_a_pause():
    async def drip(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.05)
            writer.write(b"1\r\nx\r\n")
        writer.write(b"0\r\n\r\n")

    async with client_of(drip, timeout_s=0.3) as client:
        assert await read_all(client) == (200, b"x" * 8)


async def test_a_reader_that_is_slow_stops_the_engine_from_sending(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_AT_BYTES", 1000)
    async with client_of(canned(reply(b"x" * 3_000_000))) as client:
        opened = await client.open("POST", "/x", b"{}")
        first = await opened.part()
        await asyncio.sleep(0.05)
        assert opened._connection._waiting_bytes < 1_500_000  # what was under way, and no more
        rest = 0
        while part := await opened.part():
            rest += len(part)
        opened.close()
        assert len(first) + rest == 3_000_000


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", EngineUnavailable),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", EngineUnavailable),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe", EngineUnavailable),
        (b"SMTP ready\r\n", EngineBroken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi", EngineBroken),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", EngineBroken),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi", MulliganError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, EngineBroken),
    ],
)
@pytest.mark.parametrize("how", ["exchange", "stream"])
async def test_what_is_no_whole_reply_is_an_error(raw, error, how):
    async with client_of(canned(raw, close=True)) as client:
        with pytest.raises(error):
            await (client.exchange("POST", "/x", b"{}") if how == "exchange" else read_all(client))
        assert client.open_connections == 0


async def test_a_reply_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(module, "MOST_BODY_BYTES", 10_000)
    async with client_of(canned(reply(b"x" * 20_000))) as client:
        with pytest.raises(EngineBroken, match="too long"):
            await client.exchange("POST", "/x", b"{}")


@pytest.mark.parametrize("cuts", [(), (len(WHOLE),), (len(WHOLE) + 20,)])
async def test_a_reply_that_nobody_asked_for_answers_nothing(cuts):
    async with client_of(canned(WHOLE + reply(b"not yours"), cuts)) as client:
        for _ in range(2):
            with contextlib.suppress(EngineBroken):
                assert await client.exchange("POST", "/x", b"{}") == (200, b"hello world")
            await asyncio.sleep(0.01)
        assert client.open_connections <= 1


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Upstream(url, timeout_s=1.0)


def test_any_bytes_end_in_a_reply_or_in_an_error_of_ours():
    """The parser is llhttp's; what is fuzzed is what is made of its calls, over one connection without a socket."""

    class Sink(asyncio.Transport):
        def write(self, data): ...
        def abort(self): ...
        def pause_reading(self): ...
        def resume_reading(self): ...

    pieces = st.sampled_from([
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 No\r\n", b"HTTP/1.1 100 Continue\r\n", b"content-length: 3\r\n",
        b"content-length: 99999999999999999999\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n",
        b"upgrade: x\r\n", b"\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\0", b"\r", b"\n",
    ])  # fmt: skip

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(st.lists(pieces | st.binary(max_size=12), max_size=12), st.booleans(), st.booleans())
    def feed(parts, streams, closes):
        connection = module._Connection()
        connection.connection_made(Sink())
        connection.send(b"", b"", streams=streams)
        for part in parts:
            if not connection.closed:
                connection.data_received(part)
        if closes:
            connection.connection_lost(None)
            assert connection.complete or isinstance(connection._error, MulliganError)
        if connection.may_serve_again():
            assert connection.complete
            assert connection._error is None

    feed()
