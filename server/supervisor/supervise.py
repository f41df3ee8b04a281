"""Starts all children, waits until each is ready, restarts what dies, stops everything within ten seconds."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from server.errors import MulliganError, PartFailed
from server.supervisor.child import Child, ChildSpec, describe_exit

_LOOK_EVERY_S = 0.05
_ASK_READY_EVERY_S = 0.25
_STAGE_S = (7.5, 1.5)  # how long the children of each stop stage may take before they are killed
_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 0.5, 30.0
_SETTLED_S = 30.0  # a child that ran so long begins again with the shortest wait


class Happening(StrEnum):
    """What can happen to a child."""

    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    BACK = "back"
    KILLED = "killed"  # it would not stop in time


@dataclass(frozen=True)
class ChildEvent:
    """Something that happened to a child, for whoever shows it."""

    happening: Happening
    name: str
    detail: str = ""


Announce = Callable[[ChildEvent], None]


class Supervisor:
    """The children together. Use `supervise` to get one that is started and always stopped."""

    def __init__(
        self, specs: Sequence[ChildSpec], logs_dir: Path | None, announce: Announce, hurried: asyncio.Event | None
    ) -> None:
        self.children = [
            Child(spec, None if logs_dir is None else logs_dir / f"{spec.name.lower()}.log") for spec in specs
        ]
        self._announce = announce
        self._waiting: set[str] = set()
        self._hurried = hurried or asyncio.Event()

    @property
    def waiting_for(self) -> list[str]:
        """The names of the children that are not ready yet, in order."""
        return [child.name for child in self.children if child.name in self._waiting]

    async def start(self) -> None:
        """Start every child and wait until each is ready.

        Raises MulliganError with the end of its log where one dies or is not ready in time.
        """
        for child in self.children:
            self._waiting.add(child.name)
            self._announce(ChildEvent(Happening.STARTING, child.name, _name_log(child)))
            child.start()
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(self._wait_ready(child, Happening.READY))
        except* MulliganError as failed:
            raise failed.exceptions[0] from None

    async def watch(self) -> None:
        """Restart whatever dies, for ever, waiting longer each time that one dies young."""
        async with asyncio.TaskGroup() as group:
            for child in self.children:
                group.create_task(self._keep_alive(child))

    async def stop(self) -> None:
        """Tell the children to stop, stage by stage, and kill those that do not. Leaves no process of theirs."""
        family = self._list_family()
        for stage, patience_s in enumerate(_STAGE_S):
            await self._stop_stage([child for child in self.children if child.spec.stop_stage == stage], patience_s)
        # What a child started in a group of its own (a round's trainer) is tied to it, but may take its time.
        for relative in {*family, *self._list_family()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                relative.kill()
        await asyncio.to_thread(psutil.wait_procs, family, 1.0)

    async def _wait_ready(self, child: Child, happening: Happening) -> None:
        self._waiting.add(child.name)
        while not await child.spec.ready(child):
            waited_s = time.monotonic() - child.started_at
            if not child.runs:
                raise _not_started(child, f"ended before it was ready ({describe_exit(child.exit_code())})")
            if waited_s > child.spec.start_timeout_s:
                raise _not_started(child, f"is not ready after {waited_s:.0f} s")
            await asyncio.sleep(_ASK_READY_EVERY_S)
        self._waiting.discard(child.name)
        self._announce(ChildEvent(happening, child.name, f"after {time.monotonic() - child.started_at:.1f} s"))

    async def _keep_alive(self, child: Child) -> None:
        wait_s = _BACKOFF_FIRST_S
        while True:
            await _wait_exit([child])
            if time.monotonic() - child.started_at > _SETTLED_S:
                wait_s = _BACKOFF_FIRST_S
            how = describe_exit(child.exit_code())
            detail = "; ".join(filter(None, (f"{how}; starting it again in {wait_s:g} s", _name_log(child))))
            self._announce(ChildEvent(Happening.DIED, child.name, detail))
            child.signal_group(signal.SIGKILL)  # whatever it left behind in its group
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _BACKOFF_MOST_S)
            try:
                child.start()
                await self._wait_ready(child, Happening.BACK)
            except (MulliganError, OSError):
                child.signal_group(signal.SIGKILL)  # and the loop announces how it ended

    async def _stop_stage(self, children: Sequence[Child], patience_s: float) -> None:
        for child in children:
            child.ask_to_stop()
        waits = [asyncio.create_task(_wait_exit(children)), asyncio.create_task(self._hurried.wait())]
        await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        for child in children:
            if child.runs:
                self._announce(ChildEvent(Happening.KILLED, child.name, f"not stopped after {patience_s:g} s"))
            child.signal_group(signal.SIGKILL)
        await _wait_exit(children)

    def _list_family(self) -> list[psutil.Process]:
        found = []
        for child in self.children:
            if child.pid is not None and child.runs:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += psutil.Process(child.pid).children(recursive=True)
        return found


@asynccontextmanager
async def supervise(
    specs: Sequence[ChildSpec], logs_dir: Path | None, announce: Announce, hurried: asyncio.Event | None = None
) -> AsyncIterator[Supervisor]:
    """Yield a supervisor whose children are all ready; they are kept alive inside the block and stopped after it.

    Each writes to a log of its own in `logs_dir`; None: to ours. Once `hurried` is set, stopping means killing at once.
    Raises MulliganError where a child cannot be started.
    """
    supervisor = Supervisor(specs, logs_dir, announce, hurried)
    watch: asyncio.Task[None] | None = None
    try:
        await supervisor.start()
        watch = asyncio.create_task(supervisor.watch())
        yield supervisor
    finally:
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        await supervisor.stop()


async def _wait_exit(children: Sequence[Child]) -> None:
    while any(child.runs for child in children):  # noqa: ASYNC110 - a process has no event to wait for
        await asyncio.sleep(_LOOK_EVERY_S)


def _not_started(child: Child, what: str) -> MulliganError:
    where = "Its log is above." if child.log_path is None else f"Its log, {child.log_path}, ends:\n{child.log_tail()}"
    return PartFailed(f"the {child.name} {what}. {where}")


def _name_log(child: Child) -> str:
    return "" if child.log_path is None else f"its log: {child.log_path}"
