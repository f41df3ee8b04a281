"""Selects what a round learns from: logged failures of the task that can be reflected on, retried and judged again.

Called by trainer.round. It reads the episode log and decides; it must never sample, and never take a held-out
conversation.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from server.domain import Attempt, Episode, Reflection
from server.orchestration.episode import REFLECTION_SAMPLING, shown_reason
from server.orchestration.reflection import Prompts, reflection_messages
from server.orchestration.verification import bind
from trainer.errors import RoundFailed
from trainer.samples import Failure, LoggedReflection, read_reward
from trainer.settings import TrainerSettings
from verifiers.base import InvalidVerifier, Status


class FailureLog(Protocol):
    """What selection needs of the episode store."""

    async def failures(self, task: str, *, since: float = 0, limit: int) -> list[Episode]:
        """List logged failures of the training split, recovered ones first, newest first."""
        ...


class ChatTokenizer(Protocol):
    """What selection needs of the model's tokenizer."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a conversation as token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The failures of a round, those with a logged successful reflection first, and why others were passed over."""

    failures: list[Failure]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, float]:
        """Say in figures what was selected."""
        return {
            "failures": len(self.failures),
            "recovered": sum(failure.recovered for failure in self.failures),
            "tokenised": sum(failure.tokenised for failure in self.failures),
            "logged_reflections": sum(len(failure.logged) for failure in self.failures),
            **{f"passed_over: {why}": count for why, count in self.passed_over.items()},
        }


async def select(task: str, log: FailureLog, tokenizer: ChatTokenizer, settings: TrainerSettings) -> Selection:
    """Select the failures of `task` to learn from, one for each reflection prompt.

    Raises: RoundFailed where there are fewer than `min_failures`.
    """
    chosen: dict[tuple[int, ...], Failure] = {}
    passed_over: Counter[str] = Counter()
    for episode in await log.failures(task, limit=settings.max_failures):
        failure = read_failure(episode, tokenizer)
        if isinstance(failure, str):
            passed_over[failure] += 1
            continue
        key = tuple(failure.prompt_ids)
        if key in chosen:
            passed_over["the same failure again"] += 1
            failure = _merge(chosen[key], failure)
        chosen[key] = failure
    failures = sorted(chosen.values(), key=lambda failure: not failure.recovered)  # stable: newest first inside
    if len(failures) < settings.min_failures:
        others = "; ".join(f"{count} passed over: {why}" for why, count in passed_over.items())
        raise RoundFailed(
            f"task {task!r} has too few logged failures to learn from: {len(failures)} of {settings.min_failures}"
            + (f" ({others})" if others else "")
        )
    return Selection(failures, dict(passed_over))


def _pass_over(episode: Episode) -> str | None:
    """Say why an episode is nothing to learn from, by what is in the log alone."""
    if episode.split != "training":
        return "held out"
    if not episode.trains:
        return "its key opted out of training"
    if not episode.store or episode.request is None or not episode.attempts:
        return "its content is not in the log"
    if not episode.bindings:
        return "no verifier was bound"
    return "its first attempt did not fail" if episode.attempts[0].status != Status.FAILED else None


def read_failure(episode: Episode, tokenizer: ChatTokenizer) -> Failure | str:
    """Read the failure of an episode's first attempt, or say why it cannot be learnt from."""
    if (reason := _pass_over(episode)) is not None:
        return reason
    assert episode.request is not None
    failed = episode.attempts[0]
    try:
        verifiers = bind(episode.bindings)
    except InvalidVerifier:
        return "its verifier does not compile any more"
    prompts, reason = Prompts(**episode.prompts), shown_reason(failed, episode.retry)
    reflection = next((one for one in episode.reflections if one.attempt == failed.number and one.prompt_ids), None)
    body = {name: value for name, value in failed.sampling.items() if name != "messages"}
    messages = episode.request["messages"]
    prompt_ids = (
        reflection.prompt_ids
        if reflection
        else tokenizer.apply_chat_template(
            reflection_messages(messages, body.get("tools") or (), failed.answer, prompts, reason),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    )
    return Failure(
        episode_id=episode.id,
        messages=messages,
        body=body,
        failed=failed.answer,
        reason=reason,
        prompts=prompts,
        verifiers=verifiers,
        prompt_ids=tuple(prompt_ids),
        reflection_max_tokens=episode.retry.reflection_max_tokens,
        logged=_read_logged(reflection, episode.attempts) if reflection else (),
        recovered=len(episode.attempts) > 1 and episode.attempts[1].status == Status.PASSED,
        tokenised=reflection is None,
    )


def _read_logged(reflection: Reflection, attempts: Sequence[Attempt]) -> tuple[LoggedReflection, ...]:
    """Read the reflection itself as a possible member, whatever its outcome, if it was sampled plainly and in full."""
    retry = next((one for one in attempts if one.number == reflection.attempt + 1), None)
    plain = all(reflection.sampling.get(name) == value for name, value in REFLECTION_SAMPLING.items())
    whole = len(reflection.token_ids) == len(reflection.logprobs) > 0
    if retry is None or not plain or not whole:
        return ()
    return (LoggedReflection(tuple(reflection.token_ids), tuple(reflection.logprobs), read_reward(retry.status)),)


def _merge(first: Failure, again: Failure) -> Failure:
    """Join the logged reflections of two episodes that failed alike."""
    return replace(
        first,
        logged=first.logged + again.logged,
        recovered=first.recovered or again.recovered,
        tokenised=first.tokenised and again.tokenised,
    )
