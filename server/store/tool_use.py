"""Finds the tasks whose answers call tools: by the verifiers that judge calls, and by what was asked lately."""

from sqlalchemy import select

from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import attempts, episodes, tasks, verifiers

CALL_KINDS = frozenset({"function_call"})
LATEST = 50
"""Attempts that are looked at in each task."""


async def find_tool_tasks(database: Database) -> set[str]:
    """Find the tasks that use tools. Raises: StoreUnavailable."""
    found: set[str] = set()
    async with database.read() as connection:
        kinds = {
            (row["name"], row["version"]): row["kind"]
            for row in await fetch_rows(connection, select(verifiers.c.name, verifiers.c.version, verifiers.c.kind))
        }
        for task in await fetch_rows(connection, select(tasks.c.name, tasks.c.verifiers)):
            pins = task["verifiers"]
            judged = any(
                kinds.get((pin["name"], pin["version"])) in CALL_KINDS
                or pin.get("when", {}).get("answer") == "tool_call"
                for pin in pins
            )
            latest = select(episodes.c.id).where(episodes.c.task == task["name"]).order_by(episodes.c.id.desc())
            asked = select(attempts.c.sampling).where(
                attempts.c.episode_id.in_(latest.limit(LATEST).scalar_subquery()), attempts.c.number == 1
            )
            if judged or any(row["sampling"].get("tools") for row in await fetch_rows(connection, asked)):
                found.add(task["name"])
    return found
