"""Finds the task that a command names: one that is misspelt has no episodes or rounds, as one that is new."""

from server.domain import Task
from server.errors import NotFound
from server.store.database import Database
from server.store.tasks import TaskStore


async def find_task(database: Database, name: str) -> Task:
    """Find a task by its name. Raises: NotFound with the command that lists them."""
    task = await TaskStore(database).get(name)
    if task is None:
        raise NotFound(f"there is no task {name!r}: `mulligan tasks list` shows those there are")
    return task
