"""The table of every field of a chat request: what becomes of it, and why.

Read by `server.api.chat_request` and its parts, which enforce it, and by the page that `make docs` writes of it. A
field that is not here is refused by name. Only fields marked `ENGINE` reach the engine; a new one is let through by
adding it here, never by passing a body on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.api import chat_shapes as shapes
from server.orchestration.episode import REFLECTION_SAMPLING


class Use(StrEnum):
    """What becomes of a field."""

    ENGINE = "sent to the engine"
    SERVER = "applied by the server"
    LOGGED = "kept with the episode"
    IMAGES = "sent to engines that read images, else refused"
    IGNORED = "accepted and ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table. `harmless` are the values of a refused field that ask for nothing, and so are accepted.

    `null` always asks for nothing.
    """

    use: Use
    reason: str
    harmless: tuple[Any, ...] = ()
    ours: bool = False  # not OpenAI's: never part of the logged request


FIELDS: Mapping[str, Field] = {
    # what is asked
    "model": Field(
        Use.SERVER, "a task (served by its champion), the base model's id, or an adapter (keys with `pin_adapters`)"
    ),
    "messages": Field(Use.ENGINE, "the conversation"),
    "tools": Field(Use.ENGINE, "the functions that may be called: at most 128"),
    "tool_choice": Field(
        Use.ENGINE,
        "`none`, `auto`, `required`, one or some of `tools`; attempts and retries obey it, reflections "
        "are sampled without tools",
    ),
    "parallel_tool_calls": Field(Use.ENGINE, "as far as the engine can force it"),
    "response_format": Field(Use.ENGINE, "a grammar for attempts and retries; never for reflections"),
    # how it is sampled
    "temperature": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "top_p": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "frequency_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "presence_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "logit_bias": Field(
        Use.ENGINE, "from -100 to 100 by token id, 1,024 of them at most; attempts and retries; reflections without"
    ),
    "max_completion_tokens": Field(Use.ENGINE, "a limit of each attempt by itself"),
    "max_tokens": Field(Use.ENGINE, "the old name of max_completion_tokens, which wins where both are given"),
    "stop": Field(Use.ENGINE, "at most 4; each attempt and retry ends there by itself; reflections do not"),
    "seed": Field(
        Use.ENGINE, "as far as the engine's backend is deterministic; choice number i of `n` is sampled with `seed` + i"
    ),
    "logprobs": Field(Use.ENGINE, "those of the attempt that is returned"),
    "top_logprobs": Field(Use.ENGINE, "those of the attempt that is returned"),
    "top_k": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    "min_p": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    "repetition_penalty": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    # how it is answered
    "stream": Field(Use.SERVER, "with enforcing verifiers content is held until it is verified"),
    "stream_options": Field(
        Use.SERVER,
        "how a stream ends and what it shows; needs `stream: true`",
    ),
    "n": Field(Use.SERVER, "fanned out into single calls: each choice is verified and retried by itself"),
    "store": Field(Use.SERVER, "false keeps the content out of the log, and out of training"),
    # ours
    "task": Field(
        Use.SERVER, "the task whose policy applies; with the base model's id as `model`, served plain", ours=True
    ),
    "verifiers": Field(Use.SERVER, "replaces the task's verifiers", ours=True),
    "verify": Field(Use.SERVER, "off, observe or enforce, in place of the task's mode", ours=True),
    "retry": Field(Use.SERVER, "overrides of the task's retry policy", ours=True),
    "unverified_stream": Field(
        Use.SERVER, "live tokens in place of an enforced answer; the verdict is in the last chunk", ours=True
    ),
    # kept
    "metadata": Field(
        Use.LOGGED, "found again in the episode; at most 16 pairs, keys of 64 and values of 512 characters"
    ),
    "user": Field(Use.LOGGED, "found again in the episode; at most 512 characters"),
    "safety_identifier": Field(
        Use.LOGGED, "found again in the episode; at most 512 characters; no abuse detection runs"
    ),
    # ignored: the answer is the same without
    "prompt_cache_key": Field(Use.IGNORED, "engines cache by the prompt's own tokens"),
    "prompt_cache_options": Field(Use.IGNORED, "engines cache by the prompt's own tokens"),
    "prompt_cache_retention": Field(Use.IGNORED, "engines cache by the prompt's own tokens"),
    "prediction": Field(Use.IGNORED, "a hint that can only save time"),
    "service_tier": Field(Use.IGNORED, "there is one tier"),
    "reasoning_effort": Field(Use.IGNORED, "no model that is served here has that setting"),
    "verbosity": Field(Use.IGNORED, "no model that is served here has that setting"),
    # refused: an answer without it would not be what was asked for
    "audio": Field(Use.REFUSED, "answers are text"),
    "modalities": Field(Use.REFUSED, "answers are text", harmless=(["text"], [])),
    "functions": Field(Use.REFUSED, "deprecated by OpenAI: use tools", harmless=([],)),
    "function_call": Field(Use.REFUSED, "deprecated by OpenAI: use tool_choice"),
    "web_search_options": Field(Use.REFUSED, "the model has no web search"),
    "moderation": Field(Use.REFUSED, "nothing here moderates, and to skip it silently would be unsafe"),
}
"""The fields of a chat request itself."""


@dataclass(frozen=True, slots=True)
class Table:
    """What becomes of the fields of one shape. `refused` is why the shape as a whole is, where it is."""

    place: str
    fields: Mapping[str, Field]
    refused: str = ""


_KIND = Field(Use.ENGINE, "says which shape it is")
_MARK = Field(Use.IGNORED, "engines cache by the prompt's own tokens")
_NAME = Field(Use.ENGINE, "most models' templates do not show it")
_CONTENT = Field(Use.ENGINE, "text, or a list of text parts")
_CUSTOM = "custom tools are OpenAI's own: use a function"
_OLD = "deprecated by OpenAI: use tools"


def _refused(place: str, reason: str, *names: str) -> Table:
    return Table(place, {name: Field(Use.REFUSED, reason) for name in names}, reason)


NESTED: Mapping[type, Table] = {
    shapes.SystemMessage: Table("messages[], role: system", {"role": _KIND, "content": _CONTENT, "name": _NAME}),
    shapes.DeveloperMessage: Table(
        "messages[], role: developer",
        {
            "role": Field(Use.ENGINE, "sent as `system`: templates of open models know no other, and drop it silently"),
            "content": _CONTENT,
            "name": _NAME,
        },
    ),
    shapes.UserMessage: Table(
        "messages[], role: user",
        {"role": _KIND, "content": Field(Use.ENGINE, "text, or a list of text and image parts"), "name": _NAME},
    ),
    shapes.AssistantMessage: Table(
        "messages[], role: assistant",
        {
            "role": _KIND,
            "content": Field(Use.ENGINE, "text, a list of text and refusal parts, or null"),
            "name": _NAME,
            "tool_calls": Field(Use.ENGINE, "each must be answered by a tool's message before anybody else speaks"),
            "refusal": Field(Use.ENGINE, "shown to the model as the content, where there is no other"),
            "reasoning_content": Field(Use.ENGINE, "an extension that open engines share"),
            "annotations": Field(Use.IGNORED, "SDKs send it back with an answer; the model wrote none"),
            "audio": Field(Use.REFUSED, "answers are text"),
            "function_call": Field(Use.REFUSED, _OLD),
        },
    ),
    shapes.ToolMessage: Table(
        "messages[], role: tool",
        {
            "role": _KIND,
            "content": _CONTENT,
            "tool_call_id": Field(Use.ENGINE, "the id of a call in the assistant's message before it"),
            "name": _NAME,
        },
    ),
    shapes.FunctionMessage: _refused("messages[], role: function", _OLD, "role", "content", "name"),
    shapes.TextPart: Table(
        "messages[].content[], type: text",
        {"type": _KIND, "text": Field(Use.ENGINE, "the text"), "prompt_cache_breakpoint": _MARK},
    ),
    shapes.RefusalPart: Table(
        "messages[].content[], type: refusal",
        {"type": _KIND, "refusal": Field(Use.ENGINE, "shown to the model as text; in an assistant's message only")},
    ),
    shapes.ImagePart: Table(
        "messages[].content[], type: image_url",
        {
            "type": _KIND,
            "image_url": Field(Use.IMAGES, "in a user's message only; at most `limits.max_images` of them"),
            "prompt_cache_breakpoint": _MARK,
        },
    ),
    shapes.ImageUrl: Table(
        "messages[].content[].image_url",
        {
            "url": Field(
                Use.IMAGES,
                "a `data:image/...;base64,` URL; an address only where `limits.remote_images` is set, for it is the "
                "engine that would fetch it",
            ),
            "detail": Field(Use.IMAGES, "`auto`, `low`, `high`; `original` is sent as `high`"),
        },
    ),
    shapes.AudioPart: _refused(
        "messages[].content[], type: input_audio",
        "the models here do not hear",
        "type",
        "input_audio",
        "prompt_cache_breakpoint",
    ),
    shapes.FilePart: _refused(
        "messages[].content[], type: file",
        "no files are kept or read here: send their text",
        "type",
        "file",
        "prompt_cache_breakpoint",
    ),
    shapes.FunctionToolCall: Table(
        "messages[].tool_calls[], type: function",
        {
            "type": _KIND,
            "id": Field(Use.ENGINE, "what a tool's message answers to"),
            "function": Field(Use.ENGINE, "the call"),
            "index": Field(Use.IGNORED, "the place in a stream, which some engines leave in"),
        },
    ),
    shapes.CalledFunction: Table(
        "messages[].tool_calls[].function",
        {
            "name": Field(Use.ENGINE, "the function that was called"),
            "arguments": Field(Use.ENGINE, "a string, as the model wrote it; some engines refuse what is not JSON"),
        },
    ),
    shapes.CustomToolCall: _refused("messages[].tool_calls[], type: custom", _CUSTOM, "type", "id", "custom"),
    shapes.FunctionTool: Table(
        "tools[], type: function", {"type": _KIND, "function": Field(Use.ENGINE, "what may be called")}
    ),
    shapes.FunctionDefinition: Table(
        "tools[].function",
        {
            "name": Field(Use.ENGINE, "at most 128 letters, digits, `_`, `-`, `.` and `:`"),
            "description": Field(Use.ENGINE, "shown to the model, and in reflections"),
            "parameters": Field(Use.ENGINE, "a JSON schema, shown to the model, and in reflections"),
            "strict": Field(Use.ENGINE, "forces the arguments into the schema, where the engine has grammars"),
        },
    ),
    shapes.CustomTool: _refused("tools[], type: custom", _CUSTOM, "type", "custom"),
    shapes.AllowedToolsChoice: Table(
        "tool_choice, type: allowed_tools",
        {"type": _KIND, "allowed_tools": Field(Use.SERVER, "only these tools are sent to the engine")},
    ),
    shapes.AllowedTools: Table(
        "tool_choice.allowed_tools",
        {
            "mode": Field(Use.SERVER, "sent as `tool_choice`"),
            "tools": Field(Use.SERVER, "functions that are among `tools`, by name"),
        },
    ),
    shapes.NamedToolChoice: Table(
        "tool_choice, type: function; tool_choice.allowed_tools.tools[]",
        {"type": _KIND, "function": Field(Use.ENGINE, "what has to, or may be called")},
    ),
    shapes.NamedFunction: Table("tool_choice.function", {"name": Field(Use.ENGINE, "the name of one of `tools`")}),
    shapes.CustomToolChoice: _refused("tool_choice, type: custom", _CUSTOM, "type", "custom"),
    shapes.TextFormat: Table("response_format, type: text", {"type": _KIND}),
    shapes.JsonFormat: Table("response_format, type: json_object", {"type": _KIND}),
    shapes.SchemaFormat: Table(
        "response_format, type: json_schema", {"type": _KIND, "json_schema": Field(Use.ENGINE, "the schema")}
    ),
    shapes.AnswerSchema: Table(
        "response_format.json_schema",
        {
            "name": Field(Use.ENGINE, "at most 64 letters, digits, `_` and `-`"),
            "description": Field(Use.ENGINE, "engines do not show it to the model"),
            "schema": Field(Use.ENGINE, "must be given: an object that is a JSON schema"),
            "strict": Field(Use.ENGINE, "engines force the schema either way"),
        },
    ),
    shapes.StreamOptions: Table(
        "stream_options",
        {
            "include_usage": Field(Use.SERVER, "a last chunk without choices has the sum of all that was generated"),
            "include_obfuscation": Field(Use.IGNORED, "nothing is padded"),
            "include_attempts": Field(
                Use.SERVER, "a held stream shows failed attempts and reflections as they come", ours=True
            ),
        },
    ),
}
"""The fields of the shapes inside a chat request."""

ENGINE_FIELDS = tuple(name for name, field in FIELDS.items() if field.use is Use.ENGINE)
OUR_FIELDS = frozenset(name for name, field in FIELDS.items() if field.ours)
REFUSED_FIELDS = {name: field for name, field in FIELDS.items() if field.use is Use.REFUSED}

SAMPLING_DEFAULTS = REFLECTION_SAMPLING
"""What a silent request means: OpenAI's defaults, the plain distribution, sent in full. Else engines would sample by
the model's own defaults, and the log would not say by which."""
