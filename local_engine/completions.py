"""`POST /v1/completions`: raw texts without a chat template, whole and streamed, in the shapes of SGLang 0.5.23.

Called by the app. What SGLang ignores without a word (`suffix`, `best_of`) is refused here, and so is what this engine
cannot compute: the log-probabilities of an echoed prompt.
"""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from local_engine.answers import StreamedText, build_usage, read_finish
from local_engine.errors import Refused
from local_engine.prompts import encode_prompt
from local_engine.sampling import OPENAI_FIELDS, Sampling, read_sampling
from local_engine.sequences import Sequence
from local_engine.service import Asked, Client, Service, read_priority
from local_engine.text import decode, final_text

_DEFAULT_MAX_TOKENS = 16
_MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A raw text completion's request, read and checked. `echoed` is what the answer begins with."""

    model: str
    adapter: str
    prompt: list[int]
    echoed: str
    sampling: Sampling
    asked: Asked
    include_usage: bool


def read_text(body: Mapping[str, Any], service: Service) -> TextRequest:
    """Read and check a request, and make tokens of its prompt.

    Raises: Refused.
    """
    adapter = service.resolve_model(body.get("model"))
    logprobs = body.get("logprobs")
    if logprobs is not None and (type(logprobs) is not int or not 0 <= logprobs <= _MOST_LOGPROBS):
        raise Refused(f"logprobs must be an integer from 0 to {_MOST_LOGPROBS}.")
    _refuse_unsupported(body)
    given = {parameter: body[name] for name, parameter in OPENAI_FIELDS.items() if name in body}
    given["max_new_tokens"] = _DEFAULT_MAX_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
    if given["max_new_tokens"] == 0:
        raise Refused("max_tokens must be positive.")
    given["skip_special_tokens"] = body.get("skip_special_tokens", True)
    sampling = read_sampling(given, service.base.vocabulary)
    prompt, text = _read_prompt(body.get("prompt"), service)
    return TextRequest(
        model=str(body["model"]),
        adapter=adapter,
        prompt=prompt,
        echoed=text if body.get("echo") else "",
        sampling=sampling,
        asked=Asked(
            id=body.get("rid"),
            priority=read_priority(body),
            streams=bool(body.get("stream")),
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
        ),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("echo") and body.get("logprobs"):
        raise Refused("echo together with logprobs is not supported: this engine keeps none of the prompt's.")
    if body.get("suffix"):
        raise Refused("suffix is not supported.")
    if body.get("best_of") not in (None, 1):
        raise Refused("best_of must be 1.")
    if (body.get("response_format") or {}).get("type", "text") != "text":
        raise Refused("response_format is not supported here, only in chats.")


def _read_prompt(prompt: Any, service: Service) -> tuple[list[int], str]:
    if prompt in ("", []):
        raise Refused("Prompt cannot be empty.")
    if isinstance(prompt, str):
        return encode_prompt(service.base, prompt), prompt
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise Refused("prompt must be one text, or one list of token ids.")
    if not all(0 <= token < service.base.vocabulary for token in prompt):
        raise Refused(f"prompt must hold token ids below {service.base.vocabulary}.")
    return prompt, decode(service.base.tokenizer, prompt, skip_special_tokens=True)


async def complete_text(request: TextRequest, service: Service, client: Client) -> dict[str, Any]:
    """Answer with one whole text."""
    sequence = service.begin(request.prompt, request.adapter, request.sampling, request.asked)
    await service.finish(sequence, client)
    reason, matched = read_finish(sequence)
    choice = {
        "index": 0,
        "text": request.echoed + final_text(service.base.tokenizer, sequence),
        "logprobs": _logprobs(sequence, service, 0) if request.asked.logprobs else None,
        "finish_reason": reason,
        "matched_stop": matched,
    }
    return {
        **_head(request, sequence),
        "choices": [choice],
        "usage": build_usage(sequence),
        "metadata": {"weight_version": "default"},
    }


async def stream_text(request: TextRequest, sequence: Sequence, service: Service, client: Client) -> AsyncIterator[Any]:
    """Give the chunks of a streamed text, without framing."""
    head = _head(request, sequence)

    def chunk(text: str, logprobs: Any, reason: str | None = None, matched: Any = None) -> Any:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason, "matched_stop": matched}
        return {**head, "choices": [choice], "usage": None}

    text = StreamedText(service.base.tokenizer, request.sampling, parses_calls=False)
    pending, seen = request.echoed, 0
    async for count in service.follow(sequence, client):
        pending += text.push(sequence, seen, count)
        logprobs = _logprobs(sequence, service, seen, count) if request.asked.logprobs and count > seen else None
        seen = count
        if pending or logprobs:
            yield chunk(pending, logprobs)
            pending = ""
    rest, _ = text.finish(sequence)
    yield chunk(rest, None, *read_finish(sequence))
    if request.include_usage:
        yield {**head, "choices": [], "usage": build_usage(sequence)}


def _head(request: TextRequest, sequence: Sequence) -> dict[str, Any]:
    return {"id": sequence.id, "object": "text_completion", "created": int(time.time()), "model": request.model}


def _logprobs(sequence: Sequence, service: Service, start: int, end: int | None = None) -> dict[str, Any]:
    tokens = sequence.tokens[start:end]
    rows = sequence.tops[start:end] if sequence.top_logprobs else []
    return {
        "text_offset": [-1] * len(tokens),
        "token_logprobs": sequence.logprobs[start : start + len(tokens)],
        "tokens": [service.texts.text(token) for token in tokens],
        "top_logprobs": [{service.texts.text(token): logprob for logprob, token in row} for row in rows],
    }
