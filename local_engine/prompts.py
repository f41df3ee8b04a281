"""From a chat request to prompt tokens, exactly as SGLang does it: the same messages give the same tokens on both.

What is trained on is logged as tokens, so a prompt that differed by engine would be another prompt to the model.
"""

import re
from collections.abc import Mapping
from typing import Any

import jinja2
import msgspec

from local_engine.errors import Refused
from local_engine.models import Base

_TOOL_FIELDS = ("name", "description", "parameters", "strict")
_READS_PARTS = re.compile(r"\{%-?\s*for\s+\w+\s+in\s+\w+(\.content|\[['\"]content['\"]\])")


def render_prompt(
    base: Base,
    messages: Any,
    tools: list[dict[str, Any]] | None,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    """Render the chat template and give back the prompt's tokens.

    Raises: Refused where the messages are malformed, the template refuses them, or the prompt can never fit.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused("messages must be a list of objects.")
    if not messages:
        raise Refused("Messages cannot be empty.")
    keeps_parts = bool(_READS_PARTS.search(str(base.tokenizer.chat_template)))
    plain = [_normalize_message(message, keeps_parts=keeps_parts) for message in messages]
    try:
        text = base.tokenizer.apply_chat_template(
            plain, tools=list(tools) if tools else None, add_generation_prompt=True, tokenize=False, **template_kwargs
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise Refused(str(error)) from error
    assert isinstance(text, str)
    return encode_prompt(base, text, add_special_tokens=False)


def encode_prompt(base: Base, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Turn a text into tokens.

    A text of more bytes than the context has tokens, times the longest piece of the vocabulary, can never fit: it is
    refused before a tokenizer spends seconds on it.

    Raises: Refused.
    """
    most_bytes = base.context_tokens * base.longest_piece_bytes
    if len(text) > most_bytes or len(text.encode(errors="surrogatepass")) > most_bytes:
        raise Refused(
            f"The input (over {most_bytes} bytes) is longer than the model's context length "
            f"({base.context_tokens} tokens)."
        )
    return base.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]  # pyright: ignore[reportReturnType]


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check the tools and write them as templates get to see them.

    Raises: Refused.
    """
    if not tools:
        return None
    if not isinstance(tools, list):
        raise Refused("tools must be a list.")
    return [_normalize_tool(tool) for tool in tools]


def _normalize_tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused("each tool must be {type: function, function: {name, ...}}.")
    # The client's own order; templates that print the JSON would otherwise give another prompt.
    known = {name: value for name, value in function.items() if name in _TOOL_FIELDS}
    known = {name: value for name, value in known.items() if name != "strict" or value is not None}
    for name in ("description", "parameters"):
        known.setdefault(name, None)
    return {"type": tool.get("type", "function"), "function": known, "defer_loading": None}


def _normalize_message(message: Mapping[str, Any], *, keeps_parts: bool) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if value is not None}
    if not isinstance(plain.get("role"), str):
        raise Refused("every message needs a role.")
    plain["content"] = _normalize_content(plain.get("content"), keeps_parts=keeps_parts and plain["role"] != "tool")
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_normalize_call(call) for call in plain["tool_calls"]]
    return plain


def _normalize_content(content: Any, *, keeps_parts: bool) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused("content must be a string or a list of parts.")
    if any(part.get("type") == "image_url" for part in content):
        raise Refused("messages hold an image_url part: this engine reads no images, only text.")
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
        raise Refused("only text parts are supported.")
    if keeps_parts:
        return [{"type": "text", "text": part["text"]} for part in content]
    return " ".join(part["text"] for part in content)


def _normalize_call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Refused("each tool call must be {id, type: function, function: {name, arguments}}.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError as error:
            raise Refused("Assistant tool call function.arguments must be valid JSON.") from error
        if not isinstance(arguments, dict):
            raise Refused("Assistant tool call function.arguments must be a JSON object.")
    return {**call, "function": {**function, "arguments": arguments}}
