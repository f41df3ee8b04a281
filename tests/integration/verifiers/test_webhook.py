"""The kind `webhook` over the wire: what is sent, when it is sent again, what is kept open and what is closed."""

import asyncio
import base64
import gc
import hashlib
import hmac
import json
import threading
import time

import pytest
import uvloop

from tests.fixtures.loopback import Caller, always, reply, serve
from tests.integration.verifiers.conftest import SECRET
from verifiers import outbound, policy, registry
from verifiers.base import Cause, Status
from verifiers.outbound import Outbound
from verifiers.webhook import make_kind

PASSED = reply(b'{"passed": true}')
REQUEST = {"messages": [{"role": "user", "content": "2+2?"}], "tools": None, "other": 1}
ANSWER = {"role": "assistant", "content": "Vier \u2713"}


@pytest.fixture
def out():
    made = Outbound()
    yield made
    made.close()


def verifier(url, out, **config):
    return make_kind(out).compile_checked({"url": url, "secret": "crm", "timeout_s": 30, **config})


async def test_what_a_webhook_is_sent(out):
    with serve(always(PASSED)) as server:
        made = verifier(f"{server.url}/v?x=1", out)
        for _ in range(2):
            assert (await made.verify(REQUEST, ANSWER, {"target": 4})).status is Status.PASSED
    first, second = server.asked
    assert first.line == "POST /v?x=1 HTTP/1.1"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["accept-encoding"] == "identity"
    assert json.loads(first.body) == {
        "type": "mulligan.verify",
        "request": {"messages": REQUEST["messages"], "tools": None},
        "answer": ANSWER,
        "args": {"target": 4},
    }
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{first.headers['webhook-id']}.{first.headers['webhook-timestamp']}.".encode() + first.body
    digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert first.headers["webhook-signature"] == f"v1,{digest}"
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 600
    assert first.headers["webhook-id"] != second.headers["webhook-id"]
    assert server.connected == 1  # it was kept open in between


async def test_unsigned(out):
    with serve(always(PASSED)) as server:
        made = make_kind(out).compile_checked({"url": server.url, "unsigned": True})
        assert (await made.verify(REQUEST, ANSWER, {})).status is Status.PASSED
    assert "webhook-signature" not in server.asked[0].headers


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(outbound, "BACK_OFF_S", 0.001)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_status_that_may_pass_is_tried_again_under_the_same_id(out, status):
    said = iter([reply(b"", status), reply(b"", status), PASSED])

    async def answer(caller: Caller) -> None:
        while True:
            await caller.request()
            await caller.send(next(said))

    with serve(answer) as server:
        assert (await verifier(server.url, out, retries=3).verify(REQUEST, ANSWER, {})).status is Status.PASSED
    assert len(server.asked) == 3
    assert len({asked.headers["webhook-id"] for asked in server.asked}) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("status", "tries"), [(503, 3), (500, 1), (404, 1), (302, 1), (200, 1)])
async def test_so_many_tries(out, status, tries):
    with serve(always(reply(b"", status))) as server:
        verdict = await verifier(server.url, out, retries=2).verify(REQUEST, ANSWER, {})
    assert verdict.status is Status.ABSTAINED
    assert len(server.asked) == tries


@pytest.mark.usefixtures("hasty")
async def test_a_connection_that_is_refused_is_tried_again(out):
    with serve(always(PASSED)) as server:
        pass  # nobody listens there any more
    verdict = await verifier(server.url, out, retries=2).verify(REQUEST, ANSWER, {})
    assert (verdict.cause, verdict.reason) == (Cause.UNREACHABLE, "no connection could be made")


async def test_no_try_is_begun_that_would_come_too_late(out):
    with serve(always(reply(b"", 503, "retry-after: 60"))) as server:
        verdict = await verifier(server.url, out, retries=3, timeout_s=20).verify(REQUEST, ANSWER, {})
    assert verdict.reason == "the webhook answered with status 503"
    assert len(server.asked) == 1


async def test_so_many_calls_at_once(out, monkeypatch):
    monkeypatch.setattr(outbound, "MAX_AT_ONCE", 2)
    both, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def answer(caller: Caller) -> None:
        while True:
            await caller.request()
            if server.connected == 2:
                loop.call_soon_threadsafe(both.set)
            await asyncio.to_thread(go.wait, 60)
            await caller.send(PASSED)

    with serve(answer) as server:
        made = verifier(server.url, out)
        running = [asyncio.ensure_future(made.verify(REQUEST, ANSWER, {})) for _ in range(2)]
        await both.wait()
        verdict = await verifier(server.url, out, timeout_s=0.2).verify(REQUEST, ANSWER, {})
        assert (verdict.cause, verdict.reason) == (Cause.BUSY, "2 calls to the host are under way")
        go.set()
        assert [done.status for done in await asyncio.gather(*running)] == [Status.PASSED] * 2
        assert server.connected == 2


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_event_loops_end_without_leaving_a_connection_open(out, make_loop, scheme, serving_tls):
    """What an event loop left open would be a warning, and so an error, once it is collected."""
    with serve(always(PASSED), serving_tls("127.0.0.1") if scheme == "https" else None) as server:
        made = verifier(f"{scheme}://127.0.0.1:{server.port}/", out)
        for _ in range(3):
            with asyncio.Runner(loop_factory=make_loop) as runner:
                for _ in range(2):
                    assert runner.run(made.verify(REQUEST, ANSWER, {})).status is Status.PASSED
        assert server.connected == 3
        assert out._kept == {}
    gc.collect()


def test_loops_side_by_side_each_have_their_own(out):
    with serve(always(PASSED)) as server:
        made = verifier(server.url, out)

        async def ask_often() -> list[Status]:
            said = await asyncio.gather(*(made.verify(REQUEST, ANSWER, {}) for _ in range(10)))
            return [verdict.status for verdict in said]

        seen: list[list[Status]] = []
        threads = [threading.Thread(target=lambda: seen.append(asyncio.run(ask_often()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert seen == [[Status.PASSED] * 10] * 4
    gc.collect()


async def test_of_a_host_nothing_is_kept_but_connections(out):
    with serve(always(PASSED)) as server:
        assert (await verifier(server.url, out).verify(REQUEST, ANSWER, {})).status is Status.PASSED
    (kept,) = out._kept.values()
    assert len(kept.room) == 0


async def test_closing_closes_and_the_next_call_opens_again(out):
    gone = threading.Semaphore(0)

    async def answer(caller: Caller) -> None:
        try:
            await always(PASSED)(caller)
        finally:
            gone.release()

    with serve(answer) as server:
        made = verifier(server.url, out)
        await made.verify(REQUEST, ANSWER, {})
        out.close()
        assert await asyncio.to_thread(gone.acquire, timeout=60)
        assert (await made.verify(REQUEST, ANSWER, {})).status is Status.PASSED
        assert server.connected == 2


async def test_the_registry_closes_it_too():
    gone = threading.Semaphore(0)

    async def answer(caller: Caller) -> None:
        try:
            await always(PASSED)(caller)
        finally:
            gone.release()

    with serve(answer) as server:
        made = registry.compile_verifier("webhook", {"url": server.url, "unsigned": True})
        assert (await made.verify(REQUEST, ANSWER, {})).status is Status.PASSED
        registry.close()
        assert await asyncio.to_thread(gone.acquire, timeout=60)


async def test_who_is_cancelled_closes_its_connection(out):
    asked, gone = asyncio.Event(), threading.Semaphore(0)
    loop = asyncio.get_running_loop()

    async def answer(caller: Caller) -> None:
        await caller.request()
        loop.call_soon_threadsafe(asked.set)
        assert await caller.anything() == b""  # the end of the connection
        gone.release()

    with serve(answer) as server:
        waiting = asyncio.ensure_future(verifier(server.url, out).verify(REQUEST, ANSWER, {}))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(gone.acquire, timeout=60)


async def test_a_ca_file_that_is_none_is_an_abstention(out, tmp_path):
    policy.configure(policy.Policy(loopback=True, secrets={"crm": SECRET}, ca_file=str(tmp_path / "missing")))
    verdict = await verifier("https://127.0.0.1:9999/", out).verify(REQUEST, ANSWER, {})
    assert (verdict.cause, verdict.reason[:24]) == (Cause.UNREACHABLE, "the certificates to trus")
