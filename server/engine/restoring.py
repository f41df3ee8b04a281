"""Gives back the text of tool calls that SGLang could not read: its parsers drop it, in whole answers and in streams.

A verifier, a reflection and the client have to see what the model wrote. Whole answers bring their token ids along;
a stream brings them in an event of its own just before its end, when SGLang is asked to (`ASK_FOR_TOKENS`). The tokens
are turned into text by the engine itself. Only `server.engine.sglang` calls this, and only where tools are offered:
streams without tools are never looked into.

What cannot be mended, because a call has been streamed already: a call that is cut off after its name stays a call,
with arguments that are not JSON; and SGLang loses a call that comes in the same piece of a stream as the one before.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

ASK_FOR_TOKENS = "return_output_ids_in_sglext"

_END_OF_THOUGHTS = re.compile(r"\s*(</\w+>|\[/\w+\])?\s*")

Restore = Callable[[Sequence[int], int | str | None, str, str], Awaitable[str]]
"""Takes an answer's tokens, what stopped it, its content and its thoughts; gives the whole content."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None
    matched_stop: int | str | None = None


class _Tokens(msgspec.Struct):
    output_ids: list[list[int]] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    sglext: _Tokens | None = None


_read_chunk = msgspec.json.Decoder(_Chunk).decode


def find_content(text: str, content: str, thoughts: str) -> str:
    """Find the whole content in all that was written: without the thoughts, with the calls that were dropped."""
    if thoughts:
        _, found, text = text.partition(thoughts.strip())
        text = text[_END_OF_THOUGHTS.match(text).end() :] if found else ""  # pyright: ignore[reportOptionalMemberAccess]
    return text if len(text.strip()) > len(content.strip()) else content


async def restore_stream(events: AsyncGenerator[bytes, None], restore: Restore) -> AsyncGenerator[bytes, None]:
    """Give the payloads of a stream, with what its parser dropped as one more delta before the last chunk.

    Everything else passes untouched; the event with the tokens is taken out.
    """
    content, thoughts = "", ""
    called = False
    last: bytes | None = None  # the chunk with the finish reason, held until the tokens are there
    stop: int | str | None = None
    async with aclosing(events):
        async for payload in events:
            try:
                chunk = _read_chunk(payload)
            except msgspec.MsgspecError:
                yield payload  # whatever it is, it is not ours to judge
                continue
            if chunk.sglext is not None and chunk.sglext.output_ids:
                if last is not None and not called:
                    whole = await restore(chunk.sglext.output_ids[0], stop, content, thoughts)
                    if whole.startswith(content) and len(whole) > len(content):
                        yield _with_content(last, whole[len(content) :])
                continue
            for choice in chunk.choices:
                content += choice.delta.content or ""
                thoughts += choice.delta.reasoning_content or ""
                called = called or bool(choice.delta.tool_calls)
                if choice.finish_reason is not None:
                    last, stop = payload, choice.matched_stop
            if last is payload:
                continue
            if last is not None:
                yield last
                last = None
            yield payload
    if last is not None:
        yield last


def _with_content(last: bytes, content: str) -> bytes:
    chunk: dict[str, Any] = msgspec.json.decode(last)
    choice = {**chunk["choices"][0], "delta": {"content": content}, "finish_reason": None, "matched_stop": None}
    return msgspec.json.encode({**chunk, "choices": [{**choice, "logprobs": None}]})
