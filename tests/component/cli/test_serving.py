"""One of several API processes, by itself: how it ends."""

import asyncio

import pytest
import structlog
import uvicorn

from server.cli import serving
from server.cli.serving import SharingServer
from server.supervisor.sharing import SharedPort, listen


async def never_closes(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.Event().wait()


async def test_one_that_cannot_close_says_what_it_waits_for_and_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "CLOSE_S", 0.3)
    with listen("127.0.0.1", 0) as listener:
        listener.setblocking(False)
        port = SharedPort.open(listener, 1)
        server = SharingServer(uvicorn.Config(never_closes, lifespan="on", log_config=None), port, 1)
        with structlog.testing.capture_logs() as logs:
            serving_task = asyncio.create_task(server.serve())
            while not port.is_there(1):
                await asyncio.sleep(0.01)
            server.should_exit = True
            await asyncio.wait_for(serving_task, 30)
    [stuck] = [one for one in logs if one["event"] == "worker_stuck"]
    assert any("test_serving.py" in where for where in stuck["waits_for"])
    assert not port.is_there(1)
