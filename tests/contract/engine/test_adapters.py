"""What every engine does with LoRA adapters: they come, answer, and go, and are never mixed up."""

import asyncio
import time

import pytest

from server.engine.base import Completion
from server.engine.sglang import SGLangEngine
from server.errors import AdapterMissing, AdapterRefused
from tests.contract.engine.conftest import MAX_RUNNING, World
from tests.contract.engine.reference import Reference

# PEFT 0.21 still reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BODY = {"messages": [{"role": "user", "content": "which one are you?"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference(world.model)


async def test_an_adapter_comes_and_goes(engine: SGLangEngine, world: World):
    plain = await engine.complete(BODY, "")
    await engine.load_adapter("sql@1", world.adapter("one"))
    assert (await engine.state()).adapters == {"sql@1": world.adapter("one")}
    adapted = await engine.complete(BODY, "sql@1")
    assert adapted.message != plain.message
    assert (await engine.complete(BODY, "")).message == plain.message
    await engine.unload_adapter("sql@1")
    assert (await engine.state()).adapters == {}
    with pytest.raises(AdapterMissing):
        await engine.complete(BODY, "sql@1")
    await engine.unload_adapter("sql@1")


async def test_an_adapter_never_loaded_is_missing(engine: SGLangEngine):
    with pytest.raises(AdapterMissing, match="nobody@1"):
        await engine.complete(BODY, "nobody@1")
    with pytest.raises(AdapterMissing):
        await engine.complete_ids([1, 2, 3], "nobody@1", {"max_new_tokens": 2})
    with pytest.raises(AdapterMissing):
        await anext(engine.stream(BODY, "nobody@1"))
    await engine.unload_adapter("nobody@1")


@pytest.mark.parametrize("folder", ["rank_32", "truncated", "nowhere"])
async def test_an_adapter_that_does_not_fit_is_refused(engine: SGLangEngine, world: World, folder: str):
    with pytest.raises(AdapterRefused):
        await engine.load_adapter(f"bad@{folder}", world.adapter(folder))
    assert (await engine.state()).adapters == {}
    assert (await engine.complete(BODY, "")).message["content"]


async def test_a_name_is_loaded_once(engine: SGLangEngine, world: World):
    await engine.load_adapter("sql@2", world.adapter("one"))
    with pytest.raises(AdapterRefused, match="already loaded"):
        await engine.load_adapter("sql@2", world.adapter("two"))
    assert (await engine.state()).adapters == {"sql@2": world.adapter("one")}


@pytest.mark.parametrize("folder", ["one", "attention_only"])
async def test_logprobs_are_those_of_the_adapter(engine: SGLangEngine, world: World, reference: Reference, folder: str):
    name, path = f"{folder}@3", world.adapter(folder)
    await engine.load_adapter(name, path)
    chat = await engine.complete({**BODY, "temperature": 1.0}, name, with_tokens=True)
    expected = reference.logprobs(chat.prompt_ids, chat.token_ids, adapter=path)
    assert list(chat.logprobs) == pytest.approx(expected, abs=1e-4)
    again = await engine.complete_ids(chat.prompt_ids, name, {"max_new_tokens": 8, "temperature": 0})
    assert list(again.token_ids) == reference.likeliest(chat.prompt_ids, again.token_ids, adapter=path)


async def test_sixteen_requests_on_two_adapters_each_get_their_own(
    engine: SGLangEngine, world: World, reference: Reference
):
    names = {"left@1": world.adapter("one"), "right@1": world.adapter("two"), "": ""}
    for name, path in names.items():
        if name:
            await engine.load_adapter(name, path)

    answers: list[tuple[str, Completion]] = []

    async def ask(number: int) -> None:
        name = list(names)[number % len(names)]
        body = {**BODY, "messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": 6 + number}
        answer = await engine.complete(body, name, with_tokens=True)
        answers.append((name, answer))

    await asyncio.gather(*(ask(number) for number in range(16)))
    assert len(answers) == 16
    for name, answer in answers:
        expected = reference.likeliest(answer.prompt_ids, answer.token_ids, adapter=names[name])
        assert list(answer.token_ids) == expected, f"not the answer of {name!r}"


async def test_more_adapters_at_once_than_a_batch_holds(engine: SGLangEngine, world: World, reference: Reference):
    folders = {f"many@{number}": world.adapter(("one", "two", "three")[number % 3]) for number in range(6)}
    for name, path in folders.items():
        await engine.load_adapter(name, path)
    names = [*folders, ""] * 2
    answers = await asyncio.gather(*(engine.complete(BODY, name, with_tokens=True) for name in names))
    for name, answer in zip(names, answers, strict=True):
        path = folders.get(name, "")
        assert list(answer.token_ids) == reference.likeliest(answer.prompt_ids, answer.token_ids, adapter=path)


@pytest.mark.parametrize("how", ["complete", "complete_ids", "stream"])
async def test_cancelling_frees_the_slot(engine: SGLangEngine, world: World, how: str):
    await engine.load_adapter(f"long@{how}", world.adapter("three"))

    async def generate(tokens: int) -> None:
        if how == "complete":
            await engine.complete({**BODY, "max_tokens": tokens, "ignore_eos": True}, f"long@{how}")
        elif how == "complete_ids":
            sampling = {"max_new_tokens": tokens, "ignore_eos": True}
            await engine.complete_ids([65, 66, 67], f"long@{how}", sampling)
        else:
            async for _ in engine.stream({**BODY, "max_tokens": tokens, "ignore_eos": True}, f"long@{how}"):
                pass

    started = time.monotonic()
    await asyncio.gather(*(generate(100) for _ in range(MAX_RUNNING)))
    hundred_tokens_s = time.monotonic() - started
    tasks = [asyncio.create_task(generate(1800)) for _ in range(MAX_RUNNING)]
    await asyncio.sleep(hundred_tokens_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    started = time.monotonic()
    await generate(1)
    await engine.unload_adapter(f"long@{how}")  # waits for whatever still runs
    # Had they gone on, they would have taken about 17 times as long.
    assert time.monotonic() - started < 5 * hundred_tokens_s
