"""What every engine's failures become."""

import asyncio

import pytest

from server.engine.sglang import SGLangEngine
from server.errors import EngineRefused, EngineTimeout
from tests.contract.engine.conftest import CONTEXT_TOKENS

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HELLO, "temperature": -1},
        {"messages": HELLO, "top_p": 0},
        {"messages": HELLO, "max_tokens": CONTEXT_TOKENS + 1},
        {"messages": [{"role": "user", "content": "x" * (CONTEXT_TOKENS + 1)}], "max_tokens": 1},
        {"messages": []},
        {"messages": [{"role": "user", "content": "x" * (CONTEXT_TOKENS - 100)}], "max_tokens": 200},
    ],
    ids=["temperature", "top_p", "max_tokens", "prompt", "no messages", "prompt and answer"],
)
async def test_a_bad_request_is_refused(engine: SGLangEngine, body: dict):
    with pytest.raises(EngineRefused) as refused:
        await engine.complete(body, "")
    assert refused.value.message
    with pytest.raises(EngineRefused):
        await anext(engine.stream(body, ""))
    assert await engine.ready()


async def test_a_broken_call_history_is_refused(engine: SGLangEngine):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"x": '}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(EngineRefused, match="JSON"):
        await engine.complete({"messages": messages, "max_tokens": 2}, "")


async def test_tokens_that_are_none_are_refused(engine: SGLangEngine):
    with pytest.raises(EngineRefused):
        await engine.complete_ids([], "", {"max_new_tokens": 2})
    with pytest.raises(EngineRefused):
        await engine.complete_ids([1, 2], "", {"max_new_tokens": 2, "no such parameter": 1})


async def test_what_takes_too_long_times_out_and_is_aborted(engine_url: str, engine: SGLangEngine):
    hasty = SGLangEngine(engine_url, timeout_s=1.0)
    body = {"messages": HELLO, "max_tokens": CONTEXT_TOKENS - 200, "ignore_eos": True}
    with pytest.raises(EngineTimeout):
        await asyncio.gather(*(hasty.complete(body, "") for _ in range(4)))
    await hasty.close()
    assert await engine.ready()
