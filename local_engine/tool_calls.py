"""Reads tool calls out of an answer in the format of Qwen 2.5 (JSON between `<tool_call>` lines), as SGLang does.

Two differences, both on purpose. A text that holds the mark but no call that can be read stays as it is (SGLang drops
it), because a verifier and a reflection have to see what went wrong. And a call to a tool that was not offered is
passed on as a call (in SGLang: `SGLANG_FORWARD_UNKNOWN_TOOLS`), because it is a wrong answer and not a text.
"""

import json
import re
import uuid
from typing import Any

OPENING, CLOSING = "<tool_call>\n", "\n</tool_call>"
_CALL = re.compile(re.escape(OPENING) + r"(.*?)" + re.escape(CLOSING), re.DOTALL)


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Split an answer into its text and its calls; without a readable call all of it is text."""
    start = text.find(OPENING)
    if start < 0:
        return text, []
    calls = [call for body in _CALL.findall(text) for call in _read_body(body)]
    if not calls:
        return text, []
    return text[:start].strip(), [{**call, "index": index} for index, call in enumerate(calls)]


def _read_body(body: str) -> list[dict[str, Any]]:
    try:
        read = json.loads(body.strip())
    except ValueError:
        return []
    return [_build_call(action) for action in (read if isinstance(read, list) else [read]) if _is_call(action)]


def _is_call(action: Any) -> bool:
    return isinstance(action, dict) and isinstance(action.get("name"), str) and bool(action["name"])


def _build_call(action: dict[str, Any]) -> dict[str, Any]:
    arguments = action.get("parameters") or action.get("arguments", {})
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "index": 0,
        "type": "function",
        "function": {"name": action["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
    }
