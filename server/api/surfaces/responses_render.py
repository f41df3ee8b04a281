"""Renders an episode as OpenAI's `response` object, fresh or from the log. Pure; called by that surface and its route.

What was asked is in the episode's request under `responses`: what the response repeats of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from server.api.render import refusal_of, render_mulligan
from server.api.surfaces.responses_items import Item, call_id, suffix_of, text_part
from server.domain import Attempt, Episode, Outcome
from server.errors import MulliganError

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response_id(episode: Episode) -> str:
    """Make the response's id: the episode's, as OpenAI's ids look."""
    return "resp_" + suffix_of(episode.id)


def render_begun(episode: Episode, echo: Mapping[str, Any]) -> dict[str, Any]:
    """Render a response of which nothing is known yet."""
    return _render(episode, echo, "in_progress", ())


def render_response(episode: Episode, echo: Mapping[str, Any], output: Sequence[Item] | None = None) -> dict[str, Any]:
    """Render a finished response: its last attempt as output, everything in `usage`."""
    last = episode.attempts[-1]
    reason = _INCOMPLETE.get(last.finish_reason)
    shown = _render(episode, echo, "incomplete" if reason else "completed", output or render_output(episode))
    return {
        **shown,
        "incomplete_details": {"reason": reason} if reason else None,
        "completed_at": None if reason else int(episode.created_at + episode.duration_ms / 1000),
        "usage": render_response_usage(episode),
        "mulligan": render_mulligan((episode,)),
    }


def render_failed(episode: Episode, echo: Mapping[str, Any], error: MulliganError) -> dict[str, Any]:
    """Render a response that came to nothing. OpenAI's codes of it are few; `type` says more."""
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    return {
        **_render(episode, echo, "failed", ()),
        "error": {"code": code, "message": error.message, "type": error.type, "param": error.param},
        "usage": render_response_usage(episode),
        "mulligan": render_mulligan((episode,)),
    }


def render_logged(episode: Episode, echo: Mapping[str, Any]) -> dict[str, Any]:
    """Render a response from the log, however it ended."""
    if (error := failure_of(episode)) is not None:
        return render_failed(episode, echo, error)
    if episode.outcome is Outcome.CANCELLED:
        ours = {"usage": render_response_usage(episode), "mulligan": render_mulligan((episode,))}
        return {**_render(episode, echo, "cancelled", ()), **ours}
    return render_response(episode, echo)


def failure_of(episode: Episode) -> MulliganError | None:
    """Read why there is no answer, where there is none: the engine broke, or the policy refused it."""
    if episode.outcome is Outcome.ERRORED or (not episode.attempts and episode.outcome is not Outcome.CANCELLED):
        return MulliganError(episode.error or "No answer was made.")
    return None if episode.outcome is Outcome.CANCELLED else refusal_of((episode,))


def render_response_usage(episode: Episode) -> dict[str, Any]:
    """Render OpenAI's `usage` of responses; what was generated and is not the answer counts as reasoning."""
    usage = episode.usage
    answer = episode.attempts[-1].usage.completion_tokens if episode.attempts else 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens - answer},
        "total_tokens": usage.total_tokens,
    }


def render_output(episode: Episode) -> list[Item]:
    """Render the last attempt as items: the engine's reasoning, the text, the calls."""
    last, suffix = episode.attempts[-1], suffix_of(episode.id)
    answer, items = last.answer, []
    calls = answer.get("tool_calls") or ()
    if reasoning := answer.get("reasoning_content"):
        items.append(reasoning_item(suffix, reasoning))
    if answer.get("content") or not calls:
        items.append(message_item(suffix, answer.get("content") or "", last))
    items += [call_item(suffix, index, call) for index, call in enumerate(calls)]
    return items


def reasoning_item(suffix: str, text: str) -> Item:
    """Make the item of what the engine calls reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{suffix}", "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def message_item(suffix: str, text: str, last: Attempt) -> Item:
    """Make the item of an answer's text."""
    status = "incomplete" if last.finish_reason in _INCOMPLETE else "completed"
    part = text_part(text, render_logprobs((last.logprobs or {}).get("content") or ()))
    return {"id": f"msg_{suffix}", "type": "message", "role": "assistant", "status": status, "content": [part]}


def call_item(suffix: str, index: int, call: Mapping[str, Any]) -> Item:
    """Make the item of a call."""
    function = call["function"]
    return {
        "id": f"fc_{suffix}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id(call, index, suffix),
        "name": function["name"],
        "arguments": function["arguments"],
    }


def render_logprobs(logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Render chat's logprobs as responses have them: with bytes, whatever the engine left out."""
    return [
        {**_render_token(one), "top_logprobs": [_render_token(top) for top in one.get("top_logprobs") or ()]}
        for one in logprobs
    ]


def _render_token(one: Mapping[str, Any]) -> dict[str, Any]:
    token = one["token"]
    given = one.get("bytes")
    return {
        "token": token,
        "logprob": one["logprob"],
        "bytes": list(token.encode()) if given is None else given,
    }


def _render(episode: Episode, echo: Mapping[str, Any], status: str, output: Sequence[Item]) -> dict[str, Any]:
    return {
        "id": response_id(episode),
        "object": "response",
        "created_at": int(episode.created_at),
        "status": status,
        "model": episode.model,
        **echo,
        "output": list(output),
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
        "usage": None,
    }
