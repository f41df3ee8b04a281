"""Reads the body of `/v1/responses` into a draft, and a draft into the chat request that it amounts to.

Called by `server.api.surfaces.responses`. What chat checks, chat checks: only what has another name or another shape
is read here, and errors name the fields as the client wrote them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from server.api.chat_request import ParsedChat, decode_json, explain_invalid, read_chat
from server.api.fields import Use
from server.api.surfaces.responses_fields import RESPONSES_FIELDS
from server.api.surfaces.responses_items import Item, Message, is_reference, to_messages
from server.api.surfaces.responses_tools import FunctionTool, read_tool, read_tool_choice, to_chat_tool
from server.api.unknown_fields import drop_unknown
from server.errors import InvalidRequest
from server.settings import Settings

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = frozenset(
    {
        LOGPROBS,
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
    }
)
"""What OpenAI's `include` may hold. Only logprobs are ever there to be included."""

_SAME = ("temperature", "top_p", "parallel_tool_calls", "stream", "store", "metadata", "user", "safety_identifier")
_OURS = ("task", "verifiers", "verify", "retry", "unverified_stream")
_RENAMED = (
    (re.compile(r"^messages\b.*"), "input"),
    (re.compile(r"^max_completion_tokens\b"), "max_output_tokens"),
    (re.compile(r"^logprobs\b"), "top_logprobs"),
    (re.compile(r"^response_format\.json_schema\b"), "text.format"),
    (re.compile(r"^response_format\b"), "text.format"),
    (re.compile(r"^(tools\[\d+\]|tool_choice)\.function\b"), r"\1"),
)
"""How chat names a field, and how it is called here."""

_Text = Annotated[str, Meta(min_length=1)]


class ResponseStreamOptions(Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options` of responses, and one of ours."""

    include_obfuscation: bool | None = None
    include_attempts: bool | None = None


class TextFormat(Struct, forbid_unknown_fields=True):
    """What the text of an answer has to be."""

    type: str
    name: _Text | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct, forbid_unknown_fields=True):
    """OpenAI's `text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request of `/v1/responses`. None means not given; what chat checks too is checked there."""

    model: _Text
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: _Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    task: Any = None
    verifiers: Any = None
    verify: Any = None
    retry: Any = None
    unverified_stream: Any = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    service_tier: Any = None
    reasoning: Any = None
    max_tool_calls: Any = None
    truncation: Any = None
    image: Any = None
    access_programs: Any = None
    background: Any = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A request that is read, but whose conversation may have to be looked up. `echo` is what its answer repeats."""

    request: ResponsesRequest
    items: tuple[Item, ...]
    chat: Mapping[str, Any]
    echo: Mapping[str, Any]
    ignore_unknown: bool = False

    @property
    def references(self) -> list[str]:
        """The ids of the items that `input` only refers to."""
        return [item["id"] for item in self.items if is_reference(item)]


def read_draft(body: bytes, *, ignore_unknown: bool = False) -> Draft:
    """Read a request, as far as that needs no look-up. `ignore_unknown` leaves out the fields that nobody knows.

    Raises: InvalidRequest, naming the field.
    """
    fields = decode_json(body)
    if ignore_unknown:
        fields = drop_unknown(fields, ResponsesRequest)
    try:
        request = msgspec.convert(fields, ResponsesRequest)
    except msgspec.ValidationError as error:
        raise explain_invalid(error, ResponsesRequest) from None
    _check(request)
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    for index, item in enumerate(items):
        if is_reference(item) and not isinstance(item.get("id"), str):
            raise InvalidRequest("An item_reference needs the id of an item.", param=f"input[{index}].id")
    tools = [read_tool(tool, index) for index, tool in enumerate(request.tools or ())]
    chat = _chat_fields(request, tools)
    return Draft(request, tuple(items), chat, _echo(request, tools), ignore_unknown)


def complete_draft(draft: Draft, items: Sequence[Item], before: Sequence[Message], settings: Settings) -> ParsedChat:
    """Make the chat request of a draft: its items, all looked up, after the conversation so far.

    Raises: InvalidRequest, naming the field as it is called here.
    """
    instructions = draft.request.instructions
    head = [] if instructions is None else [{"role": "system", "content": instructions}]
    messages = [*head, *to_messages(items, before)]
    if len(messages) == len(head):
        raise InvalidRequest("There is nothing to answer: `input` has no message.", param="input")
    limits, images = settings.limits, settings.engine.images
    fields = {**draft.chat, "messages": messages}
    try:
        parsed = read_chat(fields, limits, images=images, ignore_unknown=draft.ignore_unknown)
    except InvalidRequest as error:
        raise _rename(error) from None
    return ParsedChat(parsed.request, parsed.engine_body, {**parsed.logged, "responses": dict(draft.echo)})


def _check(request: ResponsesRequest) -> None:
    for name, field in RESPONSES_FIELDS.items():
        value = getattr(request, name)
        if field.use is Use.REFUSED and value is not None and value not in field.harmless:
            raise InvalidRequest(f"{name} is not supported: {field.reason}.", param=name, code="unsupported_field")
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise InvalidRequest(f"include knows no {name!r}.", param=f"include[{index}]")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")


def _chat_fields(request: ResponsesRequest, tools: Sequence[FunctionTool]) -> dict[str, Any]:
    """Say in chat's names what is not the conversation."""
    fields: dict[str, Any] = {"model": request.model}
    fields |= {name: value for name in (*_SAME, *_OURS) if (value := getattr(request, name)) is not None}
    if request.max_output_tokens is not None:
        fields["max_completion_tokens"] = request.max_output_tokens
    if LOGPROBS in (request.include or ()) or request.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.stream_options is not None and request.stream_options.include_attempts is not None:
        fields["stream_options"] = {"include_attempts": request.stream_options.include_attempts}
    if request.text is not None and (form := _response_format(request.text.format)) is not None:
        fields["response_format"] = form
    choice, allowed = read_tool_choice(request.tool_choice, tools)
    if choice is not None:
        fields["tool_choice"] = choice
    if tools:
        fields["tools"] = [to_chat_tool(tool) for tool in tools if allowed is None or tool.name in allowed]
    return fields


def _response_format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    if form.type != "json_schema":
        raise InvalidRequest("A format is text, json_object or json_schema.", param="text.format.type")
    given = {"name": form.name, "schema": form.schema, "strict": form.strict, "description": form.description}
    for name in ("name", "schema"):
        if given[name] is None:
            raise InvalidRequest(f"Missing field: text.format.{name}", param=f"text.format.{name}")
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if value is not None}}


def _echo(request: ResponsesRequest, tools: Sequence[FunctionTool]) -> dict[str, Any]:
    """Make what the response repeats of its request, with OpenAI's defaults."""
    form = request.text.format if request.text else None
    shown = {} if form is None else {name: getattr(form, name) for name in form.__struct_fields__}
    return {
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id,
        "tools": [
            {name: getattr(tool, name) for name in ("type", "name", "description", "parameters", "strict")}
            for tool in tools
        ],
        "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": {"format": {name: value for name, value in shown.items() if value is not None} or {"type": "text"}},
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "max_output_tokens": request.max_output_tokens,
        "top_logprobs": request.top_logprobs or 0,
        "metadata": request.metadata or {},
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "reasoning": {"effort": None, "summary": None},
        "truncation": "disabled",
        "service_tier": "default",
        "background": False,
    }


def _rename(error: InvalidRequest) -> InvalidRequest:
    """Name a field as it is called here."""
    param = error.param or ""
    for pattern, name in _RENAMED:
        param = pattern.sub(name, param)
    message = error.message.replace(error.param, param) if error.param else error.message
    return InvalidRequest(message, param=param or None, code=error.code)
