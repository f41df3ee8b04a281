"""Brings a database to the newest schema with Alembic. Called by the roots before they open the database.

The migrations lie in `alembic/` of the repository folder, found from this file and never from the working directory.
Upgrades exclude each other, so that any number of processes may start at once on one database.
"""

import asyncio
import fcntl
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.database import normalise_url, open_engine

REPOSITORY = Path(__file__).resolve().parents[2]
ADVISORY_LOCK = 0x6D756C6C  # any number of our own: "mull"

_REVISIONS = "alembic_version"  # Alembic's own table

T = TypeVar("T")


def configure(connection: Connection | None = None) -> Config:
    """Make Alembic's configuration for a connection.

    Raises: FileNotFoundError if the migrations are not beside the code.
    """
    scripts = REPOSITORY / "alembic"
    if not (scripts / "env.py").is_file():
        raise FileNotFoundError(f"No migrations at {scripts}: run Mulligan from its repository folder's own code")
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database to the newest schema, or to `revision`; makes an SQLite file where there is none.

    It blocks, for as long as another process migrates: from a coroutine call it with `asyncio.to_thread`.
    """
    _run(url, lambda connection: command.upgrade(configure(connection), revision))


def downgrade(url: str, revision: str = "base") -> None:
    """Take the database back to `revision`; `base` drops every table."""
    _run(url, lambda connection: command.downgrade(configure(connection), revision))


def current(url: str) -> str | None:
    """Name the database's revision; None where it was never migrated. Waits for nobody, and makes nothing."""
    parsed = normalise_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        return None
    return _run_apart(_read_revision(parsed))


def newest() -> str | None:
    """Name the revision that this release's code wants."""
    return ScriptDirectory.from_config(configure()).get_current_head()


def knows(revision: str) -> bool:
    """Say whether this release's code has a revision."""
    return any(one.revision == revision for one in ScriptDirectory.from_config(configure()).walk_revisions())


async def _read_revision(url: URL) -> str | None:
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_fetch_revision)
    finally:
        await engine.dispose()


def _fetch_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_REVISIONS):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_REVISIONS}")).scalar_one_or_none()  # noqa: S608 - ours


def _run(url: str, work: Callable[[Connection], T]) -> T:
    return _run_apart(run_alone(normalise_url(url), work))


def _run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own, so that it works under a running event loop."""
    with ThreadPoolExecutor(1, "migrations") as executor:
        return executor.submit(asyncio.run, work).result()


async def run_alone(url: URL, work: Callable[[Connection], T]) -> T:
    """Run `work` in one transaction while nobody else migrates this database; waits for whoever does, and says so."""
    with _file_lock(url):
        engine = open_engine(url, command_timeout_s=None)  # another process may migrate for long
        try:
            async with engine.begin() as connection:
                if url.get_backend_name() == "postgresql":
                    await _lock(connection)
                return await connection.run_sync(work)
        finally:
            await engine.dispose()


async def _lock(connection: AsyncConnection) -> None:
    key = {"key": ADVISORY_LOCK}
    if not (await connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), key)).scalar_one():
        sys.stderr.write("another process migrates this database: waiting for it\n")
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), key)


@contextmanager
def _file_lock(url: URL) -> Iterator[None]:
    """Lock a file beside an SQLite database: its own lock does not cover the change to WAL mode."""
    if url.get_backend_name() != "sqlite":
        yield
        return
    path = Path(url.database or "").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
