"""Asks both adapters the problems of a gate, through the server's own loop: what is measured is what is served.

Called by trainer.gate and trainer.gate_controls. Both adapters answer in one shuffled stream, so that a busy minute of
the engine slows both alike. It must never look at a training problem, and never write anything.
"""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from server.domain import Attempt, Episode, Outcome, VerifyMode, new_id
from server.engine.base import Engine
from server.errors import EngineBroken, EngineTimeout
from server.orchestration.episode import Reflector, run
from server.orchestration.verification import bind
from trainer.gate_audit import Watched, read_watched
from trainer.gate_tally import CANDIDATE, CHAMPION, Tally
from trainer.settings import TrainerSettings
from verifiers.base import InvalidVerifier, Status

T = TypeVar("T")
Checked = tuple[bool, bool]
"""Whether the first try passed, and whether it or the retry did."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a problem: what counts said of it, what the hidden verifiers said, and what it took."""

    checked: Checked | None
    watched: Watched | None
    answer_tokens: int  # of the first answer
    tokens: int
    seconds: float
    failed: Attempt | None  # the first try, where it failed


def read_checked(episode: Episode) -> Checked | None:
    """Read whether the first try and the second passed; None where the first was not judged."""
    statuses = [attempt.status for attempt in episode.attempts]
    if not statuses or statuses[0] not in (Status.PASSED, Status.FAILED):
        return None
    return statuses[0] == Status.PASSED, Status.PASSED in statuses[:2]


def can_rerun(episode: Episode) -> bool:
    """Say whether a logged episode is a held-out problem that can be asked and judged again."""
    if episode.split != "held_out" or episode.request is None or not episode.attempts or not episode.bindings:
        return False
    try:
        bind(episode.bindings)
    except InvalidVerifier:
        return False
    return True


async def gather_all(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Do all jobs, and return what came in their order. Raises: what the first that failed did."""

    async def do(job: Awaitable[T]) -> T:
        return await job

    try:
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(do(job)) for job in jobs]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [one.result() for one in runs]


@dataclass
class Questioner:
    """Asks one problem at a time, as many at once as there are slots; counts what all of it took."""

    engine: Engine
    slots: asyncio.Semaphore
    tokens: int = 0

    async def ask(self, logged: Episode, adapter: str, *, retries: bool = True) -> Episode:
        """Answer a logged problem anew. Without `retries` it is only observed: a first try and its verdict.

        Raises: the engine's errors.
        """
        mode = VerifyMode.ENFORCE if retries else VerifyMode.OBSERVE
        return await self._run(_begin(logged, adapter, mode), logged)

    async def retry(self, logged: Episode, adapter: str, failed: Attempt, reflector: Reflector | None) -> Episode:
        """Go on from a failed first try: reflect, or take what `reflector` gives, and answer again.

        The adapter's own reflection where `reflector` is None. Raises: the engine's errors.
        """
        episode = _begin(logged, adapter, VerifyMode.ENFORCE)
        return await self._run(episode, logged, [failed], reflector)

    async def _run(
        self, episode: Episode, logged: Episode, begun: Sequence[Attempt] = (), reflector: Reflector | None = None
    ) -> Episode:
        assert logged.request is not None
        body: Mapping[str, Any] = {**logged.attempts[0].sampling, "messages": logged.request["messages"]}
        async with self.slots:
            for last in (False, True):  # what the engine breaks off once is an accident, and not the adapter's
                episode.attempts, episode.reflections, episode.error = list(begun), [], ""
                try:
                    await run(
                        episode, engine=self.engine, verify=bind(episode.bindings), body=body, reflector=reflector
                    )
                except (EngineBroken, EngineTimeout):
                    if last:
                        raise
                if not episode.error:
                    break
        self.tokens += episode.usage.total_tokens - sum(one.usage.total_tokens for one in begun)
        return episode


def _begin(logged: Episode, adapter: str, mode: VerifyMode) -> Episode:
    return dataclasses.replace(
        logged,
        id=new_id("ep"),
        adapter=adapter,
        verify=mode,
        retry=dataclasses.replace(logged.retry, max_retries=1, max_seconds=None, max_total_tokens=None),
        outcome=Outcome.UNVERIFIED,
        attempts=[],
        reflections=[],
    )


@dataclass
class EngineAsker:
    """Lets the champion and the candidate answer on the engine; keeps the samples of whole loops by problem."""

    held_out: Sequence[Episode]  # in an order of chance
    elsewhere: Sequence[Episode]  # other tasks' held-out problems
    plain: Sequence[Episode]
    adapters: tuple[str, str]  # the champion and the candidate
    questioner: Questioner
    settings: TrainerSettings
    samples: tuple[list[list[Sample]], list[list[Sample]]] = field(init=False)
    _turns: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.samples = ([[] for _ in self.held_out], [[] for _ in self.held_out])
        self._turns = random.Random(self.settings.seed)

    @property
    def problems(self) -> int:
        """Count the held-out problems."""
        return len(self.held_out)

    @property
    def others(self) -> int:
        """Count the problems of other tasks."""
        return len(self.elsewhere)

    @property
    def probes(self) -> int:
        """Count the plain problems."""
        return len(self.plain)

    async def loop(self, numbers: Sequence[int], samples: int) -> Tally:
        """Ask held-out problems, with a reflection and a retry where the first try fails."""
        counts = np.zeros(self.problems, dtype=int)
        counts[list(numbers)] = samples
        asked = await self._ask(self.held_out, counts, retries=True)
        for number, side, sample in asked:
            self.samples[side][number].append(sample)
        return _count(self.problems, asked, loops=True)

    async def ask_first(self, samples: np.ndarray) -> Tally:
        """Ask each held-out problem so often (N,), first tries alone."""
        return _count(self.problems, await self._ask(self.held_out, samples, retries=False), loops=False)

    async def ask_others(self, samples: int) -> Tally:
        """Ask other tasks' held-out problems, first tries alone."""
        counts = np.full(self.others, samples)
        return _count(self.others, await self._ask(self.elsewhere, counts, retries=False), loops=False)

    async def ask_probes(self, samples: int) -> Tally:
        """Ask plain problems, first tries alone."""
        counts = np.full(self.probes, samples)
        return _count(self.probes, await self._ask(self.plain, counts, retries=False), loops=False)

    async def _ask(
        self, problems: Sequence[Episode], counts: np.ndarray, *, retries: bool
    ) -> list[tuple[int, int, Sample]]:
        jobs = [
            (number, side)
            for number, count in enumerate(counts)
            for _ in range(int(count))
            for side in (CHAMPION, CANDIDATE)
        ]
        self._turns.shuffle(jobs)
        answered = await gather_all(
            self.questioner.ask(problems[number], self.adapters[side], retries=retries) for number, side in jobs
        )
        return [(number, side, _read_sample(one)) for (number, side), one in zip(jobs, answered, strict=True)]

    def list_by_side(self, side: int, read: Callable[[Sample], T]) -> list[list[T]]:
        """List what the loops of one adapter gave, by problem."""
        return [[read(one) for one in some] for some in self.samples[side]]


def _read_sample(episode: Episode) -> Sample:
    first = episode.attempts[0] if episode.attempts else None
    return Sample(
        read_checked(episode),
        read_watched(episode),
        first.usage.completion_tokens if first else 0,
        episode.usage.total_tokens,
        episode.duration_ms / 1000,
        first if first and first.status == Status.FAILED else None,
    )


def _count(problems: int, asked: Sequence[tuple[int, int, Sample]], *, loops: bool) -> Tally:
    tally = Tally.start(problems)
    for number, side, sample in asked:
        if sample.checked is None:
            continue
        first, second = sample.checked
        tally.judged[number, side] += 1
        tally.first[number, side] += first
        tally.tokens[number, side] += sample.answer_tokens
        if loops:
            tally.loops[number, side] += 1
            tally.second[number, side] += second
            tally.seconds[number, side] += sample.seconds
    return tally
