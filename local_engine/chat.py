"""`POST /v1/chat/completions`: whole answers and streams, in the shapes of SGLang 0.5.23.

Called by the app. Fields that this engine cannot apply are refused by name; fields that change nothing are ignored.
"""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from local_engine.answer_shapes import read_choice, read_shape
from local_engine.answers import StreamedText, build_meta_info, build_usage, read_finish
from local_engine.errors import Refused
from local_engine.grammars import GrammarSource
from local_engine.prompts import read_tools, render_prompt
from local_engine.sampling import OPENAI_FIELDS, Sampling, read_sampling
from local_engine.sequences import Sequence
from local_engine.service import Asked, Client, Service, read_priority
from local_engine.text import final_text
from local_engine.tool_calls import parse_tool_calls

_MOST_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request, read and checked."""

    model: str
    adapter: str
    prompt: list[int]
    sampling: Sampling
    shape: GrammarSource | None
    parses_calls: bool
    asked: Asked
    logprobs: bool
    token_ids: bool
    meta_info: bool
    include_usage: bool


def read_chat(body: Mapping[str, Any], service: Service) -> ChatRequest:
    """Read and check a request, and render its prompt.

    Raises: Refused.
    """
    adapter = service.resolve_model(body.get("model"))
    _refuse_unsupported(body)
    streams = bool(body.get("stream"))
    if streams and (body.get("return_token_ids") or body.get("return_meta_info")):
        raise Refused("return_token_ids and return_meta_info are not supported with streaming.")
    choice, tools = read_choice(body.get("tool_choice"), read_tools(body.get("tools")))
    given = {parameter: body[name] for name, parameter in OPENAI_FIELDS.items() if name in body}
    given["max_new_tokens"] = body.get("max_completion_tokens") or body.get("max_tokens")
    # With tools, marks like <tool_call> have to stay in the text even where they are special tokens.
    given["skip_special_tokens"] = False if tools else body.get("skip_special_tokens", True)
    top_logprobs = body.get("top_logprobs") or 0
    if not isinstance(top_logprobs, int) or not 0 <= top_logprobs <= _MOST_TOP_LOGPROBS:
        raise Refused(f"top_logprobs must be an integer from 0 to {_MOST_TOP_LOGPROBS}.")
    prompt = body.get("input_ids")
    if prompt is None:
        template_kwargs = body.get("chat_template_kwargs") or {}
        if choice == "required":  # as in SGLang: some templates say so to the model
            template_kwargs = {"tool_choice": choice, **template_kwargs}
        prompt = render_prompt(service.base, body.get("messages"), tools, template_kwargs)
    return ChatRequest(
        model=str(body["model"]),
        adapter=adapter,
        prompt=prompt,
        sampling=read_sampling(given, service.base.vocabulary),
        shape=read_shape(body, choice, tools),
        parses_calls=bool(tools),
        asked=Asked(
            id=body.get("rid"),
            priority=read_priority(body),
            streams=streams,
            logprobs=bool(body.get("logprobs")),
            top_logprobs=top_logprobs,
        ),
        logprobs=bool(body.get("logprobs")),
        token_ids=bool(body.get("return_token_ids")),
        meta_info=bool(body.get("return_meta_info")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("continue_final_message"):
        raise Refused("continue_final_message is not supported.")


async def begin_chat(request: ChatRequest, service: Service) -> Sequence:
    """Build what the answer is forced into, and put the prompt into the decoder. Raises: Refused, DecodingFailed."""
    grammar = await service.build_grammar(request.shape)
    return service.begin(request.prompt, request.adapter, request.sampling, request.asked, grammar)


async def complete_chat(request: ChatRequest, service: Service, client: Client) -> dict[str, Any]:
    """Answer with one whole completion."""
    sequence = await begin_chat(request, service)
    await service.finish(sequence, client)
    text = final_text(service.base.tokenizer, sequence)
    calls: list[dict[str, Any]] = []
    if request.parses_calls:
        text, calls = parse_tool_calls(text)
    message: dict[str, Any] = {"role": "assistant", "content": text, "reasoning_content": None}
    if calls:
        message["tool_calls"] = calls
    reason, matched = read_finish(sequence, called=bool(calls))
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "logprobs": {"content": _logprobs(sequence, service, 0)} if request.logprobs else None,
        "finish_reason": reason,
        "matched_stop": matched,
    }
    if request.token_ids:
        choice |= {"prompt_token_ids": sequence.prompt, "response_token_ids": sequence.tokens}
    if request.meta_info:
        choice["meta_info"] = build_meta_info(sequence, service, with_text=True)
    return {
        "id": sequence.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [choice],
        "usage": build_usage(sequence),
        "metadata": {"weight_version": "default"},
    }


async def stream_chat(request: ChatRequest, sequence: Sequence, service: Service, client: Client) -> AsyncIterator[Any]:
    """Give the chunks of a streamed completion, without framing."""
    head = {
        "id": sequence.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": request.model,
    }

    def chunk(delta: dict[str, Any], logprobs: Any = None, reason: str | None = None, matched: Any = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason, "matched_stop": matched}
        return {**head, "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    text = StreamedText(service.base.tokenizer, request.sampling, parses_calls=request.parses_calls)
    seen = 0
    async for count in service.follow(sequence, client):
        content = text.push(sequence, seen, count)
        logprobs = {"content": _logprobs(sequence, service, seen, count)} if request.logprobs and count > seen else None
        seen = count
        if content or logprobs:
            yield chunk({"content": content} if content else {}, logprobs)
    content, calls = text.finish(sequence)
    if content:
        yield chunk({"content": content})
    for call in calls:
        yield chunk({"tool_calls": [call]})
    reason, matched = read_finish(sequence, called=bool(calls))
    yield chunk({}, None, reason, matched)
    if request.include_usage:
        yield {**head, "choices": [], "usage": build_usage(sequence)}


def _logprobs(sequence: Sequence, service: Service, start: int, end: int | None = None) -> list[dict[str, Any]]:
    def token(id_: int, logprob: float) -> dict[str, Any]:
        return {"token": service.texts.text(id_), "bytes": service.texts.bytes(id_), "logprob": logprob}

    rows = sequence.tops[start:end] if sequence.top_logprobs else [[]] * len(sequence.tokens[start:end])
    return [
        {**token(id_, logprob), "top_logprobs": [token(other, value) for value, other in row]}
        for id_, logprob, row in zip(sequence.tokens[start:end], sequence.logprobs[start:end], rows, strict=False)
    ]
