"""Samples groups: fresh reflections on a logged failure under the current candidate, and the retries that follow.

Called by trainer.round for every step. The retry is the server's own `attempt`, so that it is sampled and judged as it
is served. It must never re-tokenise: a reflection's prompt is the logged token ids, its tokens are the engine's, and so
are a retry's and its first prompt's where retries are distilled (trainer.first_try).
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from server.domain import Attempt
from server.engine.base import Completion, Engine
from server.errors import EngineBroken, EngineRefused, EngineTimeout, EngineUnavailable, MulliganError
from server.orchestration.episode import REFLECTION_SAMPLING, attempt
from server.orchestration.reflection import retry_messages
from trainer.groups import weigh_groups
from trainer.samples import Failure, Member, read_reward
from trainer.settings import TrainerSettings

ENGINE_TRIES = 3
ENGINE_PAUSE_S = 2.0
LOST_SHARE = 0.25
"""Of a step's rollouts so many may be lost to the engine's errors; past it the step, and the round, fails."""

ANSWER_SHAPE = frozenset({"tool_choice", "response_format", "stop", "max_tokens", "logprobs", "top_logprobs"})
"""Fields of a request that shape its answer and not its prompt: a single token could not keep to them."""

_log = structlog.get_logger(__name__)


T = TypeVar("T")


class Deck:
    """Deals the selected failures: in their order first, then shuffled again and again.

    A failure whose whole group passed, or failed, is settled: it is not dealt again in this round, as long as there are
    others to fill half a hand. An earlier lease's steps are told to it like its own: it goes on where they ended.
    """

    def __init__(self, failures: Sequence[Failure], seed: int) -> None:
        self._failures = list(failures)
        self._left = list(failures)
        self._rng = random.Random(seed)
        self._settled: dict[str, bool] = {}  # episode id -> whether all of its group passed

    def deal(self, count: int) -> list[Failure]:
        """Take the next `count` failures: at most as many as there are, none twice in one hand."""
        open_ = [failure for failure in self._failures if failure.episode_id not in self._settled]
        fit = open_ if 2 * len(open_) >= min(count, len(self._failures)) else self._failures
        dealt = {failure.episode_id for failure in fit}
        left = [failure for failure in self._left if failure.episode_id in dealt]
        count = min(count, len(fit))
        hand, self._left = left[:count], left[count:]
        if len(hand) < count:
            shuffled = self._rng.sample(fit, len(fit))
            more = [failure for failure in shuffled if all(failure is not held for held in hand)][: count - len(hand)]
            self._left = [failure for failure in shuffled if all(failure is not dealt for dealt in more)]
            hand += more
        return hand

    def look_at(self, members: Sequence[Member]) -> None:
        """Learn from a step's members which failures were dealt, and which of them carry no signal."""
        groups: dict[str, list[float]] = defaultdict(list)
        for member in members:
            groups[member.episode_id] += [member.reward] if member.reward is not None and not member.logged else []
        self._left = [failure for failure in self._left if failure.episode_id not in groups]
        for episode_id, rewards in groups.items():
            if len(rewards) > 1 and len(set(rewards)) == 1:
                self._settled[episode_id] = rewards[0] > 0
            else:
                self._settled.pop(episode_id, None)

    @property
    def settled(self) -> tuple[int, int]:
        """How many failures are settled now: those whose group always passed, and those that never did."""
        always = sum(self._settled.values())
        return always, len(self._settled) - always


class Sampler:
    """Samples the groups of a step with bounded concurrency."""

    def __init__(self, engine: Engine, settings: TrainerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._first_prompts: dict[str, Sequence[int]] = {}  # by the failure's episode

    async def sample_step(self, hand: Sequence[Failure], adapter: str) -> list[Member]:
        """Sample groups for the failures in `hand` until enough have signal, or all are used up.

        A rollout that the engine breaks off is left out: it says nothing about the reflection.

        Raises: the engine's errors, where it is away or breaks off more than a quarter.
        """
        enough = self._settings.step_groups or len(hand)
        members: list[Member] = []
        drawn = 0
        while drawn < len(hand) and (kept := len({m.group for m, _ in weigh_groups(members)})) < enough:
            wave = hand[drawn : drawn + (enough - kept)]
            members += await self._sample_wave(drawn, wave, adapter)
            drawn += len(wave)
        return members

    async def _sample_wave(self, first: int, wave: Sequence[Failure], adapter: str) -> list[Member]:
        """Sample a group for each failure: fresh reflections and, outside the baseline, logged ones."""
        numbered = list(enumerate(wave, start=first))
        try:
            async with asyncio.TaskGroup() as tasks:
                fresh = [
                    tasks.create_task(self._sample_member(number, failure, adapter))
                    for number, failure in numbered
                    for _ in range(self._settings.group_size)
                ]
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        outcomes = [one.result() for one in fresh]
        members = [one for one in outcomes if isinstance(one, Member)]
        if lost := [one for one in outcomes if isinstance(one, MulliganError)]:
            _log.warning("rollouts_lost", count=len(lost), of=len(outcomes), error=type(lost[0]).__name__)
            if len(lost) > LOST_SHARE * len(outcomes):
                raise lost[0]
        logged = [
            Member(
                number,
                failure.prompt_ids,
                one.token_ids,
                one.logprobs,
                one.reward,
                logged=True,
                episode_id=failure.episode_id,
            )
            for number, failure in numbered
            for one in failure.logged[: self._settings.most_logged]
        ]
        if self._settings.distils:
            return await self._add_first_prompts(members + logged, dict(numbered), adapter)
        return members + logged

    async def _sample_member(self, number: int, failure: Failure, adapter: str) -> Member | MulliganError | None:
        """Reflect and retry once. None where the engine gave no token, its error where it broke off."""
        sampling = {**REFLECTION_SAMPLING, "max_new_tokens": failure.reflection_max_tokens}
        try:
            reflection: Completion = await self._ask(
                lambda: self._engine.complete_ids(failure.prompt_ids, adapter, sampling)
            )
            if not reflection.token_ids:
                return None
            retry, retry_ids = await self._retry(failure, reflection.message.get("content") or "", adapter)
        except (EngineBroken, EngineTimeout, EngineRefused) as error:
            return error
        return Member(
            number,
            failure.prompt_ids,
            reflection.token_ids,
            reflection.logprobs,
            # A reflection so long that the retry does not fit leaves the client with the failure.
            read_reward(retry.status) if retry else 0.0,
            episode_id=failure.episode_id,
            verdict=retry.status if retry else "",
            retry=retry.answer if retry else None,
            adapter=adapter,
            tokens=(reflection.usage + retry.usage if retry else reflection.usage).total_tokens,
            retry_ids=retry_ids,
        )

    async def _retry(self, failure: Failure, reflection: str, adapter: str) -> tuple[Attempt | None, Sequence[int]]:
        """Retry and judge it, None where the engine refuses it; with its tokens if it passed and is distilled."""
        messages = retry_messages(failure.messages, failure.failed, reflection, failure.prompts, failure.reason)
        body = {**failure.body, "messages": failure.messages}
        seen: list[Completion] = []
        keep = seen.append if self._settings.distils and not failure.raw else None
        try:
            retry = await self._ask(
                lambda: attempt(
                    2,
                    body,
                    engine=self._engine,
                    adapter=adapter,
                    verify=failure.verifiers,
                    messages=messages,
                    keep_tokens=keep,
                )
            )
        except EngineRefused:
            return None, ()
        return retry, seen[-1].token_ids if seen and read_reward(retry.status) else ()

    async def _add_first_prompts(
        self, members: Sequence[Member], hand: dict[int, Failure], adapter: str
    ) -> list[Member]:
        """Give each group with a retry to distil the prompt that its request was first asked with, as token ids."""
        wanted = sorted({one.group for one in members if one.retry_ids})
        prompts = await asyncio.gather(*(self._find_first_prompt(hand[one], adapter) for one in wanted))
        found = dict(zip(wanted, prompts, strict=True))
        return [replace(one, first_prompt_ids=found.get(one.group, ())) for one in members]

    async def _find_first_prompt(self, failure: Failure, adapter: str) -> Sequence[int]:
        """Ask the engine, for one token and once a round, how it renders the request. Empty where it cannot say."""
        if failure.episode_id not in self._first_prompts:
            body = {name: value for name, value in failure.body.items() if name not in ANSWER_SHAPE}
            if failure.body.get("tool_choice") == "none":  # takes the tools out of the prompt
                body["tool_choice"] = "none"
            asked = {**body, "messages": failure.messages, "max_completion_tokens": 1}
            try:
                completion = await self._ask(lambda: self._engine.complete(asked, adapter, with_tokens=True))
            except (EngineBroken, EngineTimeout, EngineRefused) as error:
                _log.warning("first_prompt_unknown", episode=failure.episode_id, error=type(error).__name__)
                return ()
            self._first_prompts[failure.episode_id] = tuple(completion.prompt_ids)
        return self._first_prompts[failure.episode_id]

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the engine when there is a free slot; wait a little where it is away."""
        for left in reversed(range(ENGINE_TRIES)):
            try:
                async with self._slots:
                    return await call()
            except EngineUnavailable:
                if not left:
                    raise
            await asyncio.sleep(ENGINE_PAUSE_S)
        raise AssertionError("unreachable")
