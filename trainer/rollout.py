"""Samples groups: fresh reflections on a logged failure under the current candidate, and the retries that follow.

Called by trainer.round for every step. The retry is the server's own `attempt`, so that it is sampled and judged as it
is served. It must never re-tokenise: a reflection's prompt is the logged token ids, its tokens are the engine's.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

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

_log = structlog.get_logger(__name__)


T = TypeVar("T")


class Deck:
    """Deals the selected failures: in their order first, then shuffled again and again."""

    def __init__(self, failures: Sequence[Failure], seed: int) -> None:
        self._failures = list(failures)
        self._left = list(failures)
        self._rng = random.Random(seed)

    def deal(self, count: int) -> list[Failure]:
        """Take the next `count` failures: at most as many as there are, none twice in one hand."""
        count = min(count, len(self._failures))
        hand = self._left[:count]
        self._left = self._left[count:]
        if len(hand) < count:
            shuffled = self._rng.sample(self._failures, len(self._failures))
            more = [failure for failure in shuffled if all(failure is not held for held in hand)][: count - len(hand)]
            self._left = [failure for failure in shuffled if all(failure is not dealt for dealt in more)]
            hand += more
        return hand


class Sampler:
    """Samples the groups of a step with bounded concurrency."""

    def __init__(self, engine: Engine, settings: TrainerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)

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
            _log.warning("rollouts_lost", count=len(lost), of=len(outcomes), error=str(lost[0]))
            if len(lost) > LOST_SHARE * len(outcomes):
                raise lost[0]
        logged = [
            Member(number, failure.prompt_ids, one.token_ids, one.logprobs, one.reward, logged=True)
            for number, failure in numbered
            for one in failure.logged[: self._settings.logged_per_group]
        ]
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
            reward = await self._judge_retry(failure, reflection.message.get("content") or "", adapter)
        except (EngineBroken, EngineTimeout, EngineRefused) as error:
            return error
        return Member(number, failure.prompt_ids, reflection.token_ids, reflection.logprobs, reward)

    async def _judge_retry(self, failure: Failure, reflection: str, adapter: str) -> float | None:
        messages = retry_messages(failure.messages, failure.failed, reflection, failure.prompts, failure.reason)
        body = {**failure.body, "messages": failure.messages}
        try:
            retry = await self._ask(
                lambda: attempt(
                    2, body, engine=self._engine, adapter=adapter, verify=failure.verifiers, messages=messages
                )
            )
        except EngineRefused:
            return 0.0  # a reflection so long that the retry does not fit leaves the client with the failure
        return read_reward(retry.status)

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
