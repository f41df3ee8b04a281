"""The loop: answer, verify, and where that fails reflect and retry.

Called by the API for every chat request and by the trainer's rollouts and gate, so that what is trained and gated is
what is served.

Only the latest failure and its reflection are in a retry's context. It must never hold a database session, and never
answer with an error where the client could have an answer.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from server.domain import Attempt, BindingMode, Episode, Outcome, Reflection, RetryPolicy, VerifyMode
from server.engine.base import Completion, Engine
from server.errors import EngineTimeout
from server.orchestration.reflection import Message, Prompts, hash_prompts, reflection_messages, retry_messages
from server.orchestration.retry import Budget
from server.orchestration.verification import NONE, VerifierSet
from verifiers.base import Status

Progress = Callable[[Attempt | Reflection], Awaitable[None]]
"""Is told of every attempt and reflection as soon as it is whole."""

Reflector = Callable[[Attempt], Awaitable[Reflection | None]]
"""Gives the reflection on a failed attempt in place of the adapter's own; None: the request is just asked again."""

REFLECTION_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""The plain distribution, in full: engines fill what is left out from the model's own defaults, and anything else
would bias the ratios of training."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Loop:
    """What stays the same while an episode runs."""

    episode: Episode
    engine: Engine
    verify: VerifierSet
    body: Mapping[str, Any]
    budget: Budget
    progress: Progress | None
    reflector: Reflector | None = None

    async def retry_while_failed(self) -> None:
        """Reflect and retry as long as the answer fails and the budgets allow it."""
        episode = self.episode
        while (failed := episode.attempts[-1]).status == Status.FAILED and self.budget.allows_retry(
            failed, episode.usage, self.body
        ):
            try:
                async with asyncio.timeout(self.budget.seconds_to_retry()):
                    reflection = await self._reflect(failed)
                    if reflection is not None:
                        episode.reflections.append(reflection)
                        await self._tell(reflection)
                        if not self.budget.allows_attempt(failed, reflection, episode.usage, self.body):
                            return
                    retried = await self._retry(failed, reflection)
            except Exception as error:  # noqa: BLE001 -- the client has an answer: whatever broke the retry, it gets that
                episode.error = f"retry {failed.number}: {type(error).__name__}: {error}".rstrip(": ")
                # What it says may quote the request: only the episode log has that.
                _log.warning("retry_given_up", episode=episode.id, retry=failed.number, error=type(error).__name__)
                _log.debug("retry_given_up", episode=episode.id, error=episode.error)
                return
            episode.attempts.append(retried)
            await self._tell(retried)

    async def _retry(self, failed: Attempt, reflection: Reflection | None) -> Attempt:
        messages = None if reflection is None else self._retry_messages(failed, reflection)
        adapter = self.episode.adapter
        number = failed.number + 1
        return await attempt(
            number, self.body, engine=self.engine, adapter=adapter, verify=self.verify, messages=messages
        )

    async def _reflect(self, failed: Attempt) -> Reflection | None:
        if self.reflector is not None:
            return await self.reflector(failed)
        adapter, policy = self.episode.adapter, self.episode.retry
        return await reflect(
            failed, self.body, engine=self.engine, adapter=adapter, prompts=self.budget.prompts, policy=policy
        )

    def _retry_messages(self, failed: Attempt, reflection: Reflection) -> list[dict[str, Any]]:
        reason = shown_reason(failed, self.episode.retry)
        return retry_messages(self.body["messages"], failed.answer, reflection.text, self.budget.prompts, reason)

    async def _tell(self, part: Attempt | Reflection) -> None:
        if self.progress is not None:
            await self.progress(part)


async def run(
    episode: Episode,
    *,
    engine: Engine,
    verify: VerifierSet,
    body: Mapping[str, Any],
    deadline_at: float | None = None,
    progress: Progress | None = None,
    reflector: Reflector | None = None,
) -> Episode:
    """Run one episode to its outcome, filling it as it goes, and return it.

    `body` holds engine-ready OpenAI fields, messages and tools included. `deadline_at` is when the client stops
    waiting (Unix seconds). An episode that has its first attempt already goes on from there, as controls do, which
    bring a `reflector` of their own.

    Raises: the engine's errors where there is no answer at all; the episode is marked `errored` or `cancelled` then.
    """
    started, started_at = time.perf_counter(), time.time()
    verify = verify if episode.verify is not VerifyMode.OFF else NONE
    try:
        # Only the client's own deadline limits the first attempt.
        if not episode.attempts:
            first = await attempt(
                1, body, engine=engine, adapter=episode.adapter, verify=verify, deadline_at=deadline_at
            )
            episode.attempts.append(first)
            if progress is not None:
                await progress(first)
        first = episode.attempts[0]
        if first.status == Status.FAILED and episode.verify is VerifyMode.ENFORCE:
            budget = Budget(episode.retry, Prompts(**episode.prompts), deadline_at, started_at)
            await _Loop(episode, engine, verify, body, budget, progress, reflector).retry_while_failed()
    except asyncio.CancelledError:
        episode.outcome = Outcome.CANCELLED
        raise
    except Exception as error:
        episode.outcome, episode.error = Outcome.ERRORED, f"{type(error).__name__}: {error}"
        raise
    finally:
        episode.duration_ms = (time.perf_counter() - started) * 1000
    episode.outcome = read_outcome(episode.attempts[-1])
    return episode


async def attempt(
    number: int,
    body: Mapping[str, Any],
    *,
    engine: Engine,
    adapter: str,
    verify: VerifierSet,
    messages: Sequence[Message] | None = None,
    deadline_at: float | None = None,
    keep_tokens: Callable[[Completion], object] | None = None,
) -> Attempt:
    """Answer once and judge the answer against the client's own request.

    `messages` is what the engine is shown in place of the request's own: a retry's conversation. At the deadline (Unix
    seconds) an answer that is there is returned, whether it was judged or not. `keep_tokens` is given a chat's answer
    with its token ids.

    Raises: the engine's errors; EngineTimeout where there is no answer at the deadline.
    """
    started_at, started = time.time(), time.perf_counter()
    try:
        async with asyncio.timeout(None if deadline_at is None else deadline_at - started_at):
            completion = await _complete(body, engine, adapter, messages, with_tokens=keep_tokens is not None)
    except TimeoutError:
        raise EngineTimeout("The engine gave no answer before the deadline.") from None
    engine_ms = (time.perf_counter() - started) * 1000
    if keep_tokens is not None:
        keep_tokens(completion)
    return await judge(
        number, body, completion, verify=verify, started_at=started_at, engine_ms=engine_ms, deadline_at=deadline_at
    )


async def _complete(
    body: Mapping[str, Any],
    engine: Engine,
    adapter: str,
    messages: Sequence[Message] | None,
    *,
    with_tokens: bool,
) -> Completion:
    tokens = {"with_tokens": True} if with_tokens else {}
    if messages is not None:
        asked = {name: value for name, value in body.items() if name != "prompt"}
        return await engine.complete({**asked, "messages": messages}, adapter, **tokens)
    if "prompt" in body:
        return await engine.complete_text(_text_body(body), adapter)
    return await engine.complete(body, adapter, **tokens)


def open_stream(engine: Engine, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
    """Open the stream of a first attempt: the engine's payloads, the usage at the end among them."""
    with_usage = {**body, "stream_options": {"include_usage": True}}
    return (
        engine.stream_text(_text_body(with_usage), adapter) if "prompt" in body else engine.stream(with_usage, adapter)
    )


def _text_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a body with a raw `prompt` into what `/v1/completions` takes: its names differ from a chat's."""
    text = {name: value for name, value in body.items() if name not in ("messages", "top_logprobs", "logprobs")}
    if "max_completion_tokens" in text:
        text["max_tokens"] = text.pop("max_completion_tokens")
    if body.get("logprobs"):
        text["logprobs"] = body.get("top_logprobs") or 0
    return text


async def judge(
    number: int,
    body: Mapping[str, Any],
    completion: Completion,
    *,
    verify: VerifierSet,
    started_at: float,
    engine_ms: float,
    deadline_at: float | None = None,
) -> Attempt:
    """Judge a whole answer, wherever it came from, against the client's own request; not past the deadline."""
    answered = time.perf_counter()
    most_s = math.inf if deadline_at is None else max(0.0, deadline_at - time.time())
    request = {"messages": body["messages"], "tools": body.get("tools") or []}
    status, score, reason, verdicts = await verify.judge(request, completion.message, most_s=most_s)
    return Attempt(
        number=number,
        answer=completion.message,
        finish_reason=completion.finish_reason,
        usage=completion.usage,
        status=status,
        score=score,
        reason=reason,
        verdicts=verdicts,
        sampling=read_sampling(body),
        started_at=started_at,
        engine_ms=engine_ms,
        verify_ms=(time.perf_counter() - answered) * 1000,
        logprobs=completion.choice_logprobs,
    )


async def reflect(
    failed: Attempt, body: Mapping[str, Any], *, engine: Engine, adapter: str, prompts: Prompts, policy: RetryPolicy
) -> Reflection:
    """Let the model write what went wrong, sampled plainly: none of the client's sampling, stops, tools or grammar.

    Raises: the engine's errors.
    """
    started_at, started = time.time(), time.perf_counter()
    tools, reason = body.get("tools") or (), shown_reason(failed, policy)
    messages = reflection_messages(body["messages"], tools, failed.answer, prompts, reason)
    sampling = {**REFLECTION_SAMPLING, "max_completion_tokens": policy.reflection_max_tokens}
    completion = await engine.complete({"messages": messages, **sampling}, adapter, with_tokens=True)
    return Reflection(
        attempt=failed.number,
        text=completion.message.get("content") or "",
        usage=completion.usage,
        prompt_ids=completion.prompt_ids,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        adapter=adapter,
        template_hash=hash_prompts(prompts),
        sampling=sampling,
        finish_reason=completion.finish_reason,
        started_at=started_at,
        engine_ms=(time.perf_counter() - started) * 1000,
    )


def read_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read everything that is sent beside the messages."""
    return {name: value for name, value in body.items() if name not in ("messages", "prompt")}


def shown_reason(failed: Attempt, policy: RetryPolicy) -> str | None:
    """Read what the model may be told of a failure: nothing, or the reasons that their verifiers call safe."""
    if policy.show != "reason":
        return None
    counted = (one for one in failed.verdicts if one.mode == BindingMode.ENFORCE)
    safe = (one.reason for one in counted if one.status == Status.FAILED and one.safe_for_model)
    return "; ".join(reason for reason in safe if reason) or None


def read_outcome(last: Attempt) -> Outcome:
    """Read an episode's outcome from its last attempt."""
    if last.status == Status.PASSED:
        return Outcome.PASSED if last.number == 1 else Outcome.RECOVERED
    return Outcome.EXHAUSTED if last.status == Status.FAILED else Outcome.UNVERIFIED
