"""Keeps the tasks and their champion pointers. Called by the API, the promotion and the reconciliation."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from server.domain import CanaryState, Event, RetryPolicy, Task, TaskVerifier, TrainingPolicy, VerifyMode
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.fencing import RoundEpoch, fence
from server.store.moves import Hand, end_running_canary, hold_adapter, mark_champion
from server.store.rows import clean_values, fetch_row, fetch_rows, to_json
from server.store.tables import tasks

CHANGEABLE = frozenset({"verifiers", "verify", "retry", "training", "prompts", "unknown_fields"})


class TaskStore:
    """The tasks of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, task: Task) -> Task:
        """Add a task. Raises: Conflict if one of that name is there."""
        task = replace(task, created_at=task.created_at or time.time())
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(tasks).values(**_encode(task)))
        except IntegrityError as error:
            raise Conflict(f"The task {task.name!r} is there already") from error
        return task

    async def get(self, name: str) -> Task | None:
        """Find a task by its name."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(tasks).where(tasks.c.name == name))
        return decode_task(row) if row else None

    async def list(self) -> list[Task]:
        """List all tasks, by name."""
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(tasks).order_by(tasks.c.name))
        return [decode_task(row) for row in rows]

    async def update(self, name: str, **changes: Any) -> Task:
        """Change a task's `verifiers`, `verify`, `retry`, `training`, `prompts` or `unknown_fields`.

        Raises: NotFound; TypeError for any other field (the champion moves with `flip_champion` alone).
        """
        if unknown := set(changes) - CHANGEABLE:
            raise TypeError(f"Not to be changed here: {', '.join(sorted(unknown))}")
        values = {field: to_json(value) for field, value in changes.items()}
        statement = update(tasks).where(tasks.c.name == name).values(**clean_values(values)).returning(tasks)
        if not values:
            statement = select(tasks).where(tasks.c.name == name)
        async with self._database.write() as connection:
            row = await fetch_row(connection, statement)
        if row is None:
            raise NotFound(f"There is no task {name!r}")
        return decode_task(row)

    async def flip_champion(
        self,
        name: str,
        adapter: str,
        *,
        expected_generation: int,
        epoch_of_round: RoundEpoch | None = None,
        event: Event | None = None,
        hand: Hand | None = None,
        canary_ends: CanaryState = CanaryState.SUPERSEDED,
    ) -> Task:
        """Point the task at another adapter ("" = the base model); the generation grows by one.

        All that follows is in the same transaction: both adapters' statuses, the round that made the new one, the end
        of a canary (`promoted` where it is the new champion, else `canary_ends`) and the `event`, to whose details
        `from` and `generation` are added. `hand` is whose hand it was.

        Raises: NotFound; Conflict if what serves moved since `expected_generation` was read, or the adapter was
        rejected; Fenced.
        """
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            former = await fetch_row(connection, select(tasks).where(tasks.c.name == name).with_for_update())
            if former is None:
                raise NotFound(f"There is no task {name!r}")
            if former["generation"] != expected_generation:
                moved = f"generation {former['generation']}, not {expected_generation}"
                raise Conflict(f"What serves the task {name!r} moved meanwhile: {moved}")
            await hold_adapter(connection, adapter)
            moves = {"champion": adapter, "generation": expected_generation + 1, "canary": "", "canary_share": 0.0}
            changed = update(tasks).where(tasks.c.name == name).values(**clean_values(moves)).returning(tasks)
            task = decode_task((await fetch_row(connection, changed)) or {})
            why = str(event.details.get("reason", "")) if event else ""
            await end_running_canary(connection, task, canary_ends, former["canary"], why)
            await mark_champion(connection, task, former["champion"], event, hand)
        return task


def _encode(task: Task) -> dict[str, Any]:
    return clean_values(
        {
            "name": task.name,
            "verifiers": to_json(task.verifiers),
            "verify": str(task.verify),
            "retry": to_json(task.retry),
            "training": to_json(task.training),
            "prompts": dict(task.prompts),
            "unknown_fields": task.unknown_fields,
            "champion": task.champion,
            "generation": task.generation,
            "created_at": task.created_at,
            "canary": task.canary,
            "canary_share": task.canary_share,
        }
    )


def decode_task(row: Mapping[str, Any]) -> Task:
    """Make the task of a row."""
    return Task(
        name=row["name"],
        verifiers=msgspec.convert(row["verifiers"], tuple[TaskVerifier, ...]),
        verify=VerifyMode(row["verify"]),
        retry=msgspec.convert(row["retry"], RetryPolicy),
        training=msgspec.convert(row["training"], TrainingPolicy),
        prompts=row["prompts"],
        unknown_fields=row["unknown_fields"],
        champion=row["champion"],
        generation=row["generation"],
        created_at=row["created_at"],
        canary=row["canary"],
        canary_share=row["canary_share"],
    )
