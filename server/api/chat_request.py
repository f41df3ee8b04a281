"""Parses the body of a chat request into what the server applies and what the engine is sent.

Called by the surfaces and nothing else. Every wrong field is named in the error; nothing is let through to the
engine that `server.api.fields` does not name.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from server.api import chat_checks
from server.api.chat_body import choose_tools, to_engine_messages, without_nulls
from server.api.chat_shapes import Message, ResponseFormat, StreamOptions, Tool, ToolChoice
from server.api.chat_shapes import Text as _Text
from server.api.fields import ENGINE_FIELDS, OUR_FIELDS, REFUSED_FIELDS, SAMPLING_DEFAULTS
from server.api.hints import name_values, suggest_field
from server.api.unknown_fields import drop_unknown
from server.errors import InvalidRequest
from server.settings import LimitSettings

_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_TokenId = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]
_Label = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
"""OpenAI's `metadata`, with its limits."""


class RequestVerifier(Struct, forbid_unknown_fields=True):
    """A verifier as a request names it: registered (`name`, perhaps `version`) or inline (`kind`, `config`)."""

    name: _Text | None = None
    kind: _Text | None = None
    version: _Count | None = None
    config: dict[str, Any] | None = None
    args: dict[str, Any] | None = None
    when: dict[str, Any] | None = None


class RetryOverrides(Struct, forbid_unknown_fields=True):
    """What a request changes of its task's retry policy."""

    max_retries: Annotated[int, Meta(ge=0)] | None = None
    max_seconds: Annotated[float, Meta(gt=0)] | None = None
    max_total_tokens: _Count | None = None
    reflection_max_tokens: _Count | None = None
    show: Literal["verdict", "reason"] | None = None
    on_failure: Literal["return_last", "error"] | None = None
    on_abstain: Literal["return", "error"] | None = None


class ChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A chat request, checked. None means not given. The fields are those of `server.api.fields`, in its order."""

    model: _Text
    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    max_completion_tokens: _Count | None = None
    max_tokens: _Count | None = None
    stop: _Text | Annotated[list[_Text], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None  # SGLang dies of one beyond 32 bits
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Count | None = None
    store: bool | None = None
    task: _Text | None = None
    verifiers: list[str | RequestVerifier] | None = None
    verify: Literal["off", "observe", "enforce"] | None = None
    retry: RetryOverrides | None = None
    unverified_stream: bool | None = None
    metadata: Metadata | None = None
    user: _Label | None = None
    safety_identifier: _Label | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None
    service_tier: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    audio: Any = None
    modalities: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    moderation: Any = None


@dataclass(frozen=True, slots=True)
class ParsedChat:
    """A request, what of it the engine is sent, and what of it is logged."""

    request: ChatRequest
    engine_body: dict[str, Any]
    logged: dict[str, Any]


_json = msgspec.json.Decoder(dict[str, Any])
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")


def parse_chat(body: bytes, limits: LimitSettings, *, images: bool = False, ignore_unknown: bool = False) -> ParsedChat:
    """Parse and check a chat request's body.

    Raises: InvalidRequest, naming the field; its code is `unknown_field` for one that nobody knows.
    """
    return read_chat(decode_json(body), limits, images=images, ignore_unknown=ignore_unknown)


def read_chat(
    fields: dict[str, Any], limits: LimitSettings, *, images: bool = False, ignore_unknown: bool = False
) -> ParsedChat:
    """Check the fields of a chat request, wherever they came from. `images` says whether the model reads them.

    With `ignore_unknown` what is in no shape is left out, here and in what is logged, in place of being refused.

    Raises: InvalidRequest, naming the field.
    """
    if ignore_unknown:
        fields = drop_unknown(fields, ChatRequest)
    try:
        request = msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        raise explain_invalid(error, ChatRequest) from None
    chat_checks.check_messages(request.messages, limits, images=images)
    chat_checks.check_tools(request.tools or (), request.tool_choice)
    chat_checks.check_format(request.response_format)
    _check_values(request, limits)
    logged = {name: value for name, value in fields.items() if name not in OUR_FIELDS}
    return ParsedChat(request, _make_engine_body(fields), logged)


def decode_json(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises: InvalidRequest.
    """
    try:
        return _json.decode(body)
    except msgspec.ValidationError as error:
        if "out of range" in str(error):
            raise InvalidRequest("The body holds a number that is out of range.") from None
        raise InvalidRequest("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None


def explain_invalid(error: msgspec.ValidationError, shape: type | None = None) -> InvalidRequest:
    """Turn msgspec's words (`... - at `$.retry.show``) into an error that names the field, and what was meant."""
    text = str(error)
    place = _PLACE.search(text)
    path = place["path"].replace("[...]", "") if place else ""
    what = text[: place.start()] if place else text
    if named := _UNKNOWN.search(what) or _MISSING.search(what):
        path = f"{path}.{named['name']}" if path else named["name"]
        if "unknown" not in what:
            return InvalidRequest(f"Missing field: {path}", param=path, code="missing_field")
        return InvalidRequest(
            f"Unknown field: {path}{suggest_field(path, shape) if shape else ''}", param=path, code="unknown_field"
        )
    if path and shape and what.startswith("Invalid enum value"):
        what += name_values(path, shape)
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)


def _make_engine_body(fields: dict[str, Any]) -> dict[str, Any]:
    """Make what the engine is sent: of the request's own JSON only what the table lets through."""
    body: dict[str, Any] = dict(SAMPLING_DEFAULTS)
    for name in ENGINE_FIELDS:
        if (value := fields.get(name)) is not None:
            body[name] = value
    body["messages"] = to_engine_messages(body["messages"])
    if body.get("tools"):
        choose_tools(body)
    else:  # without tools there is nothing to choose from
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    if "response_format" in body:
        body["response_format"] = without_nulls(body["response_format"])
    if (old_name := body.pop("max_tokens", None)) is not None:
        body.setdefault("max_completion_tokens", old_name)
    return body


def _check_values(request: ChatRequest, limits: LimitSettings) -> None:
    for name, field in REFUSED_FIELDS.items():
        value = getattr(request, name)
        if value is not None and value not in field.harmless:
            raise InvalidRequest(f"{name} is not supported: {field.reason}.", param=name, code="unsupported_field")
    if request.n is not None and request.n > limits.max_choices:
        raise InvalidRequest(f"At most {limits.max_choices} choices are made.", param="n")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    if request.unverified_stream and not request.stream:
        raise InvalidRequest("unverified_stream needs stream: true.", param="unverified_stream")
    if request.retry and (request.retry.max_retries or 0) > limits.max_retries:
        raise InvalidRequest(f"At most {limits.max_retries} retries are taken.", param="retry.max_retries")
