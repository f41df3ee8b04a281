"""Keeps the frozen panels: their problems, with everything that is needed to ask and judge them again, and the results.

Called by the trainer, which freezes and asks, and by whoever shows them. A version is written once and never changed:
a problem's content carries its hash, a panel the hash of all of them, and both are checked whenever a panel is read to
be asked. Content is a copy, so that the log may forget the episode; what has to be erased is erased there as well
(`server.store.deletions`), and the panel then wants a new version.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Panel, PanelResult
from server.errors import Conflict
from server.store.cleaning import decode_json, encode_json
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import clean_values, fetch_one, fetch_row, fetch_rows
from server.store.tables import episodes, panel_problems, panel_results, panels


@dataclass(frozen=True, slots=True)
class PanelProblem:
    """One problem of a panel. `content` is None once it had to be erased."""

    number: int  # from 1
    episode_id: str
    problem: str
    pins: tuple[str, ...]
    content: Mapping[str, Any] | None


class PanelStore:
    """The panels of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def freeze(self, task: str, problems: Sequence[PanelProblem], reason: str) -> Panel:
        """Write the next version of a task's panel.

        Raises: Conflict where another process has just written it, or one of the episodes was deleted meanwhile.
        """
        kept = [decode_json(encode_json(one.content)) for one in problems]
        hashes = [_hash(content) for content in kept]
        number = select(func.coalesce(func.max(panels.c.version), 0) + 1).where(panels.c.task == task)
        try:
            async with self._database.write() as connection:
                await _hold_episodes(connection, task, [one.episode_id for one in problems])
                version = (await connection.execute(number)).scalar_one()
                values = {"task": task, "version": version, "size": len(problems), "reason": reason}
                made = insert(panels).values(**values, sha256=_hash(hashes), created_at=UnixNow()).returning(panels)
                panel = _decode(await fetch_one(connection, made))
                rows = [
                    {
                        "task": task,
                        "version": version,
                        "number": place + 1,
                        "episode_id": one.episode_id,
                        "problem": one.problem,
                        "pins": list(one.pins),
                        "sha256": digest,
                        "content": content,
                    }
                    for place, (one, digest, content) in enumerate(zip(problems, hashes, kept, strict=True))
                ]
                await connection.execute(insert(panel_problems), [clean_values(row) for row in rows])
        except IntegrityError as error:
            raise Conflict(f"The panel of task {task!r} got a new version just now") from error
        return panel

    async def find_latest(self, task: str) -> Panel | None:
        """Find the newest version of a task's panel."""
        statement = select(panels).where(panels.c.task == task).order_by(panels.c.version.desc()).limit(1)
        async with self._database.read() as connection:
            row = await fetch_row(connection, statement)
        return _decode(row) if row else None

    async def read_problems(self, panel: Panel) -> list[PanelProblem]:
        """Read a panel's problems in their order. Raises: Conflict where they are not the ones that were frozen."""
        statement = select(panel_problems).where(*_of(panel_problems, panel)).order_by(panel_problems.c.number)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        for row in rows:
            if row["content"] is not None and _hash(row["content"]) != row["sha256"]:
                raise Conflict(
                    f"Problem {row['number']} of the panel of task {panel.task!r}, version {panel.version}, was "
                    f"altered: `mulligan panel freeze {panel.task}` makes a new version"
                )
        if len(rows) != panel.size or _hash([row["sha256"] for row in rows]) != panel.sha256:
            raise Conflict(
                f"The panel of task {panel.task!r}, version {panel.version}, does not hold the problems that were "
                f"frozen: `mulligan panel freeze {panel.task}` makes a new version"
            )
        return [
            PanelProblem(row["number"], row["episode_id"], row["problem"], tuple(row["pins"]), row["content"])
            for row in rows
        ]

    async def find_stale(self, panel: Panel, revoked: Collection[str]) -> str:
        """Say why a panel wants a new version: a verifier was revoked, or content erased; "" where it does not."""
        statement = select(panel_problems.c.pins, panel_problems.c.content.is_(None).label("erased")).where(
            *_of(panel_problems, panel)
        )
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        gone = sorted({pin for row in rows for pin in row["pins"] if pin in revoked})
        if gone:
            return f"revoked: {', '.join(gone)}"
        erased = sum(row["erased"] for row in rows)
        return f"{erased} problems were erased" if erased else ""

    async def add_results(self, panel: Panel, results: Sequence[PanelResult]) -> None:
        """Write what came of asking problems; what was asked under other conditions before is replaced."""
        async with self._database.write() as connection:
            for one in results:
                values = {
                    "conditions": one.conditions,
                    "judged": one.judged,
                    "first_passed": one.first_passed,
                    "second_passed": one.second_passed,
                    "tokens": one.tokens,
                    "created_at": UnixNow(),
                }
                key = {"task": panel.task, "version": panel.version, "adapter": one.adapter, "number": one.number}
                statement = self._insert(panel_results).values(**key, **values)
                await connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))

    async def list_results(self, panel: Panel) -> list[PanelResult]:
        """List the results of a panel's version, by adapter and problem."""
        columns = [column for column in panel_results.columns if column.name not in ("task", "version", "created_at")]
        statement = select(*columns).where(*_of(panel_results, panel))
        statement = statement.order_by(panel_results.c.adapter, panel_results.c.number)
        async with self._database.read() as connection:
            return [PanelResult(**row) for row in await fetch_rows(connection, statement)]

    async def count_results(self, panel: Panel, adapter: str) -> int:
        """Count the problems that an adapter was asked, under whatever conditions."""
        some = select(func.count().label("count")).where(*_of(panel_results, panel), panel_results.c.adapter == adapter)
        async with self._database.read() as connection:
            return (await fetch_one(connection, some))["count"]


async def _hold_episodes(connection: AsyncConnection, task: str, ids: Sequence[str]) -> None:
    """Keep a deletion from passing by until this is committed: it would leave the copies of what it deletes."""
    held = select(episodes.c.id).where(episodes.c.id.in_(ids)).order_by(episodes.c.id)
    there = await fetch_rows(connection, held.with_for_update(read=True, key_share=True))
    if len(there) < len(set(ids)):
        raise Conflict(f"Problems of task {task!r} were deleted while its panel was frozen: try again")


def _of(table: Any, panel: Panel) -> tuple[Any, Any]:
    return table.c.task == panel.task, table.c.version == panel.version


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _decode(row: Mapping[str, Any]) -> Panel:
    return Panel(**row)
