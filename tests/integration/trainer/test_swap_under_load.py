"""Hot swaps while sixteen clients ask: nobody is dropped, and every answer is that of the adapter that it names."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest
from openai import OpenAI

from server.adapters import hot_swap
from server.adapters.files import hash_file
from server.adapters.rooms import SwapRooms
from server.domain import Adapter, Task
from tests.fixtures.models import make_adapter
from tests.fixtures.server import make_keys, serve_api

pytestmark = pytest.mark.slow

CLIENTS = 16
QUESTION = [{"role": "user", "content": "Say anything."}]
GREEDY = {"temperature": 0.0, "max_completion_tokens": 2}  # longer ones meet near ties, which batching decides


@dataclass
class Seen:
    """What the clients got: (adapter, text) pairs and errors."""

    answers: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask_until_stopped(self, url: str, key: str) -> None:
        with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            while not self.stop.is_set():
                try:
                    answer = client.chat.completions.create(model="letters", messages=QUESTION, **GREEDY)
                except Exception as error:
                    self.errors.append(repr(error))
                    return
                self.answers.append((answer.model_extra["mulligan"]["adapter"], answer.choices[0].message.content))


async def test_no_request_fails_and_each_answer_is_its_adapters(settings, model_path, stores, engine):
    await stores.tasks.create(Task("letters"))
    greedy: dict[str, str] = {}
    for name, seed in (("letters@1", 1), ("letters@2", 2)):
        folder = settings.adapters_dir / "letters" / name
        make_adapter(folder, model_path, rank=4, seed=seed)
        files = {path.name: hash_file(path) for path in folder.iterdir()}
        await stores.adapters.add(Adapter(name, "letters", str(folder), files))
        await engine.load_adapter(f"{name}-look", str(folder))
        body = {"messages": QUESTION, **GREEDY, "top_p": 1.0}
        greedy[name] = (await engine.complete(body, f"{name}-look")).message["content"]
        await engine.unload_adapter(f"{name}-look")
    greedy[""] = (await engine.complete({"messages": QUESTION, **GREEDY, "top_p": 1.0}, "")).message["content"]
    assert len(set(greedy.values())) == 3  # the answers tell the adapters apart

    seen = Seen()
    keys = await asyncio.to_thread(make_keys, settings.database_url)
    with serve_api(settings.data_dir, settings.database_url, settings.engine.url, keys=keys) as api:
        await asyncio.to_thread(api.wait_until_ready)
        threads = [
            threading.Thread(target=seen.ask_until_stopped, args=(api.url, keys["admin"])) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        of, how = stores, {"actor": "test", "drain_timeout_s": 30.0}
        moved = of.tasks, of.adapters, of.rounds, of.canaries, of.figures
        rooms = SwapRooms(engine, *moved, of.presence, of.events, of.holds)
        try:
            served = [""]
            for swap in ("letters@1", "letters@2", "back", "letters@2", "back"):
                await _wait_for_answers(seen, served[-1])
                if swap == "back":
                    task = await hot_swap.rollback("letters", rooms, **how)
                else:
                    task = await hot_swap.promote(swap, rooms, **how)
                served.append(task.champion)
            await _wait_for_answers(seen, served[-1])
        finally:
            seen.stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)

    assert seen.errors == []
    assert {adapter for adapter, _ in seen.answers} == {"", "letters@1", "letters@2"}
    wrong = {pair for pair in seen.answers if greedy[pair[0]] != pair[1]}
    assert not wrong, (len(seen.answers), sum(p in wrong for p in seen.answers), greedy, wrong)
    assert not [event for event in await stores.events.list() if event.kind == "adapter.left_loaded"]
    loaded = [name for name in (await engine.state()).adapters if name.startswith("letters@")]
    assert loaded == ([served[-1]] if served[-1] else [])
    for name in loaded:
        await engine.unload_adapter(name)


async def _wait_for_answers(seen: Seen, adapter: str, count: int = 20) -> None:
    """Wait until so many more answers came from the adapter that serves now."""
    begun, deadline = len(seen.answers), time.monotonic() + 60
    while sum(one == adapter for one, _ in seen.answers[begun:]) < count:
        assert not seen.errors, seen.errors
        assert time.monotonic() < deadline, seen.answers[-5:]
        await asyncio.sleep(0.05)
