"""Records which episodes a round trains on, and follows the log from a request to the adapters that learnt from it.

Called by the trainer (record), and by the API and the command line (trace). What was recorded is never changed; only
what a lease recorded that was lost is forgotten, as its work is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Adapter, Episode, Round
from server.errors import NotFound
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.fencing import RoundEpoch, fence
from server.store.newest import newest_first
from server.store.rounds import RoundStore
from server.store.rows import fetch_one, fetch_row, fetch_rows
from server.store.tables import adapters, episodes, round_episodes, rounds

MOST_LISTED = 1000
"""Of a round's episodes so many are listed; how many there are is always said."""

MOST_COUNTED = 1000
"""So far it is counted what an adapter served: a champion of a busy task served millions."""


@dataclass(frozen=True, slots=True)
class Served:
    """The episodes that an adapter served, and the first's and the last's ids and times ("" and 0: none).

    They are counted up to `MOST_COUNTED`: where `count` is that, there may be more.
    """

    count: int = 0
    first: str = ""
    first_at: float = 0.0
    last: str = ""
    last_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TracedAdapter:
    """An adapter, what it served, those that it was trained on from (nearest first) and those trained on from it."""

    adapter: Adapter
    served: Served = Served()
    ancestors: tuple[str, ...] = ()
    descendants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TracedRound:
    """A round, how many episodes it trained on, the oldest `MOST_LISTED` of their ids, and the adapter that it left.

    `step` is the first that used the episode that was asked for; 0 where none was.
    """

    round: Round
    count: int = 0
    episodes: tuple[str, ...] = ()
    adapter: TracedAdapter | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """The lineage of one thing; `kind` is `episode`, `round` or `adapter`.

    Of an episode: itself, the adapter that served it and the rounds that trained on it. Of a round: itself alone in
    `rounds`. Of an adapter: itself and the round that made it.
    """

    kind: str
    id: str
    episode: Episode | None = None
    adapter: TracedAdapter | None = None
    rounds: tuple[TracedRound, ...] = ()


class LineageStore:
    """The lineage of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert
        self._episodes = EpisodeStore(database)
        self._rounds = RoundStore(database)
        self._adapters = AdapterStore(database)

    async def record(self, epoch_of_round: RoundEpoch, step: int, episode_ids: Sequence[str]) -> None:
        """Record, before a step learns from them, the episodes that it samples on; each once, with its first step.

        What an earlier lease recorded is forgotten: that lease's work was lost.

        Raises: Fenced.
        """
        round_id, epoch = epoch_of_round
        mine = round_episodes.c.round_id == round_id
        unique = dict.fromkeys(episode_ids)
        rows = [{"round_id": round_id, "episode_id": one, "step": step, "epoch": epoch} for one in unique]
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            await connection.execute(delete(round_episodes).where(mine, round_episodes.c.epoch < epoch))
            if rows:
                await connection.execute(self._insert(round_episodes).on_conflict_do_nothing(), rows)

    async def trace(self, id: str) -> Trace:  # noqa: A002
        """Follow an episode, a round or an adapter, by its id or name. Raises: NotFound."""
        if "@" not in id:
            if (episode := await self._episodes.get(id)) is not None:
                return await self._trace_episode(episode)
            if (found := await self._rounds.get(id)) is not None:
                return Trace("round", id, rounds=(await self._trace_round(found),))
        if (adapter := await self._adapters.get(id)) is not None:
            made_by = await self._rounds.get(adapter.round_id) if adapter.round_id else None
            made = (await self._trace_round(made_by, with_adapter=False),) if made_by else ()
            return Trace("adapter", id, adapter=await self._trace_adapter(adapter), rounds=made)
        raise NotFound(f"There is no episode, round or adapter {id!r}.", code="lineage_not_found")

    async def _trace_episode(self, episode: Episode) -> Trace:
        """Follow an episode to the rounds that used it, oldest first, and to the adapter that served it."""
        used = select(round_episodes.c.round_id, round_episodes.c.step).where(round_episodes.c.episode_id == episode.id)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, used.order_by(round_episodes.c.round_id))
        found = [(await self._rounds.get(row["round_id"]), row["step"]) for row in rows]
        used_by = [await self._trace_round(one, step=step, list_episodes=False) for one, step in found if one]
        served_by = await self._adapters.get(episode.adapter) if episode.adapter else None
        adapter = await self._trace_adapter(served_by) if served_by else None
        return Trace("episode", episode.id, episode, adapter, tuple(used_by))

    async def _trace_round(
        self, row: Round, *, step: int = 0, list_episodes: bool = True, with_adapter: bool = True
    ) -> TracedRound:
        mine = round_episodes.c.round_id == row.id
        listed = select(round_episodes.c.episode_id).where(mine).order_by(round_episodes.c.episode_id)
        async with self._database.read() as connection:
            counted = await fetch_one(connection, select(func.count().label("count")).where(mine))
            used = await fetch_rows(connection, listed.limit(MOST_LISTED if list_episodes else 0))
        left = await self._adapters.get(row.adapter) if with_adapter and row.adapter else None
        adapter = await self._trace_adapter(left) if left else None
        return TracedRound(row, counted["count"], tuple(one["episode_id"] for one in used), adapter, step)

    async def _trace_adapter(self, adapter: Adapter) -> TracedAdapter:
        """Find what an adapter served and its family, which is all of one task."""
        async with self._database.read() as connection:
            served = await _read_served(connection, adapter.name)
            parents = await _read_parents(connection, adapter.task)
        return TracedAdapter(
            adapter, served, find_ancestors(adapter.name, parents), find_descendants(adapter.name, parents)
        )


async def _read_parents(connection: AsyncConnection, task: str) -> dict[str, str]:
    """Read what each adapter of a task began with: its round knows; `adapters.parent` is the champion of that time."""
    began = func.coalesce(rounds.c.parent, adapters.c.parent).label("parent")
    of_task = select(adapters.c.name, began).outerjoin(rounds, rounds.c.id == adapters.c.round_id)
    rows = await fetch_rows(connection, of_task.where(adapters.c.task == task))
    return {row["name"]: row["parent"] for row in rows}


async def _read_served(connection: AsyncConnection, adapter: str) -> Served:
    mine = episodes.c.adapter == adapter
    some = select(episodes.c.id).where(mine).limit(MOST_COUNTED).subquery()
    count = (await fetch_one(connection, select(func.count().label("count")).select_from(some)))["count"]
    if not count:
        return Served()
    ends: list[Mapping[str, Any]] = []
    for oldest in (True, False):
        columns = select(episodes.c.id, episodes.c.created_at)
        end = newest_first(columns, episodes.c.adapter, adapter, oldest=oldest).limit(1)
        ends.append(await fetch_row(connection, end) or {"id": "", "created_at": 0.0})
    first, last = ends
    return Served(count, first["id"], first["created_at"], last["id"], last["created_at"])


def find_ancestors(name: str, parents: Mapping[str, str]) -> tuple[str, ...]:
    """List what an adapter was trained on from, the nearest first; the base model is not among them."""
    line: list[str] = []
    while (name := parents.get(name, "")) and name not in line:
        line.append(name)
    return tuple(line)


def find_descendants(name: str, parents: Mapping[str, str]) -> tuple[str, ...]:
    """List what was trained on from an adapter, by itself or by its descendants, in the order of their names."""
    found = {name}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return tuple(sorted(found - {name}))
