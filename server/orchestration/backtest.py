"""Lets a version of a verifier judge logged attempts again, by the very path that judges live ones, each of them twice.

Run by an API process for a row of `server.store.backtests`. Attempts are chosen by their ids alone and read one by one,
so that memory is bounded by the sample's size and not by the log's. What is judged here is not watched: it counts
nowhere and stops nothing.
"""

import asyncio
import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from server.domain import Binding, BindingMode, LoggedVerdict, VerifierVersion
from server.orchestration.backtest_report import Report
from server.orchestration.verification import VERIFY_TIMEOUT_S, BoundVerifier, bind
from server.store.cleaning import decode_json
from server.store.logged_answers import LoggedAnswer, LoggedAnswerStore, LoggedId, Selection
from verifiers.base import InvalidArgs
from verifiers.registry import check_args

CONCURRENCY = 4
SAMPLE, MOST_SAMPLED = 500, 10_000

_INLINE_CHARS = 16 * 2**10
"""JSON up to here is decoded in less than a millisecond."""
_LOOK_EVERY_S = 0.05

Room = Callable[[], int]
"""Says how many verdicts of a backtest may run at this moment: live traffic goes first."""


@dataclass(frozen=True, slots=True)
class BacktestOptions:
    """What was asked. `against` is the pin to compare with, else whatever the verifier's name said then.

    `key` narrows to the episodes of one key, which then is shown nothing of what only audits.
    """

    task: str | None = None
    outcome: str | None = None
    adapter: str | None = None
    key: str | None = None
    since: float = 0.0
    until: float = 0.0
    against: str | None = None
    sample: int = SAMPLE
    seed: int = 0

    @property
    def selection(self) -> Selection:
        """Which episodes."""
        return Selection(self.task, self.outcome, self.adapter, self.key, self.since, self.until)


class Sample:
    """The `size` attempts with the smallest hashes of seed and id: the same for the same log, in whatever order."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._salt = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        self._heap: list[tuple[int, str, int]] = []  # the largest hash first
        self.seen = 0

    def offer(self, attempts: Iterable[LoggedId]) -> None:
        """Take attempts into account."""
        for attempt in attempts:
            self.seen += 1
            name = f"{attempt.episode_id}/{attempt.number}".encode()
            rank = int.from_bytes(hashlib.blake2b(name, digest_size=8, key=self._salt).digest())
            entry = (-rank, attempt.episode_id, attempt.number)
            (heapq.heappush if len(self._heap) < self._size else heapq.heappushpop)(self._heap, entry)

    def newest_first(self) -> list[LoggedId]:
        """List what was chosen."""
        chosen = [LoggedId(episode_id, number, True) for _, episode_id, number in self._heap]
        return sorted(chosen, key=lambda one: (one.episode_id, one.number), reverse=True)


class BacktestRun:
    """One backtest under way. `done` and `total` say how far it is; nothing is written down here."""

    def __init__(
        self, answers: LoggedAnswerStore, version: VerifierVersion, options: BacktestOptions, room: Room
    ) -> None:
        self._answers, self._version, self._options, self._room = answers, version, options, room
        self._binding = Binding(version.kind, version.config, version.name, version.version)
        self._report = Report()
        self.done = self.total = 0

    async def run(self) -> dict[str, Any]:
        """Run to the end and return the report.

        Raises: InvalidVerifier where the version does not compile any more, StoreUnavailable.
        """
        (bound,) = (await asyncio.to_thread(bind, (self._binding,))).bound
        sample = await self._choose()
        chosen = sample.newest_first()
        self.total = len(chosen)
        left = iter(chosen)
        judging = [asyncio.create_task(self._judge_all(left, bound, number)) for number in range(CONCURRENCY)]
        try:
            await asyncio.gather(*judging)
        finally:
            for task in judging:
                task.cancel()
            await asyncio.wait(judging)
        return {
            "verifier": self._binding.pin,
            "against": self._options.against,
            "attempts": sample.seen,
            "sampled": len(chosen),
            "seed": self._options.seed,
            **self._report.render(),
        }

    async def _choose(self) -> Sample:
        sample = Sample(self._options.sample, self._options.seed)
        async for page in self._answers.pages(self._options.selection):
            sample.offer(one for one in page if one.kept)
            if without := sum(not one.kept for one in page):
                self._report.passed_over["no_content"] += without
            await self._wait_for_room(0)
        return sample

    async def _judge_all(self, left: Iterator[LoggedId], bound: BoundVerifier, number: int) -> None:
        """Judge what is left, together with the other `number`s; the higher ones rest while there is traffic."""
        while True:
            await self._wait_for_room(number)
            attempt = next(left, None)
            if attempt is None:
                return
            await self._judge(attempt, bound)
            self.done += 1

    async def _judge(self, attempt: LoggedId, bound: BoundVerifier) -> None:
        logged = await self._answers.read(attempt)
        if logged is None:
            self._report.passed_over["no_content"] += 1
            return
        binding, why_not = self._bind(logged)
        if why_not:
            self._report.passed_over[why_not] += 1
            return
        asked, answer = await _decode(logged.request), await _decode(logged.answer)
        request = {"messages": asked.get("messages") or [], "tools": asked.get("tools") or []}
        judge = replace(bound, binding=binding).judge
        first = await judge(request, answer, VERIFY_TIMEOUT_S)
        again = await judge(request, answer, VERIFY_TIMEOUT_S)
        self._report.add(attempt, self._find_old(logged), first, again)

    def _bind(self, logged: LoggedAnswer) -> tuple[Binding, str]:
        """Bind the version as the episode bound the verifier, or what it is compared with; or say why not."""
        names = [self._version.name]
        if self._options.against:
            names.append(self._options.against.partition("@")[0])
        seen = [one for one in logged.bindings if one.name in names and self._may_see(one.mode)]
        seen.sort(key=lambda one: (names.index(one.name), one.mode != BindingMode.ENFORCE))
        args, when = (seen[0].args, seen[0].when) if seen else ({}, {})
        try:
            check_args(self._binding.kind, self._binding.config, args)
        except InvalidArgs:
            return self._binding, "args_do_not_fit" if args else "no_args"
        return replace(self._binding, args=args, when=when), ""

    def _find_old(self, logged: LoggedAnswer) -> LoggedVerdict | None:
        """Find what was said then; of several versions of the name, what counted."""
        against, name = self._options.against, self._version.name
        verdicts = [
            one
            for one in logged.verdicts
            if (one.verifier == against if against else one.verifier.rpartition("@")[0] == name)
            and self._may_see(one.mode)
        ]
        return min(verdicts, key=lambda one: one.mode != BindingMode.ENFORCE, default=None)

    def _may_see(self, mode: BindingMode) -> bool:
        return self._options.key is None or mode != BindingMode.AUDIT

    async def _wait_for_room(self, number: int) -> None:
        await asyncio.sleep(0)
        while self._room() <= number:  # noqa: ASYNC110 - traffic has no event for it, and must not pay for one
            await asyncio.sleep(_LOOK_EVERY_S)


async def _decode(text: str) -> dict[str, Any]:
    decoded = decode_json(text) if len(text) <= _INLINE_CHARS else await asyncio.to_thread(decode_json, text)
    return decoded if isinstance(decoded, dict) else {}
