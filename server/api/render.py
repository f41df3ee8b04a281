"""Renders a finished episode as OpenAI's objects: a whole completion, or the chunks of a stream.

Called by `server.api.chat` and `server.api.streams`. It never looks inside the loop, and never changes an episode.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from server.domain import Attempt, Episode, LoggedVerdict, Outcome, Reflection, Usage, VerifyMode
from server.errors import MulliganError, VerificationAbstained, VerificationFailed
from server.orchestration.reflection import render_attempt
from verifiers.base import Status

Headers = list[tuple[bytes, bytes]]


def render_usage(usage: Usage) -> dict[str, int]:
    """Render OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def render_mulligan(episode: Episode) -> dict[str, Any]:
    """Render what we add to OpenAI's object: the outcome and how it came about."""
    return {
        "episode_id": episode.id,
        "outcome": episode.outcome,
        "adapter": episode.adapter,
        "attempts": [_render_attempt(attempt) for attempt in episode.attempts],
        "reflections": [
            {"attempt": one.attempt, "text": one.text, "usage": render_usage(one.usage)} for one in episode.reflections
        ],
    }


def render_completion(episode: Episode) -> dict[str, Any]:
    """Render the whole completion: the last attempt in `choices`, everything in `usage`."""
    last = episode.attempts[-1]
    return {
        "id": completion_id(episode),
        "object": "chat.completion",
        "created": int(episode.created_at or time.time()),
        "model": episode.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, **last.answer},
                "logprobs": last.logprobs,
                "finish_reason": last.finish_reason,
            }
        ],
        "usage": render_usage(episode.usage),
        "mulligan": render_mulligan(episode),
    }


def render_chunks(episode: Episode, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Render a verified answer as the chunks of a stream; `mulligan` stands in the last one."""
    last, head = episode.attempts[-1], _chunk_head(episode)
    ours = {"mulligan": render_mulligan(episode)}
    for delta, logprobs in _deltas(last):
        yield {**head, "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}
    end = {**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": last.finish_reason}]}
    if not include_usage:
        yield end | ours
        return
    yield end
    yield {**head, "choices": [], "usage": render_usage(episode.usage), **ours}


def render_reasoning(episode: Episode, failed: Attempt, reflection: Reflection) -> Iterator[dict[str, Any]]:
    """Render a failed attempt and the reflection on it as `reasoning_content` deltas, each whole.

    They carry no role: clients that add deltas up would add that up too.
    """
    head = _chunk_head(episode)
    for text in (
        f"Attempt {failed.number} failed:\n{render_attempt(failed.answer)}\n\n",
        f"Reflection:\n{reflection.text}\n\n",
    ):
        delta = {"reasoning_content": text}
        yield {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}


def _chunk_head(episode: Episode) -> dict[str, Any]:
    return {
        "id": completion_id(episode),
        "object": "chat.completion.chunk",
        "created": int(episode.created_at or time.time()),
        "model": episode.model,
    }


def completion_id(episode: Episode) -> str:
    """Make the completion's id: the episode's, as OpenAI's ids look."""
    return "chatcmpl-" + episode.id.partition("_")[2]


def start_headers(episode: Episode) -> Headers:
    """Headers that are known when an episode begins."""
    return [(b"x-mulligan-episode", episode.id.encode()), (b"x-mulligan-adapter", episode.adapter.encode())]


def end_headers(episode: Episode) -> Headers:
    """Headers of a finished episode."""
    return [*start_headers(episode), (b"x-mulligan-outcome", episode.outcome.encode())]


def refusal_of(episode: Episode) -> MulliganError | None:
    """Read whether the policy wants an error in place of this answer."""
    if episode.verify is not VerifyMode.ENFORCE:
        return None
    last = episode.attempts[-1]
    if episode.outcome is Outcome.EXHAUSTED and episode.retry.on_failure == "error":
        error = VerificationFailed(f"No answer passed in {len(episode.attempts)} attempt(s); see mulligan.attempts.")
    elif last.status == Status.ABSTAINED and episode.retry.on_abstain == "error":
        error = VerificationAbstained("The answer could not be checked; see mulligan.attempts.")
    else:
        return None
    error.details = {"mulligan": render_mulligan(episode), "usage": render_usage(episode.usage)}
    return error


def render_verdict(verdict: LoggedVerdict) -> dict[str, Any]:
    """Render one verifier's verdict."""
    shown = {
        "verifier": verdict.verifier,
        "status": verdict.status,
        "score": verdict.score,
        "reason": verdict.reason,
        "duration_ms": round(verdict.duration_ms, 3),
    }
    return {**shown, "stdout": verdict.stdout} if verdict.stdout else shown


def _render_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "verdict": attempt.status,
        "status": attempt.status,
        "score": attempt.score,
        "reason": attempt.reason,
        "verdicts": [render_verdict(verdict) for verdict in attempt.verdicts],
        "finish_reason": attempt.finish_reason,
        "usage": render_usage(attempt.usage),
    }


def _deltas(last: Attempt) -> Iterator[tuple[dict[str, Any], Mapping[str, Any] | None]]:
    """Yield the role, then the text (and whatever else the engine put beside it), then each tool call in two parts."""
    yield {"role": "assistant", "content": "" if last.answer.get("content") is not None else None}, None
    beside = {name: value for name, value in last.answer.items() if name not in ("role", "tool_calls") and value}
    if beside:
        yield beside, last.logprobs
    for index, call in enumerate(last.answer.get("tool_calls") or ()):
        function = call["function"]
        opening = {"index": index, "id": call.get("id"), "type": "function"}
        yield {"tool_calls": [{**opening, "function": {"name": function["name"], "arguments": ""}}]}, None
        yield {"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]}, None
