"""Engines that die and come back: what serves is loaded before they take requests, and no answer is another's."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest

from bench.swaps.letters import letter_of
from bench.swaps.strategies import BODY, TOKENS
from server.engine.sglang import SGLangEngine
from tests.fixtures.server import ApiServer, serve_api
from tests.integration.swaps.conftest import GREEDY, TASK, EngineProcess, Shop, run_engine

pytestmark = [pytest.mark.timeout(1200)]


@dataclass
class Asking:
    """Asks without a pause, in a thread, until it is stopped."""

    api: ApiServer
    answers: list[tuple[float, int, str, str]] = field(default_factory=list)  # when, status, adapter, text
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            self.ask(f"question {number}")

    def ask(self, text: str) -> int:
        body = {**GREEDY, "model": TASK, "messages": [{"role": "user", "content": text}]}
        status, said, headers = self.api.ask("POST", "/v1/chat/completions", body)
        if status == 200:
            answer = said["mulligan"]["adapter"], said["choices"][0]["message"]["content"]
        else:
            assert headers["retry-after"], said
            answer = "", said["error"]["message"]
        self.answers.append((time.monotonic(), status, *answer))
        return status

    def check(self) -> None:
        """Every answer is wholly that of the adapter that it names."""
        mixed = {(adapter, text) for _, status, adapter, text in self.answers if status == 200}
        assert mixed == {(adapter, letter_of(adapter) * TOKENS) for adapter, _ in mixed}

    def refused_since(self, moment: float) -> list[str]:
        return [text for at, status, _, text in self.answers if status != 200 and at > moment]


async def wait_until(what, timeout_s: float = 60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := await what()):
        assert time.monotonic() < deadline, "it took too long"
        await asyncio.sleep(0.05)
    return found


async def test_after_a_restart_the_first_answer_is_the_champions(engine: EngineProcess, open_shop):
    shop: Shop = await open_shop(engine.url)
    await shop.promote(f"{TASK}@1")
    with serve_api(shop.data_dir, shop.database_url, engine.url, engine=shop.engines) as api:
        asking = Asking(api)
        assert await asyncio.to_thread(asking.ask, "before") == 200
        engine.kill()
        assert await asyncio.to_thread(asking.ask, "meanwhile") == 503
        engine.start()

        async def first_answer() -> bool:
            return await asyncio.to_thread(asking.ask, "after") == 200

        await asyncio.to_thread(engine.wait_ready)
        await wait_until(first_answer)
        assert {adapter for _, status, adapter, _ in asking.answers if status == 200} == {f"{TASK}@1"}
        asking.check()
    probe = SGLangEngine(engine.url)
    try:
        assert (await probe.complete(BODY, f"{TASK}@1")).message["content"] == letter_of(f"{TASK}@1") * TOKENS
        await probe.unload_adapter(f"{TASK}@1")
    finally:
        await probe.close()


async def test_a_replica_that_dies_is_passed_over_and_returns_up_to_date(letters, open_shop, tmp_path):
    with run_engine("local", letters, tmp_path) as first, run_engine("local", letters, tmp_path) as second:
        shop: Shop = await open_shop(first.url, second.url)
        await shop.promote(f"{TASK}@1")
        with serve_api(shop.data_dir, shop.database_url, first.url, engine=shop.engines) as api:
            asking = Asking(api)
            thread = threading.Thread(target=asking.run)
            thread.start()
            try:
                await _die_and_return(shop, asking, first, second)
            finally:
                asking.stop.set()
                await asyncio.to_thread(thread.join)
        asking.check()


async def _die_and_return(shop: Shop, asking: Asking, first: EngineProcess, second: EngineProcess) -> None:
    async def both() -> bool:
        return await shop.replicas_seen() == [{url: [f"{TASK}@1"] for url in sorted((first.url, second.url))}]

    async def only(*urls: str) -> bool:
        return all(sorted(seen) == sorted(urls) for seen in await shop.replicas_seen())

    await wait_until(both)
    first.kill()
    await wait_until(lambda: only(second.url))
    ejected_at = time.monotonic()
    assert len(asking.refused_since(0.0)) <= 1  # the one that was on its way there
    await shop.promote(f"{TASK}@2")  # the one that is away does not hold it up
    first.start()
    await wait_until(lambda: only(first.url, second.url))
    returned_at = time.monotonic()
    probe = SGLangEngine(first.url)
    try:
        assert [*(await probe.state()).adapters] == [f"{TASK}@2"]
        assert (await probe.complete(BODY, f"{TASK}@2")).message["content"] == letter_of(f"{TASK}@2") * TOKENS
    finally:
        await probe.close()
    second.kill()
    await wait_until(lambda: only(first.url))
    second_gone_at = time.monotonic()
    await wait_until(lambda: _answered(asking, second_gone_at, 5))
    assert asking.refused_since(ejected_at) == asking.refused_since(returned_at)
    assert len(asking.refused_since(returned_at)) <= 1
    assert {adapter for at, status, adapter, _ in asking.answers if at > second_gone_at} == {f"{TASK}@2"}


async def _answered(asking: Asking, since: float, count: int) -> bool:
    return sum(at > since and status == 200 for at, status, _, _ in asking.answers) >= count


async def test_an_engine_that_this_process_cannot_reach_but_the_api_asks_stops_a_promotion(
    letters, open_shop, tmp_path, monkeypatch
):
    monkeypatch.setattr("server.adapters.loading.wait_until_seen", _in_a_hurry)
    with run_engine("local", letters, tmp_path) as first, run_engine("local", letters, tmp_path) as second:
        shop: Shop = await open_shop(first.url, second.url)
        with serve_api(shop.data_dir, shop.database_url, first.url, engine=shop.engines):
            await wait_until(lambda: _sees(shop, 2))
            shop.engines = shop.engines.model_copy(update={"urls": (first.url,)})
            with pytest.raises(Exception, match=second.url):
                await shop.promote(f"{TASK}@3")
            probe = SGLangEngine(first.url)
            assert (await probe.state()).adapters == {}
            await probe.close()


async def _sees(shop: Shop, count: int) -> bool:
    return any(len(seen) == count for seen in await shop.replicas_seen())


async def _in_a_hurry(name, *, presence):
    from server.adapters.unloading import wait_until_seen  # noqa: PLC0415 - the real one, which waits for half a minute

    await wait_until_seen(name, presence=presence, timeout_s=3)
