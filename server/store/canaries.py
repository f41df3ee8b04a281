"""Keeps the canaries: which adapter is on trial on which share of a task's traffic, and what came of each.

Called by `server.adapters.canary`, the API and the command line. Each move is one transaction over the task (which is
what serves), the canary, its adapter, its round and the audit log, and names the generation that it was decided on: of
two that decide at once one gets a Conflict, and a process that is killed leaves all of a move or nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import (
    AdapterStatus,
    Canary,
    CanaryPolicy,
    CanaryState,
    CanaryStep,
    Event,
    RoundState,
    Task,
)
from server.errors import Conflict
from server.store.database import Database
from server.store.events import write_event
from server.store.fencing import RoundEpoch, fence
from server.store.moves import STATUS_AFTER, Hand, decide_round, hold_adapter, set_status
from server.store.rows import clean_values, fetch_row, fetch_rows, to_json
from server.store.tables import adapters, canaries, tasks
from server.store.tasks import decode_task


class CanaryStore:
    """The canaries of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self,
        canary: Canary,
        *,
        expected_generation: int,
        event: Event,
        hand: Hand | None = None,
        epoch_of_round: RoundEpoch | None = None,
    ) -> Task:
        """Let the first share of the task's conversations begin with an adapter that the engine holds already.

        Raises: Conflict where a canary runs, what serves has moved, or the adapter was rejected; Fenced.
        """
        share = canary.steps[-1].share
        free = [tasks.c.canary == "", tasks.c.champion == canary.champion]
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            task = await _move(
                connection, canary.task, expected_generation, {"canary": canary.adapter, "canary_share": share}, *free
            )
            await hold_adapter(connection, canary.adapter)
            values = _encode(replace(canary, generation=task.generation))
            try:
                await connection.execute(insert(canaries).values(**values))
            except IntegrityError as error:
                raise Conflict(f"Task {canary.task!r} has a canary already") from error
            await set_status(connection, canary.adapter, AdapterStatus.CANARY, hand)
            await _tell(connection, event, task)
        return task

    async def widen(self, canary: Canary, step: CanaryStep, report: Mapping[str, Any], *, event: Event) -> Task:
        """Let a larger share begin with it. Raises: Conflict where it ended, or somebody else moved it on."""
        async with self._database.write() as connection:
            mine = tasks.c.canary == canary.adapter
            task = await _move(connection, canary.task, canary.generation, {"canary_share": step.share}, mine)
            changes = {"steps": to_json((*canary.steps, step)), "generation": task.generation, "report": report}
            await _change(connection, canary.id, changes)
            await _tell(connection, event, task)
        return task

    async def end(
        self,
        canary: Canary,
        state: CanaryState,
        reason: str,
        report: Mapping[str, Any],
        *,
        event: Event,
        hand: Hand | None = None,
        ended_at: float,
    ) -> Task:
        """End it without making it champion: every new episode begins with the champion again.

        Raises: Conflict where it ended, or somebody else moved it on.
        """
        async with self._database.write() as connection:
            mine = tasks.c.canary == canary.adapter
            values = {"canary": "", "canary_share": 0.0}
            task = await _move(connection, canary.task, canary.generation, values, mine)
            ending = {"state": state.value, "reason": reason, "ended_at": ended_at, "generation": task.generation}
            await _change(connection, canary.id, {**ending, "report": report})
            await set_status(connection, canary.adapter, STATUS_AFTER[state], hand)
            if state is CanaryState.ROLLED_BACK:
                await decide_round(connection, canary.adapter, RoundState.REGRESSED, f"its canary: {reason}")
            await _tell(connection, event, task)
        return task

    async def abandon(self, canary: Canary, reason: str, *, ended_at: float) -> bool:
        """End a canary that no longer is what serves: something that knows of none moved the champion; say whether.

        The task loses its mark too, if it still has it, so that the champion alone serves.
        """
        async with self._database.write() as connection:
            row = await fetch_row(connection, select(tasks).where(tasks.c.name == canary.task).with_for_update())
            if row is not None and (row["canary"], row["generation"]) == (canary.adapter, canary.generation):
                return False  # it is as it should be
            if row is not None and row["canary"] == canary.adapter:
                await _move(connection, canary.task, row["generation"], {"canary": "", "canary_share": 0.0})
            state = CanaryState.SUPERSEDED
            changes = {"state": state.value, "reason": reason, "ended_at": ended_at}
            changed = await _change(connection, canary.id, changes)
            if changed and (row is None or row["champion"] != canary.adapter):
                await set_status(connection, canary.adapter, STATUS_AFTER[state])
        return changed

    async def reject(self, adapter: str, hand: Hand) -> None:
        """Move a candidate to `rejected`, and its round, where that was undecided, to `regressed`.

        Raises: Conflict for what is no candidate.
        """
        async with self._database.write() as connection:
            mine = select(adapters.c.status).where(adapters.c.name == adapter).with_for_update()
            row = await fetch_row(connection, mine)
            if row is None or row["status"] != AdapterStatus.CANDIDATE.value:
                status = row["status"] if row else "gone"
                raise Conflict(f"{adapter!r} is {status}, no candidate: a champion is rolled back.")
            await set_status(connection, adapter, AdapterStatus.REJECTED, hand)
            why = f"rejected by {hand.actor}: {hand.comment}"
            await decide_round(connection, adapter, RoundState.REGRESSED, why)
            await write_event(connection, Event("adapter.rejected", adapter, hand.actor, {"comment": hand.comment}))

    async def note(self, canary: Canary, report: Mapping[str, Any]) -> None:
        """Write what was seen so far; nothing where it ended."""
        async with self._database.write() as connection:
            await _change(connection, canary.id, {"report": report})

    async def running(self) -> list[Canary]:
        """List those that run, by id."""
        return await self._list(canaries.c.state == CanaryState.RUNNING.value, limit=None)

    async def find_running(self, task: str) -> Canary | None:
        """Find the canary of a task that runs."""
        found = await self._list((canaries.c.task == task) & (canaries.c.state == CanaryState.RUNNING.value), limit=1)
        return found[0] if found else None

    async def find_latest(self, adapter: str) -> Canary | None:
        """Find the latest canary of an adapter."""
        found = await self._list(canaries.c.adapter == adapter, limit=1)
        return found[0] if found else None

    async def _list(self, condition: ColumnElement[bool], *, limit: int | None) -> list[Canary]:
        statement = select(canaries).where(condition).order_by(canaries.c.id.desc()).limit(limit)
        async with self._database.read() as connection:
            return [_decode(row) for row in await fetch_rows(connection, statement)]


async def _move(
    connection: AsyncConnection,
    task: str,
    expected_generation: int,
    values: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> Task:
    """Change what serves a task; the generation grows by one. Raises: Conflict."""
    statement = (
        update(tasks)
        .where(tasks.c.name == task, tasks.c.generation == expected_generation, *conditions)
        .values(**clean_values(values), generation=tasks.c.generation + 1)
        .returning(tasks)
    )
    row = await fetch_row(connection, statement)
    if row is None:
        raise Conflict(f"What serves the task {task!r} moved meanwhile, or it has a canary already")
    return decode_task(row)


async def _change(connection: AsyncConnection, canary_id: str, changes: Mapping[str, Any]) -> bool:
    running = (canaries.c.id == canary_id, canaries.c.state == CanaryState.RUNNING.value)
    values = clean_values({**changes, **({"report": to_json(changes["report"])} if "report" in changes else {})})
    result = await connection.execute(update(canaries).where(*running).values(**values))
    return result.rowcount == 1


async def _tell(connection: AsyncConnection, event: Event, task: Task) -> None:
    await write_event(connection, replace(event, details={**event.details, "generation": task.generation}))


def _encode(canary: Canary) -> dict[str, Any]:
    values = to_json(canary)
    return clean_values({**values, "state": canary.state.value})


def _decode(row: Mapping[str, Any]) -> Canary:
    steps = tuple(CanaryStep(**step) for step in row["steps"])
    policy = msgspec.convert(row["policy"], CanaryPolicy)
    return Canary(**{**row, "steps": steps, "policy": policy, "state": CanaryState(row["state"])})
