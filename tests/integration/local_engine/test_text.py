"""Text that grows, is held back, and stops."""

import pytest

from local_engine.models import Base
from local_engine.sampling import Sampling
from local_engine.sequences import Finish, Sequence
from local_engine.text import GrowingText, HeldText, TokenTexts, final_text, find_stop
from local_engine.tool_calls import parse_tool_calls


def encode(base: Base, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_characters_come_whole(base: Base):
    tokens = encode(base, "naïve 日本 🎈!")
    text = GrowingText(base.tokenizer, skip_special_tokens=True)
    parts = [text.push([token]) for token in tokens]
    assert "".join(parts) == "naïve 日本 🎈!"
    assert all("\ufffd" not in part for part in parts)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_marks_are_held_back_and_nothing_else_is_lost(step: int):
    whole = "a<b <tool <tool_calls> c <tool_call>\n{}"
    held, out = HeldText(["<tool_call>\n", "###"]), ""
    for start in range(0, len(whole), step):
        out += held.push(whole[start : start + step])
    assert out == "a<b <tool <tool_calls> c "
    assert held.found


def test_what_only_seemed_to_begin_a_mark_comes_out():
    held = HeldText(["STOP"])
    assert held.push("xST") == "x"
    assert held.push("E") == "STE"
    assert held.push("S") == ""
    assert held.push("o") == "So"


@pytest.mark.parametrize(
    ("text", "found"),
    [("hello w", "o w"), ("hello ", None), ("hello x", None), ("o w", "o w"), ("zz", "zz"), ("", None)],
)
def test_finds_a_stop_at_the_end(base: Base, text: str, found: str | None):
    assert find_stop(base.tokenizer, encode(base, text), Sampling(stop=("zz", "o w"))) == found


def finished(base: Base, text: str, finish: Finish, **sampling) -> str:
    end = [next(iter(base.eos_ids))] if isinstance(finish.matched, int) else []
    tokens = encode(base, text) + end
    drawn = Sampling(**sampling)
    sequence = Sequence(id="s", prompt=[1], adapter="", sampling=drawn, limit=99, tokens=tokens, finish=finish)
    return final_text(base.tokenizer, sequence)


def test_the_answer_is_without_what_stopped_it(base: Base):
    assert finished(base, "one two", Finish("stop", 258)) == "one two"
    assert finished(base, "one two", Finish("stop", 258), skip_special_tokens=False) == "one two"
    assert finished(base, "one STOP two", Finish("stop", "STOP"), stop=("STOP",)) == "one "
    assert finished(base, "one STOP", Finish("stop", "STOP"), stop=("STOP",), no_stop_trim=True) == "one STOP"
    assert finished(base, "one", Finish("length")) == "one"


def test_tokens_have_text_and_bytes(base: Base):
    texts = TokenTexts(base.tokenizer)
    token = encode(base, "日")[0]
    assert texts.bytes(token) == [0xE6]
    assert bytes(byte for token in encode(base, "日 é") for byte in texts.bytes(token)).decode() == "日 é"
    mark = base.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert (texts.text(mark), bytes(texts.bytes(mark))) == ("<tool_call>", b"<tool_call>")


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_reads_calls_out_of_an_answer():
    text, calls = parse_tool_calls(
        "Well. " + call('{"name": "a", "arguments": {"x": "é"}}') + "\n" + call('{"name": "b", "parameters": {}}')
    )
    assert text == "Well."
    assert [c["function"] for c in calls] == [
        {"name": "a", "arguments": '{"x": "é"}'},
        {"name": "b", "arguments": "{}"},
    ]
    assert [c["index"] for c in calls] == [0, 1]
    assert len({c["id"] for c in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<tool_call>",
        call('{"name": "a", "arguments": {'),
        call("[1, 2]"),
        call("7"),
        call('{"arguments": {}}'),
        call('{"name": 3}'),
        '<tool_call>\n{"name": "a", "arguments": {}}',
    ],
)
def test_what_is_no_call_stays_text(text: str):
    assert parse_tool_calls(text) == (text, [])
