"""`mulligan round`: training rounds."""

import asyncio
import time
from typing import Annotated

import typer

from server.cli.options import (
    AsJson,
    BrokerUrl,
    DatabaseUrl,
    DataDir,
    ask_database,
    load_settings,
    open_database,
    parse_pairs,
)
from server.cli.show import error_console, print_fields, print_json, print_things, to_json, when
from server.domain import Round, Step
from server.errors import NotFound
from server.settings import Settings
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore

app = typer.Typer(help="Start, list, show and cancel training rounds.", no_args_is_help=True)

_POLL_S = 1.0
_SHOWN_METRICS = ("reward", "loss", "kl", "entropy", "groups_kept", "logprob_gap", "tokens", "rollout_s", "train_s")
"""What the table has room for; `--json` has all."""

RoundId = Annotated[str, typer.Argument(metavar="ID", help="As `mulligan round list` shows it.")]

COLUMNS = {
    "id": lambda row: row.id,
    "task": lambda row: row.task,
    "number": lambda row: row.number,
    "state": lambda row: row.state.value,
    "phase": lambda row: row.phase,
    "steps": lambda row: f"{row.steps_done}/{row.steps_total}" if row.steps_total else "",
    "adapter": lambda row: row.adapter,
    "reason": lambda row: row.reason,
    "started": lambda row: when(row.started_at),
    "ended": lambda row: when(row.ended_at),
}


@app.command(
    epilog="Examples: mulligan round start sql | mulligan round start sql --option steps=16 --option seed=3 --wait"
)
def start(
    task: Annotated[str, typer.Argument(help="The task to train.")],
    *,
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the trainer, for this round alone. May be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; exit status 1 if it failed.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Start a round: a worker picks it up and trains on the task's logged failures."""
    settings = load_settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url)
    from server.doorbell import Doorbell  # noqa: PLC0415 - the other commands start faster without Celery

    options = parse_pairs(option or [], "--option")

    async def create(database: Database) -> Round:
        if await TaskStore(database).get(task) is None:
            raise NotFound(f"there is no task {task!r}: `mulligan tasks list` shows those there are")
        return await RoundStore(database).create(task, options)

    row = ask_database(settings, create)
    Doorbell(settings).ring_round(row.id)
    if wait:
        row = asyncio.run(_wait(settings, row.id, quiet=as_json))
    _print_round(row, [], as_json=as_json)
    if wait and row.state.value == "failed":
        raise typer.Exit(1)


@app.command("list", epilog="Example: mulligan round list --task sql --json")
def list_rounds(
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List rounds, the newest first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    rows = ask_database(settings, lambda database: RoundStore(database).list(task, limit=limit))
    print_things(rows, COLUMNS, as_json=as_json)


@app.command(epilog="Example: mulligan round show rd_0193...")
def show(
    round_id: RoundId, as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Show one round: how far it is, its steps and what the gate said."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> tuple[Round, list[Step]]:
        store = RoundStore(database)
        return await _get(store, round_id), await store.steps(round_id)

    row, steps = ask_database(settings, read)
    _print_round(row, steps, as_json=as_json)


@app.command(epilog="Example: mulligan round cancel rd_0193...")
def cancel(
    round_id: RoundId, as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Cancel a round: a queued one at once, a running one before its next step."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    row = ask_database(settings, lambda database: RoundStore(database).request_cancel(round_id))
    _print_round(row, [], as_json=as_json)


async def _get(store: RoundStore, round_id: str) -> Round:
    row = await store.get(round_id)
    if row is None:
        raise NotFound(f"there is no round {round_id!r}: `mulligan round list` shows those there are")
    return row


async def _wait(settings: Settings, round_id: str, *, quiet: bool) -> Round:
    """Poll until the round has ended, saying where it stands when that changes."""
    console, said, began = error_console(), "", time.monotonic()
    async with open_database(settings) as database:
        while True:
            row = await _get(RoundStore(database), round_id)
            now = f"{row.state.value} {row.phase} {row.steps_done}/{row.steps_total or '?'} steps"
            if now != said and not quiet:
                console.print(f"{time.monotonic() - began:6.1f} s  {now}")
            said = now
            if row.state.ended:
                return row
            await asyncio.sleep(_POLL_S)


def _print_round(row: Round, steps: list[Step], *, as_json: bool) -> None:
    if as_json:
        print_json({**to_json(row), "steps": to_json(steps)})
        return
    print_fields(
        {
            "round": f"{row.id} (number {row.number} of task {row.task})",
            "state": " ".join(filter(None, [row.state.value, row.phase and f"({row.phase})"])),
            "reason": row.reason,
            "cancel asked": "yes" if row.cancel_requested and not row.state.ended else "",
            "options": row.options,
            "adapter": row.adapter,
            "parent": row.parent or "(base)",
            "steps": f"{row.steps_done} of {row.steps_total or '?'}",
            "gate": row.report,
            "times": f"made {when(row.created_at)}, started {when(row.started_at)}, ended {when(row.ended_at)}",
        }
    )
    if steps:
        shown = [name for name in _SHOWN_METRICS if any(name in step.metrics for step in steps)]
        columns = {"step": lambda step: step.number, **{name: _metric(name) for name in shown}}
        print_things(steps, columns, as_json=False)


def _metric(name: str):  # noqa: ANN202
    return lambda step: step.metrics.get(name)
