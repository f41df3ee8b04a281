"""Parses the body of a chat request into what the server applies and what the engine is sent.

Called by the surfaces and nothing else. Every wrong field is named in the error; nothing is let through to the
engine that `server.api.fields` does not name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from server.api.fields import ENGINE_FIELDS, OUR_FIELDS, REFUSED_FIELDS, SAMPLING_DEFAULTS
from server.errors import InvalidRequest
from server.settings import LimitSettings

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

_Text = Annotated[str, Meta(min_length=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]


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


class StreamOptions(Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    include_attempts: bool | None = None  # ours


class ChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A chat request, checked. None means not given. The fields are those of `server.api.fields`, in its order."""

    model: _Text
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    max_completion_tokens: _Count | None = None
    max_tokens: _Count | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
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
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
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
_PLACE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")


def parse_chat(body: bytes, limits: LimitSettings) -> ParsedChat:
    """Parse and check a chat request's body.

    Raises: InvalidRequest, naming the field.
    """
    fields = decode_json(body)
    try:
        request = msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        raise explain_invalid(error) from None
    _check_messages(request, limits)
    _check_values(request, limits)
    engine_body = {**SAMPLING_DEFAULTS, **_given(request, ENGINE_FIELDS)}
    if (old_name := engine_body.pop("max_tokens", None)) is not None:
        engine_body.setdefault("max_completion_tokens", old_name)
    return ParsedChat(request, engine_body, {name: value for name, value in fields.items() if name not in OUR_FIELDS})


def decode_json(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises: InvalidRequest.
    """
    try:
        return _json.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None


def explain_invalid(error: msgspec.ValidationError) -> InvalidRequest:
    """Turn msgspec's words (`... - at `$.retry.show``) into an error that names the field."""
    text = str(error)
    place = _PLACE.search(text)
    path = place["path"] if place else ""
    what = text[: place.start()] if place else text
    if named := _UNKNOWN.search(what) or _MISSING.search(what):
        path = f"{path}.{named['name']}" if path else named["name"]
        known = "Unknown" if "unknown" in what else "Missing"
        return InvalidRequest(f"{known} field: {path}", param=path, code=f"{known.lower()}_field")
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)


def _given(request: ChatRequest, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _check_messages(request: ChatRequest, limits: LimitSettings) -> None:
    if len(request.messages) > limits.max_messages:
        raise InvalidRequest(f"At most {limits.max_messages} messages are taken.", param="messages")
    for index, message in enumerate(request.messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidRequest(f"A message's role is one of {sorted(ROLES)}.", param=f"messages[{index}].role")
        may_lack_content = role == "assistant" and content is None
        if not (may_lack_content or isinstance(content, (str, list))):
            raise InvalidRequest(
                "A message's content is a string or a list of parts.", param=f"messages[{index}].content"
            )


def _check_values(request: ChatRequest, limits: LimitSettings) -> None:
    for name, field in REFUSED_FIELDS.items():
        value = getattr(request, name)
        if value is not None and value not in field.harmless:
            raise InvalidRequest(f"{name} is not supported: {field.reason}.", param=name, code="unsupported_field")
    if request.n is not None and request.n > limits.max_choices:
        raise InvalidRequest(f"At most {limits.max_choices} choices are made.", param="n")
    if isinstance(request.stop, list) and len(request.stop) > 4:
        raise InvalidRequest("At most 4 stop sequences are taken.", param="stop")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    if request.unverified_stream and not request.stream:
        raise InvalidRequest("unverified_stream needs stream: true.", param="unverified_stream")
    for index, tool in enumerate(request.tools or ()):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, Mapping):
            raise InvalidRequest('A tool is {"type": "function", "function": {...}}.', param=f"tools[{index}]")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise InvalidRequest("A function needs a name.", param=f"tools[{index}].function.name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise InvalidRequest("Parameters are a JSON schema.", param=f"tools[{index}].function.parameters")
    if request.retry and (request.retry.max_retries or 0) > limits.max_retries:
        raise InvalidRequest(f"At most {limits.max_retries} retries are taken.", param="retry.max_retries")
