"""`mulligan round`: training rounds."""

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from server.cli.gate import describe_gate, print_gate
from server.cli.named import find_task
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
from server.cli.round_words import describe_budget, describe_objective, describe_selection
from server.cli.show import error_console, print_fields, print_json, print_things, to_json, when
from server.domain import DEFAULT_POOL, Round, Step
from server.errors import NotFound
from server.orchestration.gate_plan import read_sizes
from server.orchestration.slots import find_room, refuse_unplaced
from server.orchestration.training_options import check_options
from server.settings import RoundSizes, Settings
from server.store.database import Database
from server.store.progress import ProgressStore
from server.store.rounds import DECIDED, RoundStore
from server.store.tasks import TaskStore

app = typer.Typer(help="Start, list, show and cancel training rounds.", no_args_is_help=True)

_POLL_S = 1.0
_SHOWN_METRICS = (
    *("reward", "loss", "first_try_loss", "kl", "entropy", "groups_kept", "mismatch_kl", "tokens"),
    *("rollout_s", "train_s"),
)
"""What the table has room for; `--json` has all."""

_TOLD = frozenset(
    {
        *("plan", "looks", "guards", "pairs", "controls", "reason", "selection", "objective", "budget", "recipe"),
        *("n", "samples", "first_before", "first_after", "second_before", "second_after", "difference", "ci95"),
        *("first_difference", "first_ci95", "decision", "replayed_steps"),
    }
)
"""What of a round's report is shown in words."""

RoundId = Annotated[str, typer.Argument(metavar="ID", help="As `mulligan round list` shows it.")]

COLUMNS = {
    "id": lambda row: row.id,
    "task": lambda row: row.task,
    "number": lambda row: row.number,
    "state": lambda row: row.state.value,
    "phase": lambda row: describe_phase(row) or describe_place(row),
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
    gate_only: Annotated[
        bool, typer.Option("--gate-only", help="Train nothing: gate the champion anew, under the prompts of today.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; exit status 1 if it failed.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Start a round: a worker picks it up and trains on the task's logged failures."""
    settings = load_settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url)
    from server.doorbell import Doorbell  # noqa: PLC0415 - the other commands start faster without Celery

    options = {**parse_pairs(option or [], "--option"), **({"gate_only": True} if gate_only else {})}

    async def create(database: Database) -> tuple[Round, str]:
        found = await find_task(database, task)
        await check_options(found.training.options, options)
        refuse_unplaced(await TaskStore(database).list(), await find_room(settings.engine), found)
        doubt = "" if gate_only else await _doubt_failures(database, task, {**found.training.options, **options})
        return await RoundStore(database).create(task, options), doubt

    row, doubt = ask_database(settings, create)
    if doubt and not as_json:
        error_console().print(doubt, style="yellow", markup=False)
    Doorbell(settings).ring_round(row.id, row.pool)
    if wait:
        row = asyncio.run(_wait(settings, row.id, quiet=as_json))
    _print_round(row, [], as_json=as_json)
    if wait and row.state.value == "failed":
        raise typer.Exit(1)


async def _doubt_failures(database: Database, task: str, options: Mapping[str, Any]) -> str:
    """Say where a round will not find failures enough; "" where it does."""
    least = read_sizes(options, RoundSizes()).min_failures
    found = await ProgressStore(database).count_failures(task, since=0.0, most=least)
    if found >= least:
        return ""
    return (
        f"a round needs {least} usable failures (min_failures), and {found} are in the log: where none come before it "
        "begins, it fails (`mulligan episodes import` asks problems from a file)"
    )


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

    async def read(database: Database) -> list[Round]:
        if task:
            await find_task(database, task)
        return await RoundStore(database).list(task, limit=limit)

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


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


def describe_phase(row: Round) -> str:
    """Say what a round does, or what it did when it broke off; "" where it came to a decision."""
    return "" if row.state in DECIDED else row.phase


def describe_place(row: Round) -> str:
    """Say where in the queue of its pool a round waits; "" where it does not."""
    if not row.place:
        return ""
    return f"place {row.place} in pool {row.pool}" if row.place > 1 or row.pool != DEFAULT_POOL else "next"


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
            "state": row.state.value + (f" ({phase})" if (phase := describe_phase(row)) else ""),
            "queue": describe_place(row),
            "reason": row.reason,
            "cancel asked": "yes" if row.cancel_requested and not row.state.ended else "",
            "options": row.options,
            "adapter": row.adapter,
            "parent": row.parent or "(base)",
            "steps": f"{row.steps_done} of {row.steps_total or '?'}",
            "objective": describe_objective(row.report),
            "stopped early": _say_stop(row.report),
            **describe_selection(row.report),
            **describe_budget(row.report),
            **describe_gate(row.report, row.id),
            "report": {name: value for name, value in row.report.items() if name not in _TOLD},
            "times": ", ".join(f"{word} {when(at)}" for word, at in _list_times(row) if at),
        }
    )
    print_gate(row.report)
    if steps:
        shown = [name for name in _SHOWN_METRICS if any(name in step.metrics for step in steps)]
        columns = {"step": lambda step: step.number, **{name: _metric(name) for name in shown}}
        print_things(steps, columns, as_json=False)


def _list_times(row: Round) -> list[tuple[str, float]]:
    return [("made", row.created_at), ("started", row.started_at), ("ended", row.ended_at)]


def _say_stop(report: Mapping[str, Any]) -> str:
    """Say what ended the training before its last step: a guard, or a budget."""
    if stopped := report.get("stopped"):
        return f"by the {stopped['guard']} guard after step {stopped['step']}: {stopped['words']}"
    return report.get("budget", {}).get("stopped", "")


def _metric(name: str):  # noqa: ANN202
    return lambda step: step.metrics.get(name)
