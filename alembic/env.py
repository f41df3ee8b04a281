"""Alembic's entry: runs the migrations on the connection that `server.store.migrations` hands in.

From the `alembic` command line it opens the database of the settings (`MULLIGAN_DATABASE_URL`) itself, under the same
lock as everybody else.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from server.settings import Settings
from server.store import migrations
from server.store.database import normalise_url
from server.store.partitions import include_on
from server.store.tables import metadata


def migrate(connection: Connection) -> None:
    # Batch mode: SQLite can alter little in place, so Alembic copies the table.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        compare_type=True,
        include_object=include_on(connection.dialect.name),
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    asyncio.run(migrations.run_alone(normalise_url(Settings().database_url), migrate))
