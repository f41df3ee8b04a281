"""`mulligan db`: the database's schema."""

import asyncio

import typer

from server.cli.options import DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import standard_console
from server.store import migrations
from server.store.retention import RetentionStore
from server.supervisor.first_run import ask_revision, upgrade_schema

app = typer.Typer(help="Bring the database's schema up to date.", no_args_is_help=True)


@app.command(epilog="Example: mulligan db upgrade --database-url postgresql://mulligan@db/mulligan")
def upgrade(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the schema up to date. `mulligan up` does it by itself; a server of several parts needs it once."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    asyncio.run(upgrade_schema(settings))
    standard_console().print(f"the schema is at {migrations.current(settings.database_url)}")
    days = settings.log.retention_days
    old = ask_database(settings, lambda database: RetentionStore(database, days, settings.log.keep_problems).plan())
    if count := old.month_episodes + old.episodes:
        standard_console().print(
            f"{count:,} episodes are older than {days:g} days: the worker will delete them. "
            "MULLIGAN_LOG__RETENTION_DAYS=0, set before it starts, keeps all for ever; `mulligan log status` says more"
        )


@app.command(epilog="Example: mulligan db current")
def current(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print the revision of the schema."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    standard_console().print(ask_revision(settings.database_url) or "empty")
