"""What every engine does with a raw text: no chat template, text or tokens in, text out, whole or streamed."""

import asyncio
import json

import pytest

from server.domain import Usage
from server.engine.sglang import SGLangEngine
from server.errors import AdapterMissing, EngineRefused, Unsupported
from tests.contract.engine.conftest import CONTEXT_TOKENS, World
from tests.contract.engine.reference import Reference

# PEFT 0.21 still reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPT = "once upon a time, é"
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference(world.model)


def tokenize(reference: Reference, text: str) -> list[int]:
    return reference.tokenizer(text)["input_ids"]


async def expected_text(engine: SGLangEngine, reference: Reference, adapter: str = "") -> str:
    """Say what the model writes after the prompt, by way of its tokens."""
    ids = tokenize(reference, PROMPT)
    return (await engine.complete_ids(ids, adapter, {"temperature": 0, "max_new_tokens": 24})).message["content"]


@pytest.mark.parametrize("as_tokens", [False, True])
async def test_continues_a_text_as_the_model_does(engine: SGLangEngine, reference: Reference, as_tokens: bool):
    ids = tokenize(reference, PROMPT)
    answer = await engine.complete_text({**GREEDY, "prompt": ids if as_tokens else PROMPT}, "")
    assert answer.message == {"role": "assistant", "content": await expected_text(engine, reference)}
    assert answer.finish_reason == "length"
    assert answer.usage == Usage(len(ids), 24)
    assert answer.choice_logprobs is None


async def test_no_template_is_applied(engine: SGLangEngine, reference: Reference):
    rendered = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    raw = await engine.complete_text({**GREEDY, "prompt": rendered}, "")
    body = {name: value for name, value in GREEDY.items() if name != "prompt"}
    chat = await engine.complete({"messages": [{"role": "user", "content": "hello there"}], **body}, "")
    assert raw.message["content"] == chat.message["content"]
    assert raw.usage == chat.usage == Usage(len(tokenize(reference, rendered)), 24)


async def test_gets_sixteen_tokens_where_nothing_is_said(engine: SGLangEngine):
    answer = await engine.complete_text({"prompt": PROMPT, "logit_bias": {"65": 100}}, "")
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 16)


async def test_samples_where_a_request_is_silent(engine: SGLangEngine):
    answers = await asyncio.gather(*(engine.complete_text({"prompt": PROMPT, "max_tokens": 8}, "") for _ in range(6)))
    assert len({answer.message["content"] for answer in answers}) > 1


async def test_an_adapter_writes_its_own_text(engine: SGLangEngine, world: World, reference: Reference):
    await engine.load_adapter("text@1", world.adapter("one"))
    answer = await engine.complete_text(GREEDY, "text@1")
    plain = await engine.complete_text(GREEDY, "")
    assert answer.message["content"] == await expected_text(engine, reference, "text@1")
    assert answer.message["content"] != plain.message["content"]


async def test_an_adapter_that_is_not_loaded_is_missing(engine: SGLangEngine):
    with pytest.raises(AdapterMissing):
        await engine.complete_text(GREEDY, "nobody@1")
    with pytest.raises(AdapterMissing):
        await anext(engine.stream_text(GREEDY, "nobody@1"))


async def test_stops_before_a_string(engine: SGLangEngine):
    whole = (await engine.complete_text(GREEDY, "")).message["content"]
    stop = next(char for char in whole[3:] if char.isascii() and char.isprintable())
    cut = await engine.complete_text({**GREEDY, "stop": [stop, "never seen"]}, "")
    assert cut.message["content"] == whole.partition(stop)[0]
    assert cut.finish_reason == "stop"
    chunks = [json.loads(payload) async for payload in engine.stream_text({**GREEDY, "stop": stop}, "")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole.partition(stop)[0]


@pytest.mark.parametrize("as_tokens", [False, True])
async def test_echoes_the_prompt_where_asked_to(engine: SGLangEngine, reference: Reference, as_tokens: bool):
    prompt = tokenize(reference, PROMPT) if as_tokens else PROMPT
    text = (await engine.complete_text(GREEDY, "")).message["content"]
    body = {**GREEDY, "prompt": prompt, "echo": True}
    assert (await engine.complete_text(body, "")).message["content"] == PROMPT + text
    chunks = [json.loads(payload) async for payload in engine.stream_text(body, "")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == PROMPT + text


@pytest.mark.parametrize("most", [0, 3])
async def test_gives_logprobs_in_the_shape_of_this_api(engine: SGLangEngine, reference: Reference, most: int):
    ids = tokenize(reference, PROMPT)
    body = {**GREEDY, "temperature": 1.0, "top_p": 0.9, "logprobs": most}
    answer = await engine.complete_text(body, "")
    rows = answer.choice_logprobs
    assert rows is not None
    assert set(rows) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    count = answer.usage.completion_tokens
    assert [len(rows[name]) for name in ("tokens", "token_logprobs", "text_offset")] == [count] * 3
    assert len(rows["top_logprobs"]) == (count if most else 0)
    # Tokens without a text of their own share one name, so that a row can be shorter.
    assert all(1 <= len(row) <= most for row in rows["top_logprobs"])
    greedy = await engine.complete_text({**GREEDY, "logprobs": most}, "")
    again = await engine.complete_ids(ids, "", {"temperature": 0, "max_new_tokens": 24})
    expected = reference.logprobs(ids, again.token_ids)
    assert (greedy.choice_logprobs or {})["token_logprobs"] == pytest.approx(expected, abs=1e-4)


async def test_a_seed_is_accepted(engine: SGLangEngine):
    answer = await engine.complete_text({**GREEDY, "seed": 7}, "")
    assert answer.message == (await engine.complete_text(GREEDY, "")).message


async def test_streams_the_same_text(engine: SGLangEngine):
    whole = await engine.complete_text(GREEDY, "")
    body = {**GREEDY, "stream_options": {"include_usage": True}, "logprobs": 2}
    chunks = [json.loads(payload) async for payload in engine.stream_text(body, "")]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *told, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert last["usage"]["prompt_tokens"] == whole.usage.prompt_tokens
    choices = [chunk["choices"][0] for chunk in told]
    assert "".join(choice["text"] for choice in choices) == whole.message["content"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    rows = [row for choice in choices if choice["logprobs"] for row in choice["logprobs"]["token_logprobs"]]
    assert len(rows) == 24


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": "hi", "max_tokens": 0},
        {"prompt": "hi", "max_tokens": CONTEXT_TOKENS + 1},
        {"prompt": "hi", "temperature": -1},
        {"prompt": "x" * (CONTEXT_TOKENS + 1)},
        {"prompt": "hi", "logit_bias": {"1000000": 1}},
    ],
    ids=["no text", "no tokens", "no room", "max_tokens", "temperature", "too long", "logit_bias"],
)
async def test_a_bad_request_is_refused(engine: SGLangEngine, body: dict):
    with pytest.raises(EngineRefused) as refused:
        await engine.complete_text(body, "")
    assert refused.value.message
    with pytest.raises(EngineRefused):
        await anext(engine.stream_text(body, ""))
    assert await engine.ready()


@pytest.mark.parametrize("token", [-1, 1_000_000])
async def test_a_token_that_the_model_does_not_have_is_refused(engine: SGLangEngine, token: int):
    with pytest.raises(EngineRefused, match="token id of the prompt"):
        await engine.complete_text({**GREEDY, "prompt": [5, token, 6]}, "")
    with pytest.raises(EngineRefused, match="token id of the prompt"):
        await anext(engine.stream_text({**GREEDY, "prompt": [5, token, 6]}, ""))
    assert (await engine.complete_text(GREEDY, "")).message["content"]  # SGLang would be dead by now


async def test_a_model_that_generates_has_no_embeddings(engine: SGLangEngine):
    with pytest.raises(Unsupported, match="embeddings"):
        await engine.embed({"input": "hello"})
