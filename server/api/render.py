"""Renders a finished episode as OpenAI's objects: a whole completion, or the chunks of a stream.

Called by the surfaces and the walk. It never looks inside the loop, and never changes an episode.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.domain import Attempt, BindingMode, Episode, LoggedVerdict, Outcome, Reflection, Usage, VerifyMode
from server.errors import MulliganError, VerificationAbstained, VerificationFailed
from server.orchestration.reflection import render_attempt
from verifiers.base import Status

Headers = list[tuple[bytes, bytes]]
_MOST_WHY = 300


def render_usage(usage: Usage) -> dict[str, int]:
    """Render OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def render_mulligan(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Render what we add to OpenAI's object: the outcome and how it came about; of several choices, each by itself."""
    if len(episodes) == 1:
        return _render_episode(episodes[0])
    return {
        "outcome": worst_outcome(episodes),
        "adapter": episodes[0].adapter,
        "usage": render_breakdown(episodes),
        "choices": [_render_episode(episode) for episode in episodes],
    }


def _render_episode(episode: Episode) -> dict[str, Any]:
    return {
        "episode_id": episode.id,
        "outcome": episode.outcome,
        "adapter": episode.adapter,
        "usage": render_breakdown((episode,)),
        "attempts": [_render_attempt(attempt) for attempt in episode.attempts],
        "reflections": [
            {"attempt": one.attempt, "text": one.text, "usage": render_usage(one.usage)} for one in episode.reflections
        ],
    }


def render_breakdown(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Render what the sum in `usage` is made of: the answers that are returned, what failed before, and reflections."""
    if len(episodes) == len(episodes[0].attempts) == 1:  # as most requests are
        return {"answer": render_usage(episodes[0].attempts[0].usage), **_NOTHING_ELSE}
    answers = failed = reflections = Usage()
    for episode in episodes:
        for attempt in episode.attempts[:-1]:
            failed += attempt.usage
        for attempt in episode.attempts[-1:]:
            answers += attempt.usage
        for reflection in episode.reflections:
            reflections += reflection.usage
    parts = {"answer": answers, "failed_attempts": failed, "reflections": reflections}
    return {name: render_usage(usage) for name, usage in parts.items()}


_NOTHING_ELSE = {"failed_attempts": render_usage(Usage()), "reflections": render_usage(Usage())}


def sum_usage(episodes: Sequence[Episode]) -> Usage:
    """Add up everything that was generated for a request."""
    if len(episodes) == 1:
        return episodes[0].usage
    return sum((episode.usage for episode in episodes), Usage())


_FROM_WORST = (Outcome.ERRORED, Outcome.CANCELLED, Outcome.EXHAUSTED, Outcome.UNVERIFIED, Outcome.RECOVERED)


def worst_outcome(episodes: Sequence[Episode]) -> Outcome:
    """Read the outcome of a request with several choices: that of the choice which went worst."""
    if len(episodes) == 1:
        return episodes[0].outcome
    outcomes = {episode.outcome for episode in episodes}
    return next((outcome for outcome in _FROM_WORST if outcome in outcomes), Outcome.PASSED)


def render_completion(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Render the whole completion: the last attempt of each choice in `choices`, everything in `usage`."""
    return {
        **_head(episodes, "chat.completion"),
        "choices": [_render_choice(index, episode.attempts[-1]) for index, episode in enumerate(episodes)],
        "usage": render_usage(sum_usage(episodes)),
        "mulligan": render_mulligan(episodes),
    }


def _render_choice(index: int, last: Attempt) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": None, **last.answer},
        "logprobs": last.logprobs,
        "finish_reason": last.finish_reason,
    }


def render_chunks(episodes: Sequence[Episode], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Render verified answers as the chunks of a stream; `mulligan` stands in the one that finishes and in the last."""
    head, ours = _head(episodes, "chat.completion.chunk"), {"mulligan": render_mulligan(episodes)}
    for index, episode in enumerate(episodes):
        last = episode.attempts[-1]
        for delta, logprobs in _deltas(last):
            yield {**head, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": last.finish_reason}
        end = {**head, "choices": [choice]}
        yield end if index < len(episodes) - 1 else end | ours
    if include_usage:
        yield {**render_usage_chunk(episodes), **ours}


def render_usage_chunk(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Render the chunk without choices that tells the usage."""
    return {**_head(episodes, "chat.completion.chunk"), "choices": [], "usage": render_usage(sum_usage(episodes))}


def render_reasoning(
    episodes: Sequence[Episode], index: int, failed: Attempt, reflection: Reflection
) -> Iterator[dict[str, Any]]:
    """Render a failed attempt and the reflection on it as `reasoning_content` deltas, each whole.

    They carry no role: clients that add deltas up would add that up too.
    """
    head = _head(episodes, "chat.completion.chunk")
    for text in render_reasons(failed, reflection):
        delta = {"reasoning_content": text}
        yield {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]}


def render_reasons(failed: Attempt, reflection: Reflection) -> tuple[str, str]:
    """Word a failed attempt and the reflection on it for a person who watches."""
    return (
        f"Attempt {failed.number} failed:\n{render_attempt(failed.answer)}\n\n",
        f"Reflection:\n{reflection.text}\n\n",
    )


def _head(episodes: Sequence[Episode], kind: str) -> dict[str, Any]:
    first = episodes[0]
    return {"id": completion_id(first), "object": kind, "created": int(first.created_at), "model": first.model}


def completion_id(episode: Episode) -> str:
    """Make the completion's id: the episode's, as OpenAI's ids look."""
    return "chatcmpl-" + episode.id.partition("_")[2]


def start_headers(episodes: Sequence[Episode]) -> Headers:
    """Headers that are known when an episode begins; of several choices, those of the first."""
    first = episodes[0]
    return [(b"x-mulligan-episode", first.id.encode()), (b"x-mulligan-adapter", first.adapter.encode())]


def end_headers(episodes: Sequence[Episode]) -> Headers:
    """Headers of finished episodes."""
    return [*start_headers(episodes), (b"x-mulligan-outcome", worst_outcome(episodes).encode())]


def refusal_of(episodes: Sequence[Episode]) -> MulliganError | None:
    """Read whether the policy wants an error in place of these answers: one that may not be returned is enough."""
    errors = (_refusal_of_one(episode) for episode in episodes)
    error = next((error for error in errors if error is not None), None)
    if error is not None:
        error.details = {"mulligan": render_mulligan(episodes), "usage": render_usage(sum_usage(episodes))}
    return error


def _refusal_of_one(episode: Episode) -> MulliganError | None:
    if episode.verify is not VerifyMode.ENFORCE:
        return None
    last = episode.attempts[-1]
    if episode.outcome is Outcome.EXHAUSTED and episode.retry.on_failure == "error":
        tried = f"No answer passed in {len(episode.attempts)} attempt(s)"
        return VerificationFailed(f"{tried}; the last one: {_say_why(last)}. See error.mulligan.")
    if last.status == Status.ABSTAINED and episode.retry.on_abstain == "error":
        return VerificationAbstained(f"The answer could not be checked: {_say_why(last)}. See error.mulligan.")
    return None


def _say_why(last: Attempt) -> str:
    """Word the verdicts on an answer: many clients show an error's message and nothing else of it."""
    counted = [verdict for verdict in last.verdicts if verdict.mode == BindingMode.ENFORCE]
    decisive = [verdict for verdict in counted if verdict.status == last.status]
    said = "; ".join(f"{verdict.verifier}: {verdict.reason or verdict.status}" for verdict in decisive)
    return (said if len(said) <= _MOST_WHY else said[:_MOST_WHY] + "...").rstrip(".")


def render_verdict(verdict: LoggedVerdict) -> dict[str, Any]:
    """Render one verifier's verdict; why it abstained and what it is for only where that is not the usual."""
    shown: dict[str, Any] = {
        "verifier": verdict.verifier,
        "status": verdict.status,
        "score": verdict.score,
        "reason": verdict.reason,
        "duration_ms": round(verdict.duration_ms, 3),
    }
    if verdict.stdout:
        shown["stdout"] = verdict.stdout
    if verdict.cause:
        shown["cause"] = verdict.cause
    if verdict.mode != BindingMode.ENFORCE:
        shown["mode"] = verdict.mode
    return shown


def _render_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "verdict": attempt.status,
        "status": attempt.status,
        "score": attempt.score,
        "reason": attempt.reason,
        "verdicts": [render_verdict(verdict) for verdict in attempt.verdicts if verdict.mode != BindingMode.AUDIT],
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
