"""Where one round is worked on: its row, the tables that it reads and writes, its engine, its folder and its report.

Made by trainer.round, handed to all that does a part of the round. Every write goes through it and carries the lease.
It must never hold a database session while an engine or the trainer works.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from server.adapters.rooms import SwapRooms
from server.domain import Round, Task
from server.engine.base import Engine
from server.engine.replicas import Replicas, open_replicas
from server.errors import MulliganError, StoreUnavailable
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.canary_figures import CanaryFigures
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.fencing import RoundEpoch
from server.store.gates import GateStore
from server.store.holds import HoldStore
from server.store.lineage import LineageStore
from server.store.presence import PresenceStore
from server.store.rollouts import RolloutStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from trainer.ranks import ALONE, Ranks
from trainer.settings import TrainerSettings

T = TypeVar("T")

STORE_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # all together well below what makes a worker count as lost

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stores:
    """The tables that a round reads and writes."""

    rounds: RoundStore
    tasks: TaskStore
    episodes: EpisodeStore
    adapters: AdapterStore
    events: EventStore
    presence: PresenceStore
    verifiers: VerifierStore
    lineage: LineageStore
    rollouts: RolloutStore
    gates: GateStore
    holds: HoldStore
    canaries: CanaryStore
    figures: CanaryFigures

    @classmethod
    def open(cls, database: Database) -> "Stores":
        """Open them all on one database."""
        rounds, tasks, episodes = RoundStore(database), TaskStore(database), EpisodeStore(database)
        adapters, events, presence = AdapterStore(database), EventStore(database), PresenceStore(database)
        verifiers, lineage, rollouts = VerifierStore(database), LineageStore(database), RolloutStore(database)
        gates, holds = GateStore(database), HoldStore(database)
        log = rounds, tasks, episodes, adapters, events, presence, verifiers, lineage, rollouts, gates, holds
        return cls(*log, CanaryStore(database), CanaryFigures(database))


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one round is worked on: its row, fenced by its epoch, and what it needs."""

    round: Round
    task: Task
    stores: Stores
    engine: Engine
    settings: Settings
    options: TrainerSettings
    ranks: Ranks = ALONE
    report: dict[str, Any] = field(default_factory=dict)

    async def note(self, **changes: Any) -> Round:
        """Write to the round's row; without changes only prove that it is still ours. Raises: Fenced."""
        if "phase" in changes:
            _log.info("phase", round=self.round.id, phase=changes["phase"])
        return await insist(lambda: self.stores.rounds.update(self.round.id, self.round.epoch, **changes))

    async def tell(self, **parts: Any) -> None:
        """Add parts to the round's report and write it; the gate's figures stand beside `selection` and `budget`.

        Raises: Fenced.
        """
        self.report.update(parts)
        await self.note(report=dict(self.report))

    async def leave(self, **parts: Any) -> None:
        """Add last parts to the report, if the round is still ours and the store is there: nothing hangs on it."""
        with suppress(MulliganError):
            self.report.update(parts)
            await self.stores.rounds.update(*self.held, report=dict(self.report))

    @property
    def rooms(self) -> SwapRooms:
        """What moving an adapter takes."""
        of = self.stores
        moved = of.tasks, of.adapters, of.rounds, of.canaries, of.figures
        return SwapRooms(self.engine, *moved, of.presence, of.events, of.holds)

    @property
    def held(self) -> RoundEpoch:
        """The lease: what fenced writes carry."""
        return self.round.id, self.round.epoch

    @property
    def folder(self) -> Path:
        """Where the round keeps its log and its pushes."""
        return self.settings.rounds_dir / self.round.id


def open_engine(settings: Settings) -> Replicas:
    """Open the client of all engines that serve; whoever opens it closes it."""
    return open_replicas(settings.engine)


async def insist(write: Callable[[], Awaitable[T]]) -> T:
    """Write to the store, waiting a little where it is away: minutes of work hang on it. Raises: what it raises."""
    for pause_s in STORE_PAUSES_S:
        try:
            return await write()
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
    return await write()
