"""`mulligan adapters`: what rounds made, and which of it serves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer

from server.adapters import hot_swap
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.parts import EngineUrl, with_engine
from server.cli.show import print_json, print_things, standard_console, when
from server.domain import Task
from server.engine.sglang import SGLangEngine
from server.errors import InvalidRequest, NotFound
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.events import EventStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore

app = typer.Typer(help="List, promote and roll back adapters.", no_args_is_help=True)

COLUMNS = {
    "name": lambda adapter: adapter.name,
    "task": lambda adapter: adapter.task,
    "status": lambda adapter: f"{adapter.status.value}{' (forced)' if adapter.forced else ''}",
    "parent": lambda adapter: adapter.parent or "(base)",
    "round": lambda adapter: adapter.round_id,
    "made": lambda adapter: when(adapter.created_at),
}


@app.command("list", epilog="Example: mulligan adapters list --task sql")
def list_adapters(
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the adapters, and which one serves each task (`champion`)."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    print_things(ask_database(settings, lambda database: AdapterStore(database).list(task)), COLUMNS, as_json=as_json)


@app.command(epilog="Examples: mulligan adapters promote sql@3 | mulligan adapters promote sql@2 --force")
def promote(
    name: Annotated[str, typer.Argument(help="As `mulligan adapters list` shows it.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Even if the gate did not pass it; marked as forced.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Make an adapter its task's champion by a hot swap: no request is dropped."""
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), url=engine_url)

    async def swap(database: Database) -> Task:
        forced = not await _passed_the_gate(database, name)
        if forced and not force:
            raise InvalidRequest(f"the gate did not pass {name}: --force promotes it all the same, marked as forced")
        async with _open_engine(settings) as engine:
            return await hot_swap.promote(name, engine=engine, forced=forced, **_rooms(database))

    _print_task(ask_database(settings, swap), as_json=as_json)


@app.command(epilog="Example: mulligan adapters rollback sql")
def rollback(
    task: Annotated[str, typer.Argument(help="The task whose former champion is to serve again.")],
    *,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Put the champion before the present one back, or the base model, by a hot swap."""
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), url=engine_url)

    async def swap(database: Database) -> Task:
        async with _open_engine(settings) as engine:
            return await hot_swap.rollback(task, engine=engine, **_rooms(database))

    _print_task(ask_database(settings, swap), as_json=as_json)


async def _passed_the_gate(database: Database, name: str) -> bool:
    adapter = await AdapterStore(database).get(name)
    if adapter is None:
        raise NotFound(f"there is no adapter {name!r}: `mulligan adapters list` shows those there are")
    made_by = await RoundStore(database).get(adapter.round_id) if adapter.round_id else None
    return made_by is not None and made_by.report.get("decision") == "promoted"


@asynccontextmanager
async def _open_engine(settings: Settings) -> AsyncIterator[SGLangEngine]:
    engine = SGLangEngine(
        settings.engine.url, model_name=settings.engine.model_name, timeout_s=settings.engine.request_timeout_s
    )
    try:
        yield engine
    finally:
        await engine.close()


def _rooms(database: Database) -> dict[str, Any]:
    return {
        "tasks": TaskStore(database),
        "adapters": AdapterStore(database),
        "presence": PresenceStore(database),
        "events": EventStore(database),
        "actor": "command line",
    }


def _print_task(task: Task, *, as_json: bool) -> None:
    if as_json:
        print_json(task)
    else:
        champion = task.champion or "the base model"
        standard_console().print(f"{champion} serves task {task.name} (generation {task.generation})", markup=False)
