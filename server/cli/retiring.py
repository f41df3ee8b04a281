"""`mulligan adapters retire`: an adapter that may not be used any more, its weights with it."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_json, standard_console
from server.domain import Adapter, AdapterStatus, Event
from server.errors import Conflict, NotFound
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.events import EventStore
from server.store.tasks import TaskStore

ACTOR = "command line"
NOT_SERVING = (AdapterStatus.CANDIDATE, AdapterStatus.RETIRED, AdapterStatus.REJECTED)


def retire(
    name: Annotated[str, typer.Argument(help="As `mulligan adapters list` shows it.")],
    *,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take an adapter out of use for good and delete its weights; what it served stays in the log.

    For one that learnt from what was deleted since. No round goes on from it, and it cannot be rolled back to.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    adapter = ask_database(settings, lambda database: _retire(database, settings, name))
    if as_json:
        print_json(adapter)
    else:
        standard_console().print(f"{adapter.name} is retired, and its weights are deleted", markup=False)


async def _retire(database: Database, settings: Settings, name: str) -> Adapter:
    store = AdapterStore(database)
    adapter = await store.get(name)
    if adapter is None:
        raise NotFound(f"there is no adapter {name!r}: `mulligan adapters list` shows those there are")
    refusal = Conflict(f"{name} serves {adapter.task}: `mulligan adapters rollback {adapter.task}` first")
    task = await TaskStore(database).get(adapter.task)
    if task and name in (task.champion, task.canary):
        raise refusal
    try:  # in one step, for it may be promoted at this very moment
        retired = await store.set_status(name, AdapterStatus.REJECTED, only_from=NOT_SERVING)
    except Conflict as error:
        raise refusal from error
    folder = Path(adapter.path)
    if folder.is_relative_to(settings.adapters_dir) and folder != settings.adapters_dir:
        await asyncio.to_thread(shutil.rmtree, folder, True)
    await EventStore(database).add(Event("adapter.retired", name, ACTOR, {"was": str(adapter.status)}))
    return retired
