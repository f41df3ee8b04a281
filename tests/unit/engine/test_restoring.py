"""Streams whose tool calls could not be read."""

import json
from collections.abc import AsyncGenerator, Sequence

import pytest

from server.engine.restoring import find_content, restore_stream
from server.errors import EngineBroken

CALL = '<tool_call>\n{"name": "f", "arguments": {\n</tool_call>'


def chunk(delta: dict, reason: str | None = None, stop: int | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "matched_stop": stop}
    return json.dumps({"id": "1", "object": "chat.completion.chunk", "choices": [choice]}).encode()


FIRST = chunk({"role": "assistant", "content": "", "tool_calls": None})
TEXT = chunk({"content": "Sure. ", "reasoning_content": None})
CALLED = chunk({"content": None, "tool_calls": [{"index": 0, "function": {"name": "f"}}]})
LAST = chunk({}, "stop", 7)
TOKENS = b'{"id": "1", "choices": [], "sglext": {"output_ids": [[1, 2, 7]]}}'
USAGE = b'{"id": "1", "choices": [], "usage": {"prompt_tokens": 1}}'


async def give(payloads: Sequence[bytes | Exception]) -> AsyncGenerator[bytes, None]:
    for payload in payloads:
        if isinstance(payload, Exception):
            raise payload
        yield payload


class Engine:
    """Turns any tokens into one text, and notes what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[tuple] = []

    async def restore(self, tokens: Sequence[int], stop: int | str | None, content: str, thoughts: str) -> str:
        self.asked.append((list(tokens), stop, content, thoughts))
        return find_content(self.text, content, thoughts)


async def test_what_was_dropped_comes_before_the_last_chunk():
    engine = Engine(f"Sure. {CALL}")
    got = [part async for part in restore_stream(give([FIRST, TEXT, LAST, TOKENS, USAGE]), engine.restore)]
    assert [*got[:2], *got[3:]] == [FIRST, TEXT, LAST, USAGE]
    added = json.loads(got[2])
    assert added["id"] == "1"
    assert added["choices"] == [
        {"index": 0, "delta": {"content": CALL}, "logprobs": None, "finish_reason": None, "matched_stop": None}
    ]
    assert engine.asked == [([1, 2, 7], 7, "Sure. ", "")]


@pytest.mark.parametrize(
    "payloads",
    [
        [FIRST, TEXT, LAST, TOKENS],
        [FIRST, CALLED, LAST, TOKENS, USAGE],
        [FIRST, TEXT, LAST],
        [FIRST, TEXT, LAST, USAGE],
        [FIRST, TEXT],
        [b'{"error": {"message": "it broke"}}'],
        [b"no json", b'{"choices": "none"}', TEXT],
    ],
    ids=["nothing dropped", "called", "no tokens", "no tokens but usage", "no end", "error", "unknown"],
)
async def test_everything_else_passes_untouched(payloads: list[bytes]):
    engine = Engine("Sure. ")
    got = [part async for part in restore_stream(give(payloads), engine.restore)]
    assert got == [payload for payload in payloads if payload is not TOKENS]


async def test_a_text_that_is_another_one_is_not_guessed_at():
    engine = Engine("Something altogether different")
    got = [part async for part in restore_stream(give([TEXT, LAST, TOKENS]), engine.restore)]
    assert got == [TEXT, LAST]


async def test_errors_and_leaving_reach_the_stream_beneath():
    closed = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield TEXT
            raise EngineBroken("it ended early")
        finally:
            closed.append(True)

    stream = restore_stream(events(), Engine("").restore)
    assert await anext(stream) == TEXT
    await stream.aclose()
    assert closed == [True]
    with pytest.raises(EngineBroken):
        [part async for part in restore_stream(events(), Engine("").restore)]


@pytest.mark.parametrize(
    ("text", "content", "thoughts", "whole"),
    [
        (f"Sure. {CALL}", "Sure.", "", f"Sure. {CALL}"),
        (" Sure.\n", "Sure.", "", "Sure."),
        ("<think>\nhm\n</think>\n\nFour.", "Four.", "hm", "Four."),
        ("<think>\nhm\n</think>\n\nFour.", "Four.", "\nhm\n", "Four."),
        ("hm</think>Four.", "Four.", "hm", "Four."),
        (f"<think>\nhm\n</think>\n\nSo. {CALL}", "So.", "hm", f"So. {CALL}"),
        (f"<think>\nhm\n</think>\n\n{CALL}", "", "hm", CALL),
        ("[THINK]hm[/THINK]Four.", "Four.", "hm", "Four."),
        (f"<think>\nhm\n</think>\n\n{CALL}", "", "something else", ""),
        ("<think>\nhm", "", "hm", ""),
    ],
)
def test_the_thoughts_are_no_content(text: str, content: str, thoughts: str, whole: str):
    assert find_content(text, content, thoughts) == whole
