"""What moving an adapter takes: the engines, and every table that a move reads or writes."""

from dataclasses import dataclass

from server.domain import Adapter, Task
from server.engine.base import Engine
from server.errors import NotFound
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.canary_figures import CanaryFigures
from server.store.database import Database
from server.store.events import EventStore
from server.store.holds import HoldStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore


@dataclass(frozen=True, slots=True)
class SwapRooms:
    """The engines, and the stores of one database."""

    engine: Engine
    tasks: TaskStore
    adapters: AdapterStore
    rounds: RoundStore
    canaries: CanaryStore
    figures: CanaryFigures
    presence: PresenceStore
    events: EventStore
    holds: HoldStore

    @classmethod
    def open(cls, database: Database, engine: Engine) -> "SwapRooms":
        """Open them all on one database."""
        tasks, adapters, rounds = TaskStore(database), AdapterStore(database), RoundStore(database)
        canaries, figures = CanaryStore(database), CanaryFigures(database)
        watched = PresenceStore(database), EventStore(database), HoldStore(database)
        return cls(engine, tasks, adapters, rounds, canaries, figures, *watched)

    async def find_adapter(self, name: str) -> Adapter:
        """Read an adapter. Raises: NotFound."""
        adapter = await self.adapters.get(name)
        if adapter is None:
            raise NotFound(f"There is no adapter {name!r}.")
        return adapter

    async def find_task(self, name: str) -> Task:
        """Read a task. Raises: NotFound."""
        task = await self.tasks.get(name)
        if task is None:
            raise NotFound(f"There is no task {name!r}.")
        return task
