"""What SGLang does that nobody expects, each seen on the real server, and that we are safe from it.

Where the embedded engine has the same contract it is tested beside it. The hazards, and where each has its tests:

1.  An unload does not last: naming the adapter again revives it from its path, whatever lies there by then:
    `test_1_*`; and `test_adapters.test_an_adapter_comes_and_goes`.
2.  A bare adapter's name, and any unknown model, silently serve the base: `test_2_*`; the API's own 404 is in
    tests/integration/api/test_openai_sdk.py.
3.  Past `max_loaded_loras` the oldest adapter is evicted without a word: `test_3_*`.
4.  An unload waits for what runs, and holds up every load behind it: `test_4_*`; that we drain first is in
    tests/unit/adapters/test_hot_swap.py and tests/integration/trainer/test_swap_under_load.py.
5.  What does not fit: a loaded name, rank, modules, files: `test_adapters.test_a_name_is_loaded_once` and
    `test_an_adapter_that_does_not_fit_is_refused`; DoRA, and what is loaded but not applied as it was trained (rsLoRA,
    unknown keys), which only a probe finds out: `test_5_*`.
6.  Tensors that cannot be read kill the server: `test_6_*` (the killing itself: nightly).
7.  An idle scheduler takes most of a core: `test_7_*`.
8.  A stream gives no token ids: `test_8_*`.
9.  A request that is silent gets the model's own sampling: `test_answers.test_samples_where_a_request_is_silent`,
    `test_texts.test_samples_where_a_request_is_silent`, on a model whose own would make every answer the same.
10. A history with calls that are not JSON is refused: `test_10_*`; without tools in the prompt where `tool_choice` is
    none: `test_answers.test_tool_choice_none_takes_the_tools_away`.
11. SGLang has an environment of its own, and paths are the engine's machine's: `test_11_*`.
12. `n` above 1 together with an unload can stop the scheduler for good: `test_12_*`; that choices are asked for one by
    one is in tests/unit/api/test_choices.py.
"""

import asyncio
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import server.engine.sglang
from server.adapters.loading import push
from server.adapters.probing import Probe, probe
from server.engine.launch import engine_command
from server.engine.sglang import SGLangEngine
from server.errors import AdapterMissing, AdapterRefused, EngineRefused
from server.orchestration.reflection import Prompts, reflection_messages
from server.settings import EngineSettings
from tests.contract.engine.conftest import PIDS, ROOT, SGLANG_PYTHON, World, run_engine
from tests.contract.engine.reference import Reference

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUESTION = [{"role": "user", "content": "which one are you?"}]
BODY = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
MAX_LOADED = EngineSettings().max_loaded_loras
WAIT_S = 60.0


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference(world.model)


@pytest.fixture
def real(request: pytest.FixtureRequest, engine_url: str) -> str:
    """The real SGLang's address: what only it does is asked of it alone, without our client in between."""
    if "sglang" not in request.node.callspec.id:
        pytest.skip("only SGLang does this")
    return engine_url


async def post(url: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Ask as anybody could."""

    def ask() -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    return await asyncio.to_thread(ask)


async def ask_raw(url: str, model: str, **more: Any) -> str:
    status, reply = await post(url, "/v1/chat/completions", {**BODY, "model": model, **more})
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"]


def text_of(completion: Any) -> str:
    return completion.message["content"]


class Test1AnUnloadDoesNotLast:
    async def test_1_the_hazard(self, real: str, engine: SGLangEngine, world: World, tmp_path: Path):
        path = tmp_path / "overwritten"
        shutil.copytree(world.adapter("one"), path)
        await engine.load_adapter("hazard@1", str(path))
        before = text_of(await engine.complete(BODY, "hazard@1"))
        await engine.unload_adapter("hazard@1")
        shutil.rmtree(path)
        shutil.copytree(world.adapter("two"), path)
        revived = await ask_raw(real, "base:hazard@1")
        assert "hazard@1" in (await engine.state()).adapters
        assert revived != before  # another adapter answers under the name that was written once

    async def test_1_a_name_that_was_unloaded_is_not_sent_until_somebody_loads_it(
        self, engine: SGLangEngine, engine_url: str, world: World
    ):
        await engine.load_adapter("gone@1", world.adapter("one"))
        answer = text_of(await engine.complete(BODY, "gone@1"))
        await engine.unload_adapter("gone@1")
        with pytest.raises(AdapterMissing):
            await engine.complete(BODY, "gone@1")
        assert "gone@1" not in (await engine.state()).adapters
        other = SGLangEngine(engine_url, timeout_s=WAIT_S)
        try:
            await other.load_adapter("gone@1", world.adapter("one"))  # another process rolls back to it
            assert "gone@1" in (await engine.state()).adapters
            assert text_of(await engine.complete(BODY, "gone@1")) == answer
        finally:
            await other.close()


class Test2AnUnknownNameServesTheBase:
    async def test_2_the_hazard(self, real: str, engine: SGLangEngine, world: World):
        await engine.load_adapter("named@1", world.adapter("one"))
        base = await ask_raw(real, "base")
        assert await ask_raw(real, "named@1") == base
        assert await ask_raw(real, "nonsense") == base
        assert await ask_raw(real, "base:named@1") != base

    async def test_2_our_names_reach_their_adapter_or_nothing(
        self, engine: SGLangEngine, world: World, reference: Reference
    ):
        await engine.load_adapter("named@2", world.adapter("two"))
        answer = await engine.complete(BODY, "named@2", with_tokens=True)
        path = world.adapter("two")
        assert list(answer.token_ids) == reference.likeliest(answer.prompt_ids, answer.token_ids, adapter=path)
        assert list(answer.token_ids) != reference.likeliest(answer.prompt_ids, answer.token_ids)
        with pytest.raises(AdapterMissing):
            await engine.complete(BODY, "named@3")


class Test3TheOldestIsEvicted:
    async def test_3_what_was_evicted_is_seen_as_missing_and_comes_back(
        self, engine: SGLangEngine, world: World, reference: Reference
    ):
        folders = ("one", "two", "three")
        for number in range(MAX_LOADED + 1):
            await engine.load_adapter(f"many@{number}", world.adapter(folders[number % 3]))
        held = (await engine.state()).adapters
        evicted = [f"many@{number}" for number in range(MAX_LOADED + 1) if f"many@{number}" not in held]
        assert evicted == ["many@0"]  # so a look at the engine finds a champion missing, and loads it again
        assert await push(engine, "many@0", world.adapter("one"))
        answer = await engine.complete(BODY, "many@0", with_tokens=True)
        path = world.adapter("one")
        assert list(answer.token_ids) == reference.likeliest(answer.prompt_ids, answer.token_ids, adapter=path)
        for number in range(MAX_LOADED + 1):
            await engine.unload_adapter(f"many@{number}")  # one of them is evicted: that is no error


class Test4AnUnloadWaits:
    async def test_4_for_what_runs_and_cuts_nothing(self, engine: SGLangEngine, engine_url: str, world: World):
        await engine.load_adapter("busy@1", world.adapter("one"))
        tokens, ended, begun = 96, [], asyncio.Event()

        async def stream() -> int:
            usage = 0
            body = {**BODY, "max_tokens": tokens, "ignore_eos": True, "stream_options": {"include_usage": True}}
            async for event in engine.stream(body, "busy@1"):
                begun.set()
                usage = (json.loads(event).get("usage") or {}).get("completion_tokens", usage)
            ended.append("stream")
            return usage

        async def unload() -> None:
            await engine.unload_adapter("busy@1")
            ended.append("unload")

        async def load() -> None:
            other = SGLangEngine(engine_url, timeout_s=WAIT_S)
            try:
                await other.load_adapter("next@1", world.adapter("two"))
            finally:
                await other.close()

        streaming = asyncio.create_task(stream())
        await asyncio.wait_for(begun.wait(), WAIT_S)
        unloading = asyncio.create_task(unload())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(asyncio.gather(streaming, unloading, load()), WAIT_S)
        assert streaming.result() == tokens
        assert ended == ["stream", "unload"]
        assert "next@1" in (await engine.state()).adapters


class Test5WhatDoesNotFit:
    async def test_5_dora_is_refused(self, engine: SGLangEngine, world: World):
        with pytest.raises(AdapterRefused):
            await engine.load_adapter("dora@1", world.adapter("dora"))
        assert (await engine.state()).adapters == {}

    @pytest.mark.parametrize("folder", ["rslora", "renamed"])
    async def test_5_what_is_not_applied_as_it_was_trained_is_refused_or_found_out_by_its_probe(
        self, engine: SGLangEngine, world: World, reference: Reference, folder: str
    ):
        """SGLang loads both without a word: it knows no rsLoRA scale, and passes over keys that it does not know."""
        trained = world.adapter("rslora" if folder == "rslora" else "two")  # what the trainer computed with
        prompt = reference.render(QUESTION)
        tokens: list[int] = []
        for _ in range(4):
            tokens.append(reference.likeliest(prompt, [*tokens, 0], adapter=trained)[-1])
        expected = Probe(prompt, tokens, reference.logprobs(prompt, tokens, adapter=trained), 0.01)
        try:
            await engine.load_adapter(f"{folder}@1", world.adapter(folder))
        except AdapterRefused:
            return
        with pytest.raises(AdapterRefused, match="does not answer with"):
            await probe(engine, f"{folder}@1", expected)


class Test6TensorsThatCannotBeReadKill:
    def test_6_only_files_are_ever_sent(self):
        source = Path(server.engine.sglang.__file__).read_text()
        assert set(re.findall(r"/\w*lora_adapter\w*", source)) == {"/load_lora_adapter", "/unload_lora_adapter"}

    @pytest.mark.sglang
    @pytest.mark.nightly
    async def test_6_the_hazard(self, world: World, tmp_path: Path):
        with run_engine("sglang", world, tmp_path) as url:
            payload = {"lora_name": "x@1", "config_dict": {"r": 8}, "serialized_named_tensors": ["bm9uc2Vuc2U="]}
            with suppress(OSError):
                await post(url, "/load_lora_adapter_from_tensors", payload)
            assert await _stops_answering(url)


async def _stops_answering(url: str) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            status, _ = await post(url, "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}})
        except OSError:
            return True
        if status != 200:
            return True
        await asyncio.sleep(0.5)
    return False


class Test7AnIdleSchedulerSleeps:
    async def test_7_an_engine_that_is_idle_takes_little_of_a_core(self, engine_url: str, engine: SGLangEngine):
        await engine.complete(BODY, "")
        await asyncio.sleep(0.5)
        family = [psutil.Process(PIDS[engine_url])]
        family += family[0].children(recursive=True)

        def taken_s() -> float:
            times = [one.cpu_times() for one in family if one.is_running()]
            return sum(one.user + one.system for one in times)

        before, begun = taken_s(), time.monotonic()
        await asyncio.sleep(3)
        assert (taken_s() - before) / (time.monotonic() - begun) < 0.4  # without `--sleep-on-idle`: 0.8


class Test8StreamsGiveNoTokenIds:
    @pytest.mark.parametrize("field", ["return_token_ids", "return_meta_info"])
    async def test_8_the_hazard(self, real: str, field: str):
        status, reply = await post(real, "/v1/chat/completions", {**BODY, "model": "base", "stream": True, field: True})
        assert status == 400
        assert "not supported with streaming" in reply["message"]

    async def test_8_what_may_be_trained_on_comes_whole(self, engine: SGLangEngine, world: World, reference: Reference):
        await engine.load_adapter("whole@1", world.adapter("one"))
        answer = await engine.complete({**BODY, "temperature": 1.0}, "whole@1", with_tokens=True)
        assert len(answer.token_ids) == len(answer.logprobs) == answer.usage.completion_tokens
        path = world.adapter("one")
        expected = reference.logprobs(answer.prompt_ids, answer.token_ids, adapter=path)
        assert list(answer.logprobs) == pytest.approx(expected, abs=1e-4)


class Test10CallsThatAreNotJson:
    TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},)
    CALL = ({"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"x": '}},)

    async def test_10_the_hazard(self, real: str, engine: SGLangEngine):
        history = [
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [*self.CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ]
        with pytest.raises(EngineRefused, match="JSON"):
            await engine.complete({**BODY, "messages": history, "tools": [*self.TOOLS]}, "")

    async def test_10_a_failed_call_reaches_the_reflection_as_text(self, engine: SGLangEngine):
        answer = {"role": "assistant", "content": None, "tool_calls": [*self.CALL]}
        messages = reflection_messages(QUESTION, self.TOOLS, answer, Prompts())
        said = json.dumps(messages)
        assert all("tool_calls" not in message for message in messages)
        assert "add" in said
        assert text_of(await engine.complete({**BODY, "messages": messages}, "")) is not None


class Test11AnEnvironmentOfItsOwn:
    def test_11_the_interpreter_is_not_ours(self):
        command, _ = engine_command(EngineSettings(kind="sglang", sglang_python=str(SGLANG_PYTHON)), 1)
        assert command[0] == str(SGLANG_PYTHON.absolute())
        assert not Path(command[0]).is_relative_to(ROOT / ".venv")

    async def test_11_a_path_that_the_engine_cannot_read_is_refused(self, engine: SGLangEngine):
        with pytest.raises(AdapterRefused):
            await engine.load_adapter("elsewhere@1", "/on/another/machine")
        assert text_of(await engine.complete(BODY, "")) is not None


class Test12ManyAnswersAndAnUnload:
    async def test_12_single_calls_and_an_unload_all_come_to_their_end(self, engine: SGLangEngine, world: World):
        await engine.load_adapter("fan@1", world.adapter("one"))
        body = {**BODY, "temperature": 1.0, "max_tokens": 24, "ignore_eos": True}
        choices = [asyncio.create_task(engine.complete(body, "fan@1")) for _ in range(4)]
        await asyncio.sleep(0.05)
        unloading = asyncio.create_task(engine.unload_adapter("fan@1"))
        answers = await asyncio.wait_for(asyncio.gather(*choices), WAIT_S)
        await asyncio.wait_for(unloading, WAIT_S)
        assert [answer.usage.completion_tokens for answer in answers] == [24] * 4
        assert text_of(await engine.complete(BODY, "")) is not None
