"""How long and how large a request may arrive, over real connections in memory."""

import asyncio
import socket

import pytest
import uvicorn

from server.cli import arrival
from server.cli.arrival import BoundedProtocol

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
OK = b"HTTP/1.1 204"


bodies = []


async def answer(scope, receive, send):
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        return
    bodies.append(body)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
async def connection(monkeypatch):
    """The client's end of a connection, with a server that is patient for a moment."""
    monkeypatch.setattr(arrival, "HEAD_S", 0.2)
    monkeypatch.setattr(arrival, "BODY_S", 0.2)
    config = uvicorn.Config(answer, lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    bodies.clear()
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, protocol = await loop.connect_accepted_socket(lambda: BoundedProtocol(config, state, {}), theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    yield reader, writer, protocol
    writer.close()
    protocol.transport.abort()
    await asyncio.gather(*state.tasks)


async def read_all(reader):
    return await asyncio.wait_for(reader.read(), 10)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, HEAD + b"\r\nab"])
async def test_what_never_arrives_is_not_waited_for(connection, sent):
    reader, writer, _ = connection
    writer.write(sent)
    assert await read_all(reader) == b""


@pytest.mark.parametrize("line", [b"a: b\r\n", b"y" * 6])
async def test_a_head_without_an_end_is_refused_before_it_is_big(connection, line, monkeypatch):
    monkeypatch.setattr(arrival, "HEAD_S", 60)
    _, writer, protocol = connection
    written = 0
    writer.write(HEAD)
    while not protocol.transport.is_closing() and written < 10 * 2**20:
        writer.write(line * 1000)
        written += 6000
        await asyncio.sleep(0.001)
    assert arrival.MOST_HEAD_BYTES < written < 2**20  # some of it was in the kernel's hands


async def test_a_request_in_pieces_is_served_and_so_are_those_after_it(connection):
    reader, writer, protocol = connection
    for piece in (
        HEAD[:9],
        HEAD[9:],
        b"\r\na",
        b"bcd",
        HEAD + b"\r\nab",
        b"cd" + HEAD + b"\r\nabcd" + HEAD,
        b"\r\nabcd",
    ):
        writer.write(piece)
        await asyncio.sleep(0.01)
    got = b""
    while got.count(OK) < 4:
        got += await asyncio.wait_for(reader.read(1000), 10)
    assert protocol._timer is None
    assert not protocol.transport.is_closing()


OFFER = b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("cut", [1, len(HEAD), len(HEAD + OFFER) + 2, len(HEAD + OFFER) + 4, None])
async def test_an_offer_of_another_protocol_is_declined_and_nothing_is_lost(connection, cut):
    reader, writer, protocol = connection
    request = HEAD + OFFER + b"\r\nabcd"
    for piece in (request[:cut], request[cut:] if cut else b"", request, HEAD + b"\r\nabcd"):
        writer.write(piece)
        await asyncio.sleep(0.01)
    got = b""
    while got.count(OK) < 3:
        got += await asyncio.wait_for(reader.read(1000), 10)
    assert bodies == [b"abcd"] * 3
    assert not protocol.transport.is_closing()


async def test_offers_one_after_another_are_all_declined(connection):
    reader, writer, _ = connection
    writer.write((HEAD + OFFER + b"\r\nabcd") * 1100)  # more of them than calls could be nested
    got = b""
    while got.count(OK) < 1100:
        got += await asyncio.wait_for(reader.read(2**16), 10)
    assert len(bodies) == 1100


async def test_who_is_paused_is_not_cut(connection):
    reader, writer, protocol = connection
    writer.write(HEAD + b"\r\nab")
    while protocol.cycle is None or protocol.cycle.body:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # the application waits for more
    protocol.flow.pause_reading()
    await asyncio.sleep(0.5)
    protocol.flow.resume_reading()
    writer.write(b"cd")
    assert (await asyncio.wait_for(reader.read(12), 10)) == OK
