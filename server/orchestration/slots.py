"""Plans the adapters that engines hold against the room that they have for them.

Pure, but for asking engines for their room. Called by the doctor, and wherever a task or a round is begun. What takes a
place: each champion, each canary, and for each pool that trains two more (the candidate's last push and the next one;
at a promotion the push and the new champion, before the old one has drained). The base model takes none of
`max_loaded_loras`; of a batch (`max_loras_per_batch`, SGLang's) it takes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.domain import BASE_ADAPTER, Task
from server.engine.inspection import inspect_engine
from server.errors import Conflict, MulliganError
from server.settings import EngineSettings

ASK_S = 2.0
PUSHES = 2
"""Places of a round's candidate: its push that is sampled from, and the one that comes."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one engine has room for; None is no limit, or one that is not told."""

    loaded: int | None
    batch: int | None


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How many adapters may be held at once, and for what. `together` are those of one batch, the base among them."""

    champions: tuple[str, ...]
    canaries: tuple[str, ...]
    pools: tuple[str, ...]
    room: Room

    @property
    def needed(self) -> int:
        """Places taken at most."""
        return len(self.champions) + len(self.canaries) + PUSHES * len(self.pools)

    @property
    def together(self) -> int:
        """Adapters that one batch may want at once, the base as one."""
        return len(self.champions) + len(self.canaries) + len(self.pools) + 1

    @property
    def fits(self) -> bool:
        """Whether nothing is evicted."""
        return self.room.loaded is None or self.needed <= self.room.loaded

    @property
    def shares_batches(self) -> bool:
        """Whether all of them may run in one batch."""
        return self.room.batch is None or self.together <= self.room.batch

    @property
    def says(self) -> str:
        """Say it in a line: "6 of 8 slots: ..."."""
        parts = [f"{len(self.champions)} for champions ({', '.join(self.champions)})"] if self.champions else []
        parts += [f"{len(self.canaries)} for canaries ({', '.join(self.canaries)})"] if self.canaries else []
        parts += [f"{PUSHES} for the candidate of pool {pool} and its next push" for pool in self.pools]
        of = "no limit told" if self.room.loaded is None else f"{self.needed} of {self.room.loaded} slots"
        return f"{of}: {'; '.join(parts) or 'nothing yet'}"

    @property
    def remedy(self) -> str:
        """Say which flag to raise; "" where nothing has to be."""
        if not self.fits:
            return (
                f"start the engine with --max-loaded-loras {self.needed} "
                f"(MULLIGAN_ENGINE__MAX_LOADED_LORAS={self.needed} where `mulligan` starts it): "
                "past it the engine evicts adapters that serve"
            )
        if not self.shares_batches:
            return (
                f"start the engine with --max-loras-per-batch {self.together} "
                f"(MULLIGAN_ENGINE__MAX_LORAS_PER_BATCH={self.together}): below it requests of different tasks wait "
                "for each other's batches"
            )
        return ""


async def find_room(settings: EngineSettings) -> Room:
    """Ask the engines what room they have, the smallest of them; where none answers, take the settings' word."""
    loaded: list[int] = []
    batch: list[int] = []
    for url in settings.every_url:
        try:
            facts = await inspect_engine(url, timeout_s=ASK_S)
        except MulliganError:
            continue
        loaded += [facts.max_loaded_loras] if facts.max_loaded_loras else []
        batch += [facts.max_loras_per_batch] if facts.max_loras_per_batch else []
    own_batch = settings.max_loras_per_batch if settings.kind == "sglang" else None
    return Room(min(loaded, default=settings.max_loaded_loras), min(batch, default=own_batch))


def refuse_unplaced(tasks: Sequence[Task], room: Room, promoting: Task) -> None:
    """Let a round be asked for only where an engine can hold what it makes. Raises: Conflict, saying which flag."""
    plan = plan_slots(tasks, room, promoting=promoting)
    if not plan.fits:
        raise Conflict(f"The engine cannot hold what a round of {promoting.name!r} makes ({plan.says}): {plan.remedy}")


def plan_slots(tasks: Sequence[Task], room: Room, *, promoting: Task | None = None) -> SlotPlan:
    """Plan what tasks hold in an engine. `promoting`: a task that may get its first champion by what is begun now."""
    champions = {task.name for task in tasks if task.champion != BASE_ADAPTER}
    canaries = {task.name for task in tasks if _may_try(task)}
    training = [task for task in tasks if _trains(task) or task.champion != BASE_ADAPTER]
    if promoting is not None:
        champions.add(promoting.name)
        training.append(promoting)
    pools = sorted({task.training.pool for task in training})
    return SlotPlan(tuple(sorted(champions)), tuple(sorted(canaries)), tuple(pools), room)


def _trains(task: Task) -> bool:
    return task.training.train_on_new_failures is not None or task.training.interval_s is not None


def _may_try(task: Task) -> bool:
    """Say whether a candidate of the task may serve beside its champion."""
    return task.canary != BASE_ADAPTER or task.training.canary is not None
