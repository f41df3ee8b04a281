"""Runs backtests in this process: takes those that wait, says that they live, and writes down what they found.

Driven by a loop of `server.app`; no request waits for it. The row is the truth: where it says that a backtest is not
this process's any more (it was cancelled, or taken over), the work on it ends within a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from server.api.traffic import Traffic
from server.domain import Backtest
from server.errors import StoreUnavailable
from server.orchestration.backtest import CONCURRENCY, BacktestOptions, BacktestRun, Room
from server.store.backtests import BacktestStore
from server.store.logged_answers import LoggedAnswerStore
from server.store.verifiers import VerifierStore
from verifiers.base import InvalidVerifier

INTERVAL_S = 0.5
"""How often a process looks for one that waits."""
HEARTBEAT_S = 1.0
LOST_AFTER_S = 10.0
AT_ONCE = 2

_log = structlog.get_logger(__name__)


def leave_room(traffic: Traffic) -> Room:
    """Say how many verdicts of a backtest may run: none while requests wait, one beside answers under way."""

    def room() -> int:
        if traffic.queued:
            return 0
        return 1 if traffic.running else CONCURRENCY

    return room


class BacktestRunner:
    """The backtests that run in this process."""

    def __init__(
        self,
        process_id: str,
        backtests: BacktestStore,
        answers: LoggedAnswerStore,
        verifiers: VerifierStore,
        room: Room,
    ) -> None:
        self._process_id, self._backtests, self._answers = process_id, backtests, answers
        self._verifiers, self._room = verifiers, room
        self._running: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Begin what waits, as long as there is a place for it. Raises: StoreUnavailable."""
        self._running = {task for task in self._running if not task.done()}
        while len(self._running) < AT_ONCE:
            taken = await self._backtests.take(self._process_id, lost_after_s=LOST_AFTER_S)
            if taken is None:
                return
            self._running.add(asyncio.create_task(self._run(taken)))

    async def stop(self) -> None:
        """End all work and put it back, for the others or for the next start."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, backtest: Backtest) -> None:
        log = _log.bind(backtest=backtest.id, verifier=f"{backtest.verifier}@{backtest.version}")
        log.info("backtest_begun", owner=backtest.owner)
        try:
            found = await self._judge(backtest)
            if isinstance(found, str):
                log.warning("backtest_failed")  # why, is in the backtest: the words may quote an answer
                await self._insist(partial(self._backtests.fail, backtest, found))
            elif found is not None:
                log.info("backtest_done", n=found["n"], flips=found["flips"]["count"])
                await self._insist(partial(self._backtests.finish, backtest, found))
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                await self._backtests.release(backtest)
            raise
        except StoreUnavailable as error:
            log.warning("backtest_lost", error=str(error))  # it falls silent, and is begun anew by whoever looks next

    async def _judge(self, backtest: Backtest) -> dict[str, Any] | str | None:
        """Find the report, or why there is none; None where it is not this process's any more.

        Raises: StoreUnavailable.
        """
        try:
            version = await self._verifiers.get(backtest.verifier, backtest.version)
            if version is None:
                return f"there is no verifier {backtest.verifier}@{backtest.version}"
            options = msgspec.convert(backtest.options, BacktestOptions)
            return await self._work(backtest, BacktestRun(self._answers, version, options, self._room))
        except StoreUnavailable:
            raise
        except (InvalidVerifier, msgspec.ValidationError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 -- whatever broke, whoever asked is told
            _log.exception("backtest_broke", backtest=backtest.id)
            return f"{type(error).__name__}: {error}"

    async def _work(self, backtest: Backtest, work: BacktestRun) -> dict[str, Any] | None:
        """Do the work, with a sign of life every second; None where it is not this process's any more."""
        running = asyncio.create_task(work.run())
        try:
            while True:
                await asyncio.wait([running], timeout=HEARTBEAT_S)
                if running.done():
                    return running.result()
                with suppress(StoreUnavailable):  # it goes on: whoever takes it over meanwhile is told of below
                    if not await self._backtests.progress(backtest, work.done, work.total):
                        _log.info("backtest_given_up", backtest=backtest.id)
                        return None
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def _insist(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """Write down how it ended, as soon as there is a database."""
        while True:
            try:
                return await write()
            except StoreUnavailable:
                await asyncio.sleep(HEARTBEAT_S)
