"""One port for several API processes: who accepts a connection, and that nobody waits for one that is gone."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.supervisor.sharing import Acceptor, SharedPort, listen


class Reception:
    """One process's side: it says how many connections it has, and counts those that it is given."""

    def __init__(self, shared: SharedPort, number: int) -> None:
        self.connections = 0
        self.given = 0
        listener = socket.socket(fileno=socket.dup(shared.files[0]))
        listener.setblocking(False)
        own = SharedPort(listener, shared.files[1])
        self.acceptor = Acceptor(own, number, count=lambda: self.connections, make_protocol=self.make_protocol)

    def make_protocol(self) -> asyncio.Protocol:
        self.given += 1
        return Greeter()


class Greeter(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def shared():
    with listen("127.0.0.1", 0) as listener:
        yield SharedPort.open(listener, 3)


@asynccontextmanager
async def receiving(*receptions: Reception) -> AsyncIterator[None]:
    for reception in receptions:
        reception.acceptor.start()
    try:
        yield
    finally:
        for reception in receptions:
            reception.acceptor.stop()


async def connect(shared: SharedPort) -> bytes:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*shared.listener.getsockname()[:2])
        try:
            return await reader.read()
        finally:
            writer.close()


async def test_a_connection_goes_to_whoever_has_fewest(shared: SharedPort):
    busy, idle = Reception(shared, 1), Reception(shared, 2)
    busy.connections = 5
    async with receiving(busy, idle):
        for _ in range(20):
            assert await connect(shared) == b"hello"
    assert busy.given + idle.given == 20
    assert idle.given > 15  # all, unless this machine stood still for a moment


async def test_nobody_waits_for_one_that_is_stuck_or_gone(shared: SharedPort):
    busy = Reception(shared, 1)
    busy.connections = 5
    shared.write_count(2, 0)  # it is there and has none, but never accepts; the third never came
    async with receiving(busy):
        answers = await asyncio.gather(*(connect(shared) for _ in range(20)))
        assert answers == [b"hello"] * 20
        shared.mark_away(2)
        assert not shared.has_more_than_another(1, 5)
        assert await connect(shared) == b"hello"
    assert busy.given == 21


async def test_what_comes_while_nobody_is_there_is_answered_later(shared: SharedPort):
    early = [asyncio.create_task(connect(shared)) for _ in range(5)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in early)
    assert not shared.is_there(1)
    async with receiving(Reception(shared, 1)):
        assert shared.is_there(1)
        assert await asyncio.gather(*early) == [b"hello"] * 5
    assert not shared.is_there(1)


def test_a_port_is_found_and_a_taken_one_is_an_error():
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])
