"""Prepares the database before the parts start: migrations, the `default` task, the first admin key.

Called by `mulligan up` and `mulligan demo`; repeating it changes nothing.
"""

import asyncio

from server.addresses import hide_password
from server.domain import Role, Task
from server.errors import Conflict, StoreUnavailable
from server.settings import Settings
from server.store import migrations
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.tasks import TaskStore

DEFAULT_TASK = "default"
_NO_SUCH_DATABASE = "3D000"  # of PostgreSQL


async def upgrade_schema(settings: Settings) -> None:
    """Bring the database's schema up to date. Raises: StoreUnavailable, with the driver's own words."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        await asyncio.to_thread(migrations.upgrade, settings.database_url)
    except Exception as error:  # database drivers raise errors of their own libraries, and all of them end the start
        shown = hide_password(settings.database_url)
        raise StoreUnavailable(f"the database {shown} (--database-url) cannot be used: {name_cause(error)}") from error


def ask_revision(database_url: str) -> str | None:
    """Ask for the revision of a database's schema; None: there is none yet. Raises: StoreUnavailable, likewise."""
    try:
        return migrations.current(database_url)
    except Exception as error:
        shown = hide_password(database_url)
        raise StoreUnavailable(f"the database {shown} (--database-url) cannot be used: {name_cause(error)}") from error


def name_cause(error: BaseException) -> str:
    """Name what kept a database from being opened, in its driver's words; what went wrong later is told whole."""
    if getattr(error, "statement", None):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    remedy = "; make it first, empty: `createdb`" if getattr(error, "sqlstate", "") == _NO_SUCH_DATABASE else ""
    return f"{error}{remedy}"


async def prepare(settings: Settings) -> None:
    """Bring the database up to date and make the `default` task.

    Raises StoreUnavailable where the database cannot be reached.
    """
    await upgrade_schema(settings)
    database = Database(settings.database_url)
    try:
        await ensure_task(TaskStore(database), Task(name=DEFAULT_TASK))
    finally:
        await database.close()


async def make_first_key(settings: Settings) -> str | None:
    """Create the first admin key if there is none, and return its secret, to be shown this once."""
    database = Database(settings.database_url)
    try:
        keys = KeyStore(database)
        if await keys.list():
            return None
        secret, _ = await keys.create("first", Role.ADMIN)
        return secret
    finally:
        await database.close()


async def ensure_task(tasks: TaskStore, task: Task) -> None:
    """Create the task unless it is there."""
    if await tasks.get(task.name) is None:
        try:
            await tasks.create(task)
        except Conflict:  # another process was quicker
            return


async def make_key(settings: Settings, name: str) -> str:
    """Create one more admin key and return its secret."""
    database = Database(settings.database_url)
    try:
        secret, _ = await KeyStore(database).create(name, Role.ADMIN)
        return secret
    finally:
        await database.close()
