"""Reads the body of `/v1/completions` into the choices that it asks for. Called by `server.api.surfaces.completions`.

The first attempt continues the raw prompt. Verifiers, reflections and retries are shown one user message with its text:
a retry is a chat. What chat checks, chat checks; errors name the fields as the client wrote them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from server.api.chat_request import decode_json, explain_invalid, read_chat
from server.api.fields import Use
from server.api.surfaces.base import Ask, Choice
from server.api.surfaces.chat import fan_out
from server.api.surfaces.completions_fields import COMPLETIONS_FIELDS
from server.api.unknown_fields import drop_unknown
from server.errors import InvalidRequest
from server.settings import Settings

DEFAULT_TOKENS = 16
_MOST_TOKEN_ID = 2**31 - 1
_RENAMED = (
    (re.compile(r"^max_completion_tokens\b"), "max_tokens"),
    (re.compile(r"^top_logprobs\b"), "logprobs"),
    (re.compile(r"^messages\b.*"), "prompt"),
)
"""How chat names a field, and how it is called here."""

_SAME = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stream",
    "store",
    "task",
    "verifiers",
    "verify",
    "retry",
    "unverified_stream",
    "metadata",
    "user",
    "n",
)

Prompt = str | list[int]
_Text = Annotated[str, Meta(min_length=1)]
_TokenId = Annotated[int, Meta(ge=0, le=_MOST_TOKEN_ID)]
_Tokens = Annotated[list[_TokenId], Meta(min_length=1)]


class CompletionStreamOptions(Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options` of completions."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request of `/v1/completions`. None means not given; what chat checks too is checked there."""

    model: _Text
    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Any = None
    top_p: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    stop: Any = None
    seed: Any = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    n: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: CompletionStreamOptions | None = None
    store: Any = None
    task: Any = None
    verifiers: Any = None
    verify: Any = None
    retry: Any = None
    unverified_stream: Any = None
    metadata: Any = None
    user: Any = None
    suffix: Any = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answer's rendering has to know. `echoes` is the text before each choice, or empty."""

    echoes: tuple[str, ...]
    token_ids: bool
    logprobs: int | None


def read_completions(body: bytes, settings: Settings, *, ignore_unknown: bool = False) -> Ask:
    """Read a request; `original` is a `Wanted`.

    Raises: InvalidRequest, naming the field as it is called here.
    """
    fields = decode_json(body)
    if ignore_unknown:
        fields = drop_unknown(fields, CompletionsRequest)
    try:
        request = msgspec.convert(fields, CompletionsRequest)
    except msgspec.ValidationError as error:
        raise explain_invalid(error, CompletionsRequest) from None
    prompts = _read_prompts(request.prompt)
    _check(request, prompts, settings.limits.max_choices)
    shown = [[{"role": "user", "content": _show(prompt)}] for prompt in prompts]
    try:
        chat = {**_chat_fields(request), "messages": shown[0]}
        parsed = read_chat(chat, settings.limits, ignore_unknown=ignore_unknown)
    except InvalidRequest as error:
        raise _rename(error) from None
    choices: list[Choice] = []
    for prompt, messages in zip(prompts, shown, strict=True):
        asked = {"messages": messages, "prompt": prompt}
        choices += fan_out({**parsed.engine_body, **asked}, {**parsed.logged, **asked}, request.n or 1)
    echoes = tuple(choice.body["prompt"] if request.echo else "" for choice in choices)
    wanted = Wanted(echoes, any(not isinstance(prompt, str) for prompt in prompts), request.logprobs)
    return Ask(parsed.request, tuple(choices), wanted)


def _read_prompts(prompt: str | list[Any]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("There is no prompt in the list.", param="prompt")
    given = [prompt] if all(type(one) is int for one in prompt) else prompt
    try:
        return msgspec.convert(given, list[str | _Tokens])
    except msgspec.ValidationError as error:
        message = f"A prompt is a text or a list of token ids, and `prompt` one of them or a list of them: {error}"
        raise InvalidRequest(message, param="prompt") from None


def _check(request: CompletionsRequest, prompts: list[Prompt], most: int) -> None:
    for name, field in COMPLETIONS_FIELDS.items():
        value = getattr(request, name)
        if field.use is Use.REFUSED and value is not None and value not in field.harmless:
            raise _unsupported(name, field.reason)
    if len(prompts) * (request.n or 1) > most:
        param = "prompt" if len(prompts) > 1 else "n"
        raise InvalidRequest(f"At most {most} choices are made: prompts times n.", param=param)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise _unsupported("best_of", "send as many as `n`, and let verifiers choose")
    if request.echo and request.logprobs is not None:
        raise _unsupported("echo", "the logprobs of the prompt are not read; ask for one of both")
    if request.echo and any(not isinstance(prompt, str) for prompt in prompts):
        raise _unsupported("echo", "the text of token ids is not known here")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")


def _unsupported(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not supported: {reason}.", param=name, code="unsupported_field")


def _show(prompt: Prompt) -> str:
    """Show a prompt in the log and to verifiers; token ids only ever reach the log."""
    return prompt if isinstance(prompt, str) else "Token ids: " + " ".join(map(str, prompt))


def _chat_fields(request: CompletionsRequest) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"model": request.model, "max_completion_tokens": request.max_tokens or DEFAULT_TOKENS}
    fields |= {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    if request.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.stream_options is not None and request.stream_options.include_usage is not None:
        fields["stream_options"] = {"include_usage": request.stream_options.include_usage}
    return fields


def _rename(error: InvalidRequest) -> InvalidRequest:
    """Name a field as it is called here."""
    param = error.param or ""
    for pattern, name in _RENAMED:
        param = pattern.sub(name, param)
    message = error.message.replace(error.param, param) if error.param else error.message
    return InvalidRequest(message, param=param or None, code=error.code)
