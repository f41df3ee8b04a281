"""What the client sends, and what it makes of replies and of connections that go wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.domain import Usage
from server.engine.sglang import SGLangEngine
from server.errors import (
    AdapterMissing,
    AdapterRefused,
    EngineBroken,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    Unsupported,
)
from tests.component.engine.wire_server import Answer, read_request, reply, serve, serve_replies

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "seed": None}


def chat(**choice: object) -> bytes:
    message = {"role": "assistant", "content": "ho", "reasoning_content": None}
    filled = {"index": 0, "message": message, "finish_reason": "stop", "matched_stop": 7, **choice}
    return reply(json.dumps({"choices": [filled], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode())


@asynccontextmanager
async def engine_at(answer: Answer, timeout_s: float = 5.0) -> AsyncIterator[SGLangEngine]:
    async with serve(answer) as url:
        engine = SGLangEngine(url, timeout_s=timeout_s)
        yield engine
        await engine.close()


@asynccontextmanager
async def engine_with(replies: dict[str, bytes]) -> AsyncIterator[tuple[SGLangEngine, list[tuple[str, bytes]]]]:
    async with serve_replies(replies) as (url, seen):
        engine = SGLangEngine(url, timeout_s=5.0)
        yield engine, seen
        await engine.close()


async def test_sends_every_sampling_parameter():
    async with engine_with({CHAT: chat()}) as (engine, seen):
        await engine.complete({**BODY, "temperature": 0.5}, "sql@1")
    ((_, raw),) = seen
    sent = json.loads(raw)
    assert sent.pop("rid")
    assert sent == {
        "messages": BODY["messages"],
        "model": "base:sql@1",
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }


async def test_continuing_sends_the_tokens_and_every_sampling_parameter():
    info = {
        "prompt_tokens": 2,
        "completion_tokens": 1,
        "finish_reason": {"type": "stop", "matched": 9},
        "output_token_logprobs": [[-0.5, 9, None]],
    }
    generated = reply(json.dumps({"text": "", "output_ids": [9], "meta_info": info}).encode())
    async with engine_with({"/generate": generated}) as (engine, seen):
        answer = await engine.complete_ids([4, 5], "sql@1", {"max_new_tokens": 6, "top_p": None})
    sent = json.loads(seen[0][1])
    assert (sent["input_ids"], sent["lora_path"], sent["return_logprob"]) == ([4, 5], "sql@1", True)
    assert sent["sampling_params"]["max_new_tokens"] == 6
    assert sent["sampling_params"]["top_p"] == 1.0
    assert (list(answer.token_ids), list(answer.logprobs), answer.finish_reason) == ([9], [-0.5], "stop")


def completion(**choice: object) -> bytes:
    filled = {"index": 0, "text": "ho", "logprobs": None, "finish_reason": "stop", "matched_stop": 7, **choice}
    return reply(json.dumps({"choices": [filled], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode())


async def test_a_raw_text_is_sent_with_every_sampling_parameter():
    rows = {"tokens": ["ho"], "token_logprobs": [-0.5], "top_logprobs": [], "text_offset": [-1]}
    async with engine_with({TEXT: completion(logprobs=rows)}) as (engine, seen):
        answer = await engine.complete_text({"prompt": "hi", "temperature": 0.5, "logprobs": 0, "seed": None}, "sql@1")
    sent = json.loads(seen[0][1])
    assert sent.pop("rid")
    assert sent == {
        "prompt": "hi",
        "logprobs": 0,
        "model": "base:sql@1",
        "max_tokens": 16,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
    assert answer.message == {"role": "assistant", "content": "ho"}
    assert (answer.finish_reason, answer.usage, answer.choice_logprobs) == ("stop", Usage(3, 2), rows)


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_engine_is_made_to_check_the_ids_of_a_prompt(streamed: bool):
    refusal = b'{"message": "logit_bias must has keys in [0, 270], got 99999."}'
    async with engine_with({TEXT: reply(refusal, 400)}) as (engine, seen):
        body = {"prompt": [5, 99999, 3], "logit_bias": {"5": 1.5, "3": 2.0}}
        asking = anext(engine.stream_text(body, "")) if streamed else engine.complete_text(body, "")
        with pytest.raises(EngineRefused, match="token id of the prompt"):
            await asking
    assert json.loads(seen[0][1])["logit_bias"] == {"3": 2.0, "99999": 0.0, "5": 1.5}
    assert body["logit_bias"] == {"5": 1.5, "3": 2.0}


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (completion(finish_reason="abort"), EngineBroken),
        (completion(text=None), EngineBroken),
        (reply(b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'), EngineBroken),
        (reply(b'{"message": "Got LoRA adapter that has never been loaded: sql@1"}', 400), AdapterMissing),
        (reply(b'{"message": "Prompt cannot be empty"}', 400), EngineRefused),
    ],
)
async def test_replies_that_are_no_text(raw: bytes, error: type[Exception]):
    async with engine_with({TEXT: raw}) as (engine, _):
        with pytest.raises(error):
            await engine.complete_text({"prompt": "hi"}, "sql@1")


async def test_embeddings_pass_through():
    vectors = b'{"object":"list", "data": [{"embedding": [0.5]}]}'
    async with engine_with({"/v1/embeddings": reply(vectors)}) as (engine, seen):
        assert await engine.embed({"input": ["hi"], "dimensions": None}) == vectors
    assert json.loads(seen[0][1]) == {"model": "base", "input": ["hi"]}


@pytest.mark.parametrize("tokens", [[1, 2], [[1], [2]], ["hi", 1]])
async def test_token_ids_are_never_embedded(tokens: list):
    async with engine_with({}) as (engine, seen):
        with pytest.raises(Unsupported) as refused:
            await engine.embed({"input": tokens})
    assert (refused.value.param, seen) == ("input", [])


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (reply(b'{"message": "no POST /v1/embeddings"}', 404), Unsupported),
        (reply(b'{"message": "This model does not appear to be an embedding model by default."}', 400), Unsupported),
        (reply(b'{"message": "Input cannot be empty"}', 400), EngineRefused),
        (reply(b"", 500), EngineBroken),
        (reply(b"", 503), EngineUnavailable),
    ],
)
async def test_replies_that_are_no_embeddings(raw: bytes, error: type[Exception]):
    async with engine_with({"/v1/embeddings": raw}) as (engine, _):
        with pytest.raises(error):
            await engine.embed({"input": "hi"})


async def test_thoughts_pass_through():
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "tool_calls": None}
    async with engine_with({CHAT: chat(message=message)}) as (engine, _):
        answer = await engine.complete(BODY, "")
    assert answer.message == {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}


async def test_images_pass_untouched():
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
    ]
    messages = [{"role": "user", "content": parts}]
    async with engine_with({CHAT: chat()}) as (engine, seen):
        await engine.complete({"messages": messages}, "")
    assert json.loads(seen[0][1])["messages"] == messages


async def test_gets_back_the_text_of_a_call_that_the_engine_dropped():
    raw = 'Sure. <tool_call>\n{"name": "f", "arguments": {\n</tool_call>'
    dropped = chat(message={"role": "assistant", "content": "Sure."}, response_token_ids=[1, 2, 3, 7])
    replies = {CHAT: dropped, "/detokenize": reply(json.dumps({"text": raw}).encode())}
    async with engine_with(replies) as (engine, seen):
        answer = await engine.complete({**BODY, "tools": [{"type": "function"}]}, "")
        plain = await engine.complete({**BODY, "tools": [{"type": "function"}], "tool_choice": "none"}, "")
    assert answer.message["content"] == raw
    assert answer.token_ids == ()
    assert json.loads(seen[1][1]) == {"tokens": [1, 2, 3], "skip_special_tokens": False}
    assert plain.message["content"] == "Sure."


async def test_a_name_that_was_unloaded_is_not_sent_again():
    done = reply(b'{"success": true, "error_message": "", "loaded_adapters": {}}')
    replies = {CHAT: chat(), "/unload_lora_adapter": done, "/load_lora_adapter": done}
    async with engine_with(replies) as (engine, seen):
        await engine.unload_adapter("sql@1")
        with pytest.raises(AdapterMissing):
            await engine.complete(BODY, "sql@1")
        with pytest.raises(AdapterMissing):
            await anext(engine.stream(BODY, "sql@1"))
        with pytest.raises(AdapterMissing):
            await engine.complete_text({"prompt": "hi"}, "sql@1")
        with pytest.raises(AdapterMissing):
            await anext(engine.stream_text({"prompt": "hi"}, "sql@1"))
        assert [path for path, _ in seen] == ["/unload_lora_adapter"]
        await engine.load_adapter("sql@1", "/somewhere")
        assert (await engine.complete(BODY, "sql@1")).message["content"] == "ho"


async def test_refusals_of_adapters():
    refused = reply(b'{"success": false, "error_message": "rank 32 is too much", "loaded_adapters": {}}', 400)
    absent = reply(
        b'{"success": false, "error_message": "LoRA with name x does not exist.", "loaded_adapters": null}', 400
    )
    async with engine_with({"/load_lora_adapter": refused, "/unload_lora_adapter": absent}) as (engine, _):
        with pytest.raises(AdapterRefused, match="rank 32"):
            await engine.load_adapter("sql@1", "/somewhere")
        await engine.unload_adapter("sql@1")
    async with engine_with({"/unload_lora_adapter": refused}) as (engine, _):
        with pytest.raises(AdapterRefused):
            await engine.unload_adapter("sql@1")


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (reply(b'{"object": "error", "message": "no"}', 400), EngineRefused),
        (reply(b'{"message": "Got LoRA adapter that has never been loaded: sql@1"}', 400), AdapterMissing),
        (reply(b"<html>", 400), EngineRefused),
        (reply(b"oops", 500), EngineBroken),
        (reply(b"{}", 404), EngineBroken),
        (reply(b"", 503), EngineUnavailable),
        (reply(b"not json"), EngineBroken),
        (reply(b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'), EngineBroken),
        (reply(b'{"choices": "many"}'), EngineBroken),
        (chat(finish_reason="abort"), EngineBroken),
        (chat(response_token_ids=[1, 2], prompt_token_ids=[1]), EngineBroken),
    ],
)
async def test_replies_that_are_no_answers(raw: bytes, error: type[Exception]):
    async with engine_with({CHAT: raw}) as (engine, _):
        with pytest.raises(error):
            await engine.complete(BODY, "sql@1", with_tokens=True)


async def test_an_engine_that_is_down():
    async with serve_replies({}) as (url, _):
        pass
    engine = SGLangEngine(url)
    assert not await engine.ready()
    for call in (
        engine.complete(BODY, ""),
        engine.state(),
        engine.load_adapter("a", "b"),
        anext(engine.stream(BODY, "")),
        engine.complete_text({"prompt": "hi"}, ""),
        anext(engine.stream_text({"prompt": "hi"}, "")),
        engine.embed({"input": "hi"}),
    ):
        with pytest.raises(EngineUnavailable):
            await call
    await engine.close()


async def _reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()


@pytest.mark.parametrize("answer", [_reset, _cut])
async def test_a_connection_that_breaks(answer: Answer):
    async with engine_at(answer) as engine:
        with pytest.raises(EngineUnavailable):
            await engine.complete(BODY, "")


@pytest.mark.parametrize("with_head", [False, True])
async def test_silence_is_a_timeout_and_aborts(with_head: bool):
    aborted: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, body = await read_request(reader)
        if path == "/abort_request":
            aborted.append(json.loads(body)["rid"])
            writer.write(reply(b"{}"))
            return
        if with_head:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await asyncio.sleep(30)

    async with engine_at(answer, timeout_s=0.1) as engine:
        with pytest.raises(EngineTimeout):
            await engine.complete(BODY, "")
    assert len(aborted) == 1


@pytest.mark.parametrize("how", ["complete", "stream", "complete_text", "stream_text"])
async def test_cancelling_aborts_on_the_engine(how: str):
    sent: list[str] = []
    aborted: list[str] = []
    begun = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, body = await read_request(reader)
        if path == "/abort_request":
            aborted.append(json.loads(body)["rid"])
            writer.write(reply(b"{}"))
            return
        sent.append(json.loads(body)["rid"])
        begun.set()
        await asyncio.sleep(30)

    async def ask(engine: SGLangEngine) -> None:
        match how:
            case "complete":
                await engine.complete(BODY, "")
            case "stream":
                await anext(engine.stream(BODY, ""))
            case "complete_text":
                await engine.complete_text({"prompt": "hi"}, "")
            case "stream_text":
                await anext(engine.stream_text({"prompt": "hi"}, ""))

    async with engine_at(answer) as engine:
        task = asyncio.create_task(ask(engine))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert aborted == sent


async def test_streams_payloads_untouched_however_they_are_cut():
    payloads = [b'{"choices": [1]}', '{"é": "data: [DONE]"}'.encode(), b"{}"]
    raw = b": comment\n\n" + b"".join(b"data: " + payload + b"\n\n" for payload in payloads) + b"data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for start in range(0, len(raw), 7):
            writer.write(raw[start : start + 7])
            await writer.drain()
            await asyncio.sleep(0)

    async with engine_at(answer) as engine:
        assert [payload async for payload in engine.stream(BODY, "")] == payloads
        assert [payload async for payload in engine.stream_text({"prompt": "hi"}, "")] == payloads


async def test_a_stream_that_ends_early_is_broken():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n")
        await writer.drain()

    async with engine_at(answer) as engine:
        stream = engine.stream(BODY, "")
        assert await anext(stream) == b"{}"
        with pytest.raises((EngineBroken, EngineUnavailable)):
            await anext(stream)


async def test_leaving_a_stream_aborts_it():
    aborted: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, body = await read_request(reader)
        if path == "/abort_request":
            aborted.append(json.loads(body)["rid"])
            writer.write(reply(b"{}"))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n")
        await writer.drain()
        await asyncio.sleep(30)

    async with engine_at(answer) as engine:
        stream = engine.stream(BODY, "")
        assert await anext(stream) == b"{}"
        await stream.aclose()
    assert len(aborted) == 1


async def test_reads_what_is_served():
    models = {"data": [{"id": "base", "root": "base", "parent": None}, {"id": "a@1", "root": "/a", "parent": "base"}]}
    replies = {"/model_info": reply(b'{"model_path": "/m"}'), "/v1/models": reply(json.dumps(models).encode())}
    async with engine_with(replies) as (engine, _):
        state = await engine.state()
    assert (state.base_model, state.adapters, state.images) == ("/m", {"a@1": "/a"}, False)
    replies["/model_info"] = reply(b'{"model_path": "/m", "has_image_understanding": true}')
    async with engine_with(replies) as (engine, _):
        assert (await engine.state()).images


async def test_a_read_is_repeated_once_on_a_stale_connection():
    dead: set[str] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _ = await read_request(reader)
            if path not in dead:
                dead.add(path)
                writer.transport.abort()
                return
            writer.write(reply(b'{"model_path": "/m"}' if path == "/model_info" else b'{"data": []}'))
            await writer.drain()

    async with engine_at(answer) as engine:
        assert (await engine.state()).base_model == "/m"


@pytest.mark.parametrize("loaded", [True, False])
async def test_an_adapters_move_whose_connection_breaks_is_looked_up_or_done_again(loaded: bool):
    done = reply(b'{"success": true, "error_message": ""}')
    card = {"id": "a@1", "root": "/a", "parent": "base"}
    models = json.dumps({"data": [card] if loaded else []}).encode()
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _ = await read_request(reader)
            asked.append(path)
            if path == "/load_lora_adapter" or asked.count("/unload_lora_adapter") == 1:
                writer.transport.abort()
                return
            bodies = {"/model_info": reply(b'{"model_path": "/m"}'), "/v1/models": reply(models)}
            writer.write(bodies.get(path, done))
            await writer.drain()

    async with engine_at(answer) as engine:
        if loaded:
            await engine.load_adapter("a@1", "/a")
        else:
            with pytest.raises(EngineUnavailable):
                await engine.load_adapter("a@1", "/a")
        assert asked.count("/load_lora_adapter") == 1
        await engine.unload_adapter("a@1")
        assert asked.count("/unload_lora_adapter") == 2


async def test_a_name_that_another_process_loaded_again_is_sent_again():
    done = reply(b'{"success": true, "error_message": ""}')
    gone, back = b'{"data": []}', b'{"data": [{"id": "a@1", "root": "/a", "parent": "base"}]}'
    replies = {
        CHAT: chat(),
        "/unload_lora_adapter": done,
        "/model_info": reply(b'{"model_path": "/m"}'),
        "/v1/models": reply(gone),
    }
    async with engine_with(replies) as (engine, _):
        await engine.unload_adapter("a@1")
        await engine.state()
        with pytest.raises(AdapterMissing):
            await engine.complete(BODY, "a@1")
        replies["/v1/models"] = reply(back)
        await engine.state()
        await engine.complete(BODY, "a@1")
