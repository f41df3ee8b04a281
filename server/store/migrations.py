"""Brings a database to the newest schema with Alembic. Called by the roots before they open the database.

The migrations lie in `alembic/` of the repository folder, found from this file and never from the working directory.
Upgrades exclude each other, so that any number of processes may start at once on one database.
"""

import asyncio
import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from server.store.database import normalise_url, open_engine

REPOSITORY = Path(__file__).resolve().parents[2]
ADVISORY_LOCK = 0x6D756C6C  # any number of our own: "mull"

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
    """Name the database's revision; None where it was never migrated."""
    return _run(url, lambda connection: MigrationContext.configure(connection).get_current_revision())


def _run(url: str, work: Callable[[Connection], T]) -> T:
    """Run `work` in one transaction, alone. In a thread of its own, so that it works under a running event loop."""
    with ThreadPoolExecutor(1, "migrations") as executor:
        return executor.submit(asyncio.run, _run_alone(normalise_url(url), work)).result()


async def _run_alone(url: URL, work: Callable[[Connection], T]) -> T:
    with _file_lock(url):
        engine = open_engine(url, command_timeout_s=None)  # another process may migrate for long
        try:
            async with engine.begin() as connection:
                if url.get_backend_name() == "postgresql":
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
                return await connection.run_sync(work)
        finally:
            await engine.dispose()


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
