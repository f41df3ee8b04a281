"""`mulligan adapters`: what rounds made, and which of it serves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from server.adapters import decisions
from server.adapters.decisions import RollbackPlan
from server.adapters.reconcile import ServingShelf
from server.adapters.rooms import SwapRooms
from server.cli.canaries import describe_canary, name_actor
from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.parts import EngineUrl, with_engine
from server.cli.retiring import retire
from server.cli.round_words import describe_objective
from server.cli.show import error_console, print_fields, print_json, print_things, standard_console, to_json, when
from server.domain import Adapter, Canary, Round, Task
from server.engine.replicas import open_replicas
from server.errors import InvalidRequest, NotFound
from server.orchestration.fingerprints import flag_doubts
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore

app = typer.Typer(help="List, show, promote, reject and roll back adapters.", no_args_is_help=True)

COLUMNS = {
    "name": lambda adapter: adapter.name,
    "task": lambda adapter: adapter.task,
    "status": lambda adapter: f"{adapter.status.value}{' (forced)' if adapter.forced else ''}",
    "parent": lambda adapter: adapter.parent or "(base)",
    "round": lambda adapter: adapter.round_id,
    "flags": lambda adapter: ", ".join(adapter.flags),
    "made": lambda adapter: when(adapter.created_at),
}


Name = Annotated[str, typer.Argument(help="As `mulligan adapters list` shows it.")]

app.command(epilog="Example: mulligan adapters retire sql@3")(retire)


@app.command("list", epilog="Example: mulligan adapters list --task sql")
def list_adapters(
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the adapters, and which one serves each task (`champion`)."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[Adapter]:
        if task:
            await find_task(database, task)
        return flag_doubts(await AdapterStore(database).list(task), await TaskStore(database).list())

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


@app.command(epilog="Example: mulligan adapters show sql@3")
def show(name: Name, as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Show one adapter: where it stands, whether the gate passed it or a human forced it, and its canary."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def find(database: Database) -> tuple[Adapter, bool, Canary | None, Round | None]:
        adapter = await _get(database, name)
        made_by = await RoundStore(database).get(adapter.round_id) if adapter.round_id else None
        trial = await CanaryStore(database).find_latest(name)
        return adapter, decisions.passed_gate(adapter, made_by), trial, made_by

    adapter, passed, trial, made_by = ask_database(settings, find)
    if as_json:
        objective = made_by.report.get("objective") if made_by else None
        print_json({**to_json(adapter), "passed_gate": passed, "trial": trial, "objective": objective})
        return
    by = f"{adapter.decided_by}: {adapter.comment}" if adapter.decided_by else ""
    print_fields(
        {
            **{label: render(adapter) for label, render in COLUMNS.items()},
            "objective": describe_objective(made_by.report) if made_by else "",
            "gate": "passed" if passed else "not passed",
            "decided by": by,
            "path": adapter.path,
            **(describe_canary(trial) if trial else {}),
        }
    )


@app.command(
    epilog='Examples: mulligan adapters promote sql@3 --comment "read 50 answers" | '
    'mulligan adapters promote sql@2 --force --comment "the gate had too few problems"'
)
def promote(
    name: Name,
    *,
    comment: Annotated[str, typer.Option(help="Why: it is kept with the adapter and in the audit log.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Even if the gate did not pass it; marked as forced.")] = False,
    canary: Annotated[
        bool | None,
        typer.Option("--canary/--now", help="Try it on live traffic first, or not.", show_default="the task's policy"),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Promote an adapter by a hot swap: no request is dropped. It approves what waits for approval.

    It becomes a canary where its task has a canary policy, else champion at once. A canary becomes champion.
    """
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), urls=engine_url)

    async def swap(database: Database) -> Task:
        await _get(database, name)
        _check_reason(comment)
        async with _open_rooms(settings, database) as rooms:
            if not force and await decisions.needs_force(name, rooms):
                raise InvalidRequest(
                    f"the gate did not pass {name}: --force promotes it all the same, marked as forced"
                )
            return await decisions.promote_by_hand(name, comment, rooms, actor=name_actor(), force=force, canary=canary)

    _print_task(ask_database(settings, swap), as_json=as_json)


@app.command(epilog='Example: mulligan adapters reject sql@3 --comment "it answers in French"')
def reject(
    name: Name,
    *,
    comment: Annotated[str, typer.Option(help="Why: it is kept with the adapter and in the audit log.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Reject a candidate for good, or end a canary: no round goes on from it."""
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), urls=engine_url)

    async def turn_down(database: Database) -> Adapter:
        await _get(database, name)
        _check_reason(comment)
        async with _open_rooms(settings, database) as rooms:
            return await decisions.reject_by_hand(name, comment, rooms, actor=name_actor())

    rejected = ask_database(settings, turn_down)
    if as_json:
        print_json(rejected)
    else:
        standard_console().print(f"{rejected.name} is rejected: {rejected.comment}", markup=False)


@app.command(
    epilog="Examples: mulligan adapters rollback sql | mulligan adapters rollback sql --to sql@2 | "
    "mulligan adapters rollback sql --to base --dry-run"
)
def rollback(
    task: Annotated[str, typer.Argument(help="The task whose former champion is to serve again.")],
    *,
    to: Annotated[str | None, typer.Option(help="Any former champion, or `base`.", show_default=False)] = None,
    comment: Annotated[str, typer.Option(help="Why: it is kept in the audit log.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Put a former champion back, or the base model, by a hot swap, and say what changes. A canary ends.

    Without --to a canary that runs is ended, and the champion stays; where none runs, the champion before comes back.
    """
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), urls=engine_url)

    async def swap(database: Database) -> Task | RollbackPlan:
        async with _open_rooms(settings, database, look=not dry_run) as rooms:
            plan = await decisions.plan_rollback(task, to, rooms)
            if dry_run:
                return plan
            error_console().print(plan.says, markup=False)
            return await decisions.roll_back(plan, comment, rooms, actor=name_actor())

    done = ask_database(settings, swap)
    if isinstance(done, Task):
        _print_task(done, as_json=as_json)
    elif as_json:
        print_json(done)
    else:
        former = ", ".join([*done.choices, decisions.BASE_WORD])
        standard_console().print(f"{done.says}\none may roll back to {former}", markup=False)


def _check_reason(comment: str) -> None:
    if not comment.strip():
        raise InvalidRequest('a decision by hand needs a reason: --comment "..."')


async def _get(database: Database, name: str) -> Adapter:
    adapter = await AdapterStore(database).get(name)
    if adapter is None:
        raise NotFound(f"there is no adapter {name!r}: `mulligan adapters list` shows those there are")
    return adapter


@asynccontextmanager
async def _open_rooms(settings: Settings, database: Database, *, look: bool = True) -> AsyncIterator[SwapRooms]:
    """Open the engines, after a look at each (one that is away is left out), and the tables beside them."""
    engine = open_replicas(settings.engine)
    try:
        if look:
            await engine.look(ServingShelf(TaskStore(database), AdapterStore(database)))
        yield SwapRooms.open(database, engine)
    finally:
        await engine.close()


def _print_task(task: Task, *, as_json: bool) -> None:
    if as_json:
        print_json(task)
        return
    champion, canary = task.champion or "the base model", ""
    if task.canary:
        canary = f", and its canary {task.canary} {100 * task.canary_share:g} % of its conversations"
    standard_console().print(f"{champion} serves task {task.name} (generation {task.generation}){canary}", markup=False)
