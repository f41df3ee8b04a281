"""The background loops of an API process: what keeps it in step with the database and with the engine.

Started by `server.app`. They outlive every failure of what they watch; a request never waits for them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from server.adapters.reconcile import ServingShelf
from server.api.roster import Roster
from server.api.traffic import Traffic
from server.domain import DEFAULT_TASK, Task
from server.engine.replicas import Replicas
from server.errors import Conflict
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore

PRESENCE_INTERVAL_S = 0.25
HEARTBEAT_S = 1.0
"""How often a process says that it lives; `hot_swap` counts those that did within five seconds."""
ENGINE_INTERVAL_S = 0.5
SWEEP_INTERVAL_S = 10.0
LAST_EPISODES_S = 2.0
"""How long a stopping process waits for episodes that were cancelled to be logged."""

_LONGEST_PAUSE_S = 5.0
_LOOK_EVERY_S = 0.02

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Readiness:
    """Whether an engine holds what serves now, and why not. Written by the engines' loop, read by `/ready`."""

    adapters: bool = False
    reason: str = "the engine has not been reconciled yet"
    refused: frozenset[str] = frozenset()
    """What no engine would take: requests that need one of these get a 503, the others are served."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Adapters that serve and whose files are not those that were saved, and why. Written by their own loop."""
    out: Mapping[str, str] = field(default_factory=dict)
    """The engines that take no requests, by address, and why."""


async def keep_default_task(roster: Roster, tasks: TaskStore) -> None:
    """Make the task `default` where the newest snapshot lacks it."""
    if DEFAULT_TASK in roster.snapshot.tasks:
        return
    with suppress(Conflict):  # another process was quicker
        await tasks.create(Task(DEFAULT_TASK))
    await roster.refresh()


async def announce_presence(process_id: str, presence: PresenceStore) -> None:
    """Say that a process is coming up, before it reads any champion.

    Else a hot swap that happens between its first look at the tasks and its first report would not wait for it, and
    unload what it is about to use.
    """
    await presence.report(process_id, {}, {})


async def let_episodes_end(traffic: Traffic) -> None:
    """Wait, for a bounded time, until no episode is in flight: those that were cancelled are still being logged."""
    deadline = asyncio.get_running_loop().time() + LAST_EPISODES_S
    while traffic.in_flight() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - nobody else waits for it
        await asyncio.sleep(_LOOK_EVERY_S)


class PresenceReport:
    """What this process last said of itself. It is said again where something changed, else once a second.

    Whether an adapter is in use is what counts: the numbers change with every request, and each report is a commit.
    """

    def __init__(
        self,
        process_id: str,
        roster: Roster,
        traffic: Traffic,
        presence: PresenceStore,
        engine: Replicas | None = None,
    ) -> None:
        self._process_id, self._roster, self._traffic, self._presence = process_id, roster, traffic, presence
        self._engine = engine
        self._said: tuple[dict[str, int], set[str], dict[str, list[str]]] | None = None
        self._said_at = 0.0

    async def renew(self) -> None:
        """Take the newest champions, then report what this process uses.

        The order matters: once the snapshot is swapped, every new episode uses it; what is in flight is counted in the
        same step in which the acknowledgement is made, so that an episode of an older generation is in the count.
        """
        snapshot = await self._roster.refresh()
        acknowledged, in_flight, now = snapshot.acknowledged(), self._traffic.in_flight(), time.monotonic()
        replicas = {} if self._engine is None else self._engine.seen()
        if self._said == (acknowledged, set(in_flight), replicas) and now - self._said_at < HEARTBEAT_S:
            return
        self._said = None  # said or not, where this fails
        await self._presence.report(self._process_id, acknowledged, in_flight, replicas)
        self._said, self._said_at = (acknowledged, set(in_flight), replicas), now


async def watch_engine(engine: Replicas, shelf: ServingShelf, readiness: Readiness) -> None:
    """Look at the engines, load what serves again where one lost it (it was restarted), and say what was found."""
    try:
        await engine.look(shelf)
    finally:
        refused, readiness.out = shelf.refused, engine.out()
        readiness.refused, readiness.adapters = frozenset(refused), bool(engine.seen())
        readiness.reason = "; ".join([*refused.values(), *readiness.out.values()])


async def repeat(name: str, work: Callable[[], Awaitable[object]], interval_s: float) -> None:
    """Repeat work for ever; after a failure wait longer each time, up to five seconds."""
    failures = 0
    while True:
        try:
            await work()
            if failures:
                _log.info("watch_recovered", watch=name)
            failures = 0
        except Exception as error:  # noqa: BLE001 -- a watch that dies would leave the process deaf; it says so and goes on
            failures += 1
            if failures == 1:
                _log.warning("watch_failed", watch=name, error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(min(interval_s * 2 ** min(failures, 5), max(interval_s, _LONGEST_PAUSE_S)))
