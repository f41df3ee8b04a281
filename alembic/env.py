"""Alembic's entry: runs the migrations on the connection that `server.store.migrations` hands in.

From the `alembic` command line it opens the database of the settings (`MULLIGAN_DATABASE_URL`) itself.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from server.settings import Settings
from server.store.database import normalise_url, open_engine
from server.store.tables import metadata


def migrate(connection: Connection) -> None:
    # Batch mode: SQLite can alter little in place, so Alembic copies the table.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


async def open_and_migrate() -> None:
    engine = open_engine(normalise_url(Settings().database_url), command_timeout_s=None)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    asyncio.run(open_and_migrate())
