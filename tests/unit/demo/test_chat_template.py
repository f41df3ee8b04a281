"""The chat template renders tools as the server does, and takes what OpenAI clients and engines pass."""

import json
import random
from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import demo
from demo.corpus import draw_example
from demo.example import render_turns
from server.orchestration.reflection import render_tool

CALL = {"name": "book_car", "arguments": {"city": "Kolma", "days": 3}}
WRITTEN = '<tool_call>\n{"name": "book_car", "arguments": {"city": "Kolma", "days": 3}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "book_car",
        "description": "Book a car.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "size": {"type": "string", "enum": ["small", "large"]},
                "stops": {"type": "array", "items": {"type": "string"}},
                "driver": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
            },
            "required": ["city", "driver"],
        },
    },
}


@pytest.fixture(scope="module")
def template():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.Undefined)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string((Path(demo.__file__).parent / "chat_template.jinja").read_text())


def user(content="Hi"):
    return {"role": "user", "content": content}


def test_corpus_and_template_agree(template):
    rng = random.Random(1)
    for _ in range(200):
        example = draw_example(rng)
        expected = "".join(f"<|{role}|>{text}<|end|>" for role, text in render_turns(example))
        assert template.render(messages=example.messages, tools=list(example.tools) or None) == expected


@pytest.mark.parametrize("tool", [TOOL, TOOL["function"]], ids=["wrapped", "bare"])
def test_tools_are_rendered_as_the_server_renders_them(template, tool):
    text = template.render(messages=[user()], tools=[tool, tool], add_generation_prompt=True)
    line = render_tool(TOOL)
    assert text == f"<|system|>Tools:\n{line}\n{line}<|end|><|user|>Hi<|end|><|assistant|>"


def test_a_tool_without_parameters(template):
    text = template.render(messages=[user()], tools=[{"type": "function", "function": {"name": "ping"}}])
    assert text.startswith("<|system|>Tools:\nping()<|end|>")


def test_a_system_message_follows_the_tools(template):
    messages = [{"role": "system", "content": "Be brief."}, user()]
    assert template.render(messages=messages) == "<|system|>Be brief.<|end|><|user|>Hi<|end|>"
    with_tools = template.render(messages=messages, tools=[TOOL])
    assert with_tools.startswith(f"<|system|>Tools:\n{render_tool(TOOL)}\n\nBe brief.<|end|><|user|>")


@pytest.mark.parametrize("arguments", [CALL["arguments"], '{"city": "Kolma", "days": 3}'], ids=["dict", "string"])
@pytest.mark.parametrize("content", [None, "", "Sure."])
def test_calls_in_the_history_are_written_as_the_model_writes_them(template, arguments, content):
    call = {"id": "1", "type": "function", "function": {"name": "book_car", "arguments": arguments}}
    answer = {"role": "assistant", "content": content, "tool_calls": [call]}
    text = template.render(messages=[user(), answer, {"role": "tool", "content": "done"}])
    before = f"{content}\n" if content else ""
    assert text == f"<|user|>Hi<|end|><|assistant|>{before}{WRITTEN}<|end|><|tool|>done<|end|>"


def test_content_may_be_parts(template):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert template.render(messages=[user(parts)]) == "<|user|>Hello<|end|>"
