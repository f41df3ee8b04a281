"""Selects what a round learns from: logged failures of the task that can be reflected on, retried and judged again.

Called by trainer.round. It reads the episode log and decides; it must never sample, and never take a held-out
conversation.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from server.domain import BASE_ADAPTER, Attempt, Binding, BindingMode, Episode, Reflection
from server.orchestration.audit import contradicts
from server.orchestration.episode import REFLECTION_SAMPLING, shown_reason
from server.orchestration.reflection import Prompts, reflection_messages
from server.orchestration.verification import bind
from server.store.episode_rows import identify_problem
from server.store.left_out import OPTED_OUT
from trainer.errors import RoundFailed
from trainer.samples import Failure, LoggedReflection, read_reward
from trainer.settings import TrainerSettings
from verifiers.base import InvalidVerifier, Status

READ_AHEAD = 2
"""Of older failures so many times what is wanted is read: some turn out to be of no use."""

AGAIN = "the same failure again"
ALWAYS_LOGGED = "every logged retry of its problem passed"
NEVER_LOGGED = "no logged retry of its problem passed"
ALWAYS_IN_GROUP = "its whole group passed in this round"
NEVER_IN_GROUP = "its whole group failed in this round"


class FailureLog(Protocol):
    """What selection needs of the episode store."""

    async def failures(self, task: str, *, since: float = 0, until: float | None = None, limit: int) -> list[Episode]:
        """List logged failures of the training split, recovered ones first, newest first."""
        ...

    async def count_left_out(self, task: str, *, since: float = 0) -> dict[str, int]:
        """Count, by the reason, what `failures` passes over."""
        ...


class ChatTokenizer(Protocol):
    """What selection needs of the model's tokenizer."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render a conversation as token ids."""
        ...


@dataclass(slots=True)
class Selection:
    """The failures of a round, those with a logged successful reflection first, and why others were left out.

    `replayed` of them were made before the last round. What is left out is counted by the reason, in words.
    """

    failures: list[Failure]
    left_out: dict[str, int] = field(default_factory=dict)
    replayed: int = 0

    def note_settled(self, always: int, never: int) -> None:
        """Count what the round's own groups found to carry no signal; it was selected, and is not dealt again."""
        for reason, count in ((ALWAYS_IN_GROUP, always), (NEVER_IN_GROUP, never)):
            self.left_out.pop(reason, None)
            if count:
                self.left_out[reason] = count

    def describe(self) -> dict[str, Any]:
        """Say in figures what was selected, and why the rest was not."""
        return {
            "failures": len(self.failures),
            "recovered": sum(failure.recovered for failure in self.failures),
            "new": len(self.failures) - self.replayed,
            "replayed": self.replayed,
            "tokenised": sum(failure.tokenised for failure in self.failures),
            "logged_reflections": sum(len(failure.logged) for failure in self.failures),
            "left_out": dict(self.left_out),
        }


async def select(
    task: str,
    log: FailureLog,
    tokenizer: ChatTokenizer,
    settings: TrainerSettings,
    revoked: Collection[str] = (),
    *,
    since: float = 0.0,
    champion: str = BASE_ADAPTER,
) -> Selection:
    """Select the failures of `task` to learn from, one for each reflection prompt.

    Those made after `since` (when the last round began; 0: there was none), and a share of older ones. None whose
    verdict came from a version in `revoked`, by their pins; none of a problem whose logged retries under `champion` all
    ended alike.

    Raises: RoundFailed where there are fewer than `min_failures`.
    """
    left_out = Counter(await log.count_left_out(task, since=since))
    new = await log.failures(task, since=since, limit=settings.max_failures)
    room = _count_replayed(len(new), settings) if since else 0
    old = await log.failures(task, until=since, limit=READ_AHEAD * room) if room else []
    settled = find_settled([*new, *old], champion, settings.settled_after)
    chosen: dict[tuple[int, ...], Failure] = {}
    is_new: set[tuple[int, ...]] = set()
    for number, episode in enumerate([*new, *old]):
        failure = read_failure(episode, tokenizer, revoked)
        if isinstance(failure, str):
            left_out[failure] += 1
            continue
        if (always := settled.get(_problem_of(episode))) is not None:
            left_out[ALWAYS_LOGGED if always else NEVER_LOGGED] += 1
            continue
        key = tuple(failure.prompt_ids)
        if key in chosen:
            left_out[AGAIN] += 1
            failure = _merge(chosen[key], failure)
        elif number < len(new):
            is_new.add(key)
        elif len(chosen) - len(is_new) >= room:
            continue
        chosen[key] = failure
    failures = sorted(chosen.values(), key=lambda failure: not failure.recovered)  # stable: newest first inside
    if len(failures) < settings.min_failures:
        others = "; ".join(f"{count} left out: {why}" for why, count in left_out.items())
        raise RoundFailed(
            f"task {task!r} has too few logged failures to learn from: {len(failures)} of {settings.min_failures}"
            + (f" ({others})" if others else "")
        )
    return Selection(failures, dict(left_out), len(chosen) - len(is_new))


def _count_replayed(new: int, settings: TrainerSettings) -> int:
    """Say how many older failures may join `new` ones: their share of the whole, or what fills one step."""
    share = settings.replay_share
    most = settings.max_failures - new
    wanted = most if share >= 1 else int(new * share / (1 - share))
    return max(0, min(most, max(wanted, settings.step_failures - new if share else 0)))


def find_settled(episodes: Sequence[Episode], champion: str, after: int) -> dict[str, bool]:
    """Find the problems of which `after` or more logged retries under `champion` all passed, or all failed.

    By the hash that the log knows problems by. A group on such a failure would most likely carry no signal either.
    """
    ends: dict[str, Counter[bool]] = defaultdict(Counter)
    for episode in episodes:
        if episode.adapter == champion and episode.request is not None:
            judged = [one.status for one in episode.attempts[1:] if one.status in (Status.PASSED, Status.FAILED)]
            ends[_problem_of(episode)].update(status == Status.PASSED for status in judged)
    return {problem: next(iter(ended)) for problem, ended in ends.items() if len(ended) == 1 and ended.total() >= after}


def _problem_of(episode: Episode) -> str:
    return identify_problem(episode.request or {}, episode.bindings)


def enforcing(episode: Episode) -> tuple[Binding, ...]:
    """List the bindings whose verdicts count; what only observed or audited is no reward."""
    return tuple(binding for binding in episode.bindings if binding.mode == BindingMode.ENFORCE)


def choose_problems(episodes: Sequence[Episode], revoked: Collection[str]) -> list[Episode]:
    """Choose the held-out episodes that a gate may ask again, bound to what counts; none of a revoked verifier."""
    bound = [replace(episode, bindings=enforcing(episode)) for episode in episodes]
    return [one for one in bound if not any(binding.pin in revoked for binding in one.bindings if binding.name)]


def list_pins(failures: Sequence[Failure]) -> tuple[str, ...]:
    """List the registered verifiers, by their pins, that the rewards on these failures come from."""
    bindings = [binding for failure in failures for binding in failure.verifiers.bindings]
    return tuple(sorted({binding.pin for binding in bindings if binding.name}))


def _pass_over(episode: Episode, revoked: Collection[str]) -> str | None:
    """Say why an episode is nothing to learn from, by what is in the log alone."""
    if episode.split != "training":
        return "held out"
    if not episode.trains:
        return OPTED_OUT
    if not episode.store or episode.request is None or not episode.attempts:
        return "its content is not in the log"
    bindings = enforcing(episode)
    if not bindings:
        return "no verifier was bound"
    if gone := [binding.pin for binding in bindings if binding.name and binding.pin in revoked]:
        return f"its verifier {gone[0]} was revoked"
    return _doubt(episode)


def _doubt(episode: Episode) -> str | None:
    """Say why an episode's verdicts are nothing to learn from."""
    if episode.attempts[0].status != Status.FAILED:
        return "its first attempt did not fail"
    if any(one.trains and contradicts(one, episode) for one in episode.feedback):
        return "trusted feedback contradicts its verifier"
    return None


def read_failure(episode: Episode, tokenizer: ChatTokenizer, revoked: Collection[str] = ()) -> Failure | str:
    """Read the failure of an episode's first attempt, or say why it cannot be learnt from."""
    if (reason := _pass_over(episode, revoked)) is not None:
        return reason
    assert episode.request is not None
    failed = episode.attempts[0]
    try:
        verifiers = bind(enforcing(episode))
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
        raw="prompt" in episode.request,
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
        alike=(*first.alike, again.episode_id),
    )
