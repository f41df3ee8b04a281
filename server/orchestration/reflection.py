"""Renders the two prompts of the loop: the one that asks for a reflection and the one that asks for the retry.

Called by the episode loop and, through it, by training and by the demo's corpus: what is trained on is exactly what
is served. Pure text in, text out; it must never call an engine or look at a verdict's hidden parts.

The shape follows "Reflect, Retry, Reward" (arXiv 2505.24726): the failed attempt and the bare verdict go back to the
model, it reflects, and it retries with only that reflection in context. The wording is our own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

REFLECT = "Your answer did not pass the check. Reflect on what went wrong, briefly, so that your next answer is right."
RETRY = "Now answer the original request again."
NO_ANSWER = "(no answer)"


@dataclass(frozen=True)
class Prompts:
    """The wording of one task. `reflect` and `retry` are plain text, appended as user messages."""

    reflect: str = REFLECT
    retry: str = RETRY


def render_attempt(answer: Message) -> str:
    """Render a failed answer as text, its tool calls included.

    Engines refuse a malformed call in the history, and a failed call is often malformed, so it is shown as text.
    """
    parts = [answer.get("content") or ""]
    for call in answer.get("tool_calls") or []:
        function = call["function"]
        parts.append(f'Tool call: {{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}')
    return "\n".join(part for part in parts if part) or NO_ANSWER


def _render_type(schema: Mapping[str, Any]) -> str:
    """Render a JSON schema as a short TypeScript-like type; what has no short form stays JSON."""
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"{_render_type(schema['items'])}[]"
    if kind == "object" and isinstance(schema.get("properties"), Mapping):
        return "{" + _render_fields(schema) + "}"
    return kind if isinstance(kind, str) else json.dumps(schema)


def _render_fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required") or []
    fields = (schema.get("properties") or {}).items()
    return ", ".join(f"{name}{'' if name in required else '?'}: {_render_type(field)}" for name, field in fields)


def render_tool(tool: Tool) -> str:
    """Render one OpenAI tool as `name(a: string, b?: integer) - description`."""
    function = tool.get("function", tool)
    description = function.get("description")
    signature = f"{function['name']}({_render_fields(function.get('parameters') or {})})"
    return f"{signature} - {description}" if description else signature


def _reflect_text(prompts: Prompts, reason: str | None) -> str:
    return f"{prompts.reflect}\nReason: {reason}" if reason else prompts.reflect


def reflection_messages(
    messages: Sequence[Message], tools: Sequence[Tool], failed: Message, prompts: Prompts, reason: str | None = None
) -> list[dict[str, Any]]:
    """Build the conversation whose next assistant turn is the reflection.

    Tools travel as text in the last message: the reflection is sampled without `tools`, so that no tool parser and no
    grammar touches it. `reason` is what the verifier said, and only where the task shows it.
    """
    ask = _reflect_text(prompts, reason)
    if tools:
        ask = "\n".join([ask, "Tools:", *(render_tool(tool) for tool in tools)])
    return [
        *(dict(message) for message in messages),
        {"role": "assistant", "content": render_attempt(failed)},
        {"role": "user", "content": ask},
    ]


def retry_messages(
    messages: Sequence[Message], failed: Message, reflection: str, prompts: Prompts, reason: str | None = None
) -> list[dict[str, Any]]:
    """Build the conversation whose next assistant turn is the retry. Sampled with the request's own `tools`."""
    return [
        *(dict(message) for message in messages),
        {"role": "assistant", "content": render_attempt(failed)},
        {"role": "user", "content": _reflect_text(prompts, reason)},
        {"role": "assistant", "content": reflection or NO_ANSWER},
        {"role": "user", "content": prompts.retry},
    ]


@lru_cache(maxsize=256)
def hash_prompts(prompts: Prompts) -> str:
    """Hash what both templates render around placeholders: equal hashes mean prompts of equal wording and shape."""
    request = [{"role": "user", "content": "<request>"}]
    failed = {"content": "<answer>", "tool_calls": [{"function": {"name": "<tool>", "arguments": "<arguments>"}}]}
    tool = {"function": {"name": "<tool>", "description": "<description>", "parameters": {"properties": {"<a>": {}}}}}
    rendered = [
        reflection_messages(request, [tool], failed, prompts, "<reason>"),
        retry_messages(request, failed, "<reflection>", prompts, "<reason>"),
    ]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()
