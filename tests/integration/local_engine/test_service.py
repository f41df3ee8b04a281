"""The decoder and what the endpoints share: adapters that load, drain and make room; clients that go away."""

import asyncio
from pathlib import Path

import pytest

from local_engine.chat import complete_chat, read_chat, stream_chat
from local_engine.errors import Refused
from local_engine.generation import generate
from local_engine.sampling import Sampling
from local_engine.service import Asked, Service
from tests.fixtures.models import make_adapter
from tests.integration.local_engine.conftest import Client

HELLO = [{"role": "user", "content": "hi"}]
BODY = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 8}
LONG = Sampling(max_new_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def adapters(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [str(make_adapter(folder / str(seed), model_path, seed=seed, scale=0.2)) for seed in range(3)]


async def ask(service: Service, **body: object) -> dict:
    return await complete_chat(read_chat({**BODY, **body}, service), service, Client())


async def test_unloading_refuses_new_ones_and_waits_for_old_ones(service: Service, adapters: list[str]):
    await service.load_adapter("a", adapters[0])
    sequence = service.begin([1, 2, 3], "a", LONG, Asked())
    unloading = asyncio.create_task(service.unload_adapter("a"))
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="never been loaded: a"):
        service.begin([1, 2, 3], "a", LONG, Asked())
    assert service.adapters == {}
    assert not unloading.done()
    await service.finish(sequence, Client())
    await unloading
    assert len(sequence.tokens) == 60
    with pytest.raises(Refused, match="does not exist"):
        await service.unload_adapter("a")


async def test_a_reloaded_name_answers_with_the_new_weights(service: Service, adapters: list[str]):
    texts = []
    for path in adapters[:2]:
        await service.load_adapter("a", path)
        texts.append((await ask(service, model="base:a"))["choices"][0]["message"]["content"])
        await service.unload_adapter("a")
    assert texts[0] != texts[1]


async def test_where_there_is_no_room_the_least_recently_used_idle_one_goes(service: Service, adapters: list[str]):
    await service.load_adapter("a", adapters[0])
    await service.load_adapter("b", adapters[1])
    await ask(service, model="base:a")
    await service.load_adapter("c", adapters[2])
    assert set(service.adapters) == {"a", "c"}
    busy = [service.begin([1], name, LONG, Asked()) for name in ("a", "c")]
    with pytest.raises(Refused, match="in use"):
        await service.load_adapter("d", adapters[1])
    for sequence in busy:
        await service.finish(sequence, Client())


async def test_a_client_that_goes_away_ends_its_sequence(service: Service):
    client = Client()
    sequence = service.begin([1, 2], "", Sampling(max_new_tokens=None, ignore_eos=True), Asked())
    finishing = asyncio.create_task(service.finish(sequence, client))
    await asyncio.sleep(0)
    client.left.set()
    await finishing
    assert sequence.finish is not None
    assert len(sequence.tokens) < sequence.limit or sequence.finish.type == "length"


async def test_a_request_is_aborted_by_its_id(service: Service):
    many = [service.begin([1, 2], "", LONG, Asked(id=str(number))) for number in range(6)]  # two have to wait
    service.abort("5")
    service.abort("0")
    await asyncio.gather(*(service.finish(sequence, Client()) for sequence in many))
    ends = [sequence.finish.type for sequence in many if sequence.finish]
    assert ends[1:5] == ["length"] * 4
    assert ends[5] == "abort"
    service.abort("", everything=True)


@pytest.mark.parametrize("model", ["other", "other:a", "", None, 7])
async def test_another_model_is_refused_and_not_served_by_the_base(service: Service, model: object):
    with pytest.raises(Refused):
        await ask(service, model=model)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "hi"},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        {"tools": [{"function": {}}]},
        {"tools": "f"},
        {"tool_choice": "required"},
        {"response_format": {"type": "structural_tag"}},
        {"top_logprobs": 21},
        {"stream": True, "return_token_ids": True},
        {"n": 2},
        {"input_ids": [100000]},
        {"input_ids": []},
        {"max_tokens": 10**6},
    ],
    ids=str,
)
async def test_refuses_chats_that_it_cannot_serve(service: Service, body: dict):
    with pytest.raises(Refused):
        await ask(service, **body)


async def test_images_are_refused_by_name(service: Service):
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    with pytest.raises(Refused, match="image_url part: this engine reads no images"):
        await ask(service, messages=[{"role": "user", "content": parts}])


async def test_a_seed_gives_the_same_answer_again(service: Service):
    body = {"temperature": 1.0, "max_tokens": 16}
    answers = await asyncio.gather(*(ask(service, seed=seed, **body) for seed in (1, 2, 1)))
    one, other, again = (answer["choices"][0]["message"]["content"] for answer in answers)
    assert one == again != other


async def test_streams_end_before_a_stop_string(service: Service):
    whole = (await ask(service, max_tokens=24))["choices"][0]["message"]["content"]
    stop = whole[6:8]
    request = read_chat({**BODY, "max_tokens": 24, "stream": True, "stop": stop}, service)
    sequence = service.begin(request.prompt, request.adapter, request.sampling, request.asked)
    chunks = [chunk async for chunk in stream_chat(request, sequence, service, Client())]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole[: whole.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_generates_for_a_list_of_prompts(service: Service):
    body = {"input_ids": [[1, 2, 3], [4, 5]], "sampling_params": {"temperature": 0, "max_new_tokens": 3}}
    one, two = await generate(body, service, Client())
    alone = await generate({**body, "input_ids": [4, 5]}, service, Client())
    assert two["output_ids"] == alone["output_ids"]
    assert len(one["output_ids"]) == 3
    for bad in ({"stream": True}, {"input_ids": None}, {"input_ids": ["a"]}, {"lora_path": "nobody"}):
        with pytest.raises(Refused):
            await generate({**body, "input_ids": [4, 5], **bad}, service, Client())
