"""The table of every field of a chat request: what becomes of it, and why.

Read by `server.api.chat_request` and by the reference page of the API. A field that is not here is refused by name.
Only fields marked `ENGINE` reach the engine; a new one is let through by adding it here, never by passing a body on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.orchestration.episode import REFLECTION_SAMPLING


class Use(StrEnum):
    """What becomes of a field."""

    ENGINE = "sent to the engine"
    SERVER = "applied by the server"
    LOGGED = "kept with the episode"
    IGNORED = "accepted and ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table. `harmless` are the values of a refused field that ask for nothing, and so are accepted."""

    use: Use
    reason: str
    harmless: tuple[Any, ...] = ()
    ours: bool = False  # not OpenAI's: never part of the logged request


FIELDS: Mapping[str, Field] = {
    # what is asked
    "model": Field(Use.SERVER, "a task (served by its champion), the base model's id, or an adapter (admin keys)"),
    "messages": Field(Use.ENGINE, "the conversation"),
    "tools": Field(Use.ENGINE, "the functions that may be called"),
    "tool_choice": Field(Use.ENGINE, "attempts and retries obey it; reflections are sampled without tools"),
    "parallel_tool_calls": Field(Use.ENGINE, "as far as the engine can force it"),
    "response_format": Field(Use.ENGINE, "a grammar for attempts and retries; never for reflections"),
    # how it is sampled
    "temperature": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "top_p": Field(Use.ENGINE, "attempts and retries; reflections always at 1"),
    "frequency_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "presence_penalty": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "logit_bias": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "max_completion_tokens": Field(Use.ENGINE, "a limit of each attempt by itself"),
    "max_tokens": Field(Use.ENGINE, "the old name of max_completion_tokens, which wins where both are given"),
    "stop": Field(Use.ENGINE, "attempts and retries; reflections without"),
    "seed": Field(Use.ENGINE, "as far as the engine's backend is deterministic"),
    "logprobs": Field(Use.ENGINE, "those of the attempt that is returned"),
    "top_logprobs": Field(Use.ENGINE, "those of the attempt that is returned"),
    "top_k": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    "min_p": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    "repetition_penalty": Field(Use.ENGINE, "an extension that open engines share; off where it is not given"),
    # how it is answered
    "stream": Field(Use.SERVER, "with enforcing verifiers content is held until it is verified"),
    "stream_options": Field(
        Use.SERVER,
        "include_usage; include_attempts (ours) shows failed attempts and reflections as they come; "
        "include_obfuscation is ignored: nothing is padded",
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
    "metadata": Field(Use.LOGGED, "found again in the episode"),
    "user": Field(Use.LOGGED, "found again in the episode"),
    "safety_identifier": Field(Use.LOGGED, "found again in the episode; no abuse detection runs"),
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

ENGINE_FIELDS = tuple(name for name, field in FIELDS.items() if field.use is Use.ENGINE)
OUR_FIELDS = frozenset(name for name, field in FIELDS.items() if field.ours)
REFUSED_FIELDS = {name: field for name, field in FIELDS.items() if field.use is Use.REFUSED}

SAMPLING_DEFAULTS = REFLECTION_SAMPLING
"""What a silent request means: OpenAI's defaults, the plain distribution, sent in full. Else engines would sample by
the model's own defaults, and the log would not say by which."""
