"""Raw texts of the embedded engine, and prompts that are refused before a tokenizer sees them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from local_engine.chat import read_chat
from local_engine.completions import complete_text, read_text, stream_text
from local_engine.errors import Refused
from local_engine.models import AdapterLimits, Base
from local_engine.service import Service
from tests.fixtures.models import TARGETS

BODY = {"model": "base", "prompt": "once", "temperature": 0, "max_tokens": 12}


class Client:
    """A client that stays."""

    async def gone(self) -> None:
        await asyncio.Event().wait()


@pytest_asyncio.fixture
async def service(base: Base) -> AsyncIterator[Service]:
    limits = AdapterLimits(16, frozenset(TARGETS))
    made = Service(base, model_name="base", limits=limits, max_running=4, max_adapters=2)
    yield made
    made.stop()


async def ask(service: Service, **body: object) -> dict:
    return await complete_text(read_text({**BODY, **body}, service), service, Client())


async def stream(service: Service, **body: object) -> list[Any]:
    request = read_text({**BODY, "stream": True, **body}, service)
    sequence = service.begin(request.prompt, request.adapter, request.sampling, request.asked)
    return [chunk async for chunk in stream_text(request, sequence, service, Client())]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["one", "two"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1, 10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n must be 1"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": "other"}, "model"),
    ],
    ids=str,
)
async def test_refuses_by_name_what_it_cannot_do(service: Service, body: dict, named: str):
    with pytest.raises(Refused, match=named):
        await ask(service, **body)


async def test_an_echo_stands_before_the_text_once(service: Service):
    text = (await ask(service))["choices"][0]["text"]
    assert (await ask(service, echo=True))["choices"][0]["text"] == "once" + text
    chunks = await stream(service, echo=True, logprobs=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "once" + text
    assert chunks[0]["choices"][0]["text"].startswith("once")


async def test_a_seed_gives_the_same_text_again(service: Service):
    texts = [(await ask(service, temperature=1.0, seed=seed))["choices"][0]["text"] for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


async def test_a_bias_of_nothing_changes_nothing(service: Service):
    assert read_text({**BODY, "logit_bias": {"5": 0.0, "6": 1}}, service).sampling.logit_bias == {6: 1.0}


class _Untouched:
    """A tokenizer that must not be asked."""

    chat_template = ""

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        return messages[0]["content"]

    def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
        raise AssertionError("it was asked")


async def test_a_prompt_of_too_many_bytes_is_not_tokenised(base: Base, service: Service):
    most = base.context_tokens * base.longest_piece_bytes
    longest = max(base.tokenizer.get_vocab(), key=len)
    fits = longest * (base.context_tokens - 20)
    assert len(fits) <= most
    assert len(read_text({**BODY, "prompt": fits}, service).prompt) == base.context_tokens - 20
    service.base = replace(base, tokenizer=_Untouched())  # pyright: ignore[reportArgumentType]
    for text in ("x" * (most + 1), "é" * (most // 2 + 1)):
        with pytest.raises(Refused, match=f"over {most} bytes"):
            read_text({**BODY, "prompt": text}, service)
        with pytest.raises(Refused, match=f"over {most} bytes"):
            read_chat({"model": "base", "messages": [{"role": "user", "content": text}]}, service)
    with pytest.raises(AssertionError, match="asked"):
        read_text({**BODY, "prompt": "x" * most}, service)
