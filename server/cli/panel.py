"""`mulligan panel`: held-out problems that never change, asked of the base model and of every champion."""

import os
import subprocess
import sys
from typing import Annotated

import typer

from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.parts import EngineUrl, with_engine
from server.cli.show import print_json, print_things, standard_console, when
from server.orchestration.panel import PanelReport, PanelRow, read_panel
from server.settings import Settings
from server.store.database import Database

app = typer.Typer(help="Show, run and freeze a task's frozen panel.", no_args_is_help=True)

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")]


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _interval(row: PanelRow) -> str:
    return f"{_percent(row.second_try)} [{row.ci95[0] * 100:.1f}, {row.ci95[1] * 100:.1f}]"


COLUMNS = {
    "adapter": lambda row: row.adapter or "(base)",
    "status": lambda row: row.status,
    "n": lambda row: row.n,
    "second try [95 %]": _interval,
    "first try": lambda row: _percent(row.first_try),
    "tokens a passed answer": lambda row: "" if row.tokens_per_passed is None else round(row.tokens_per_passed),
    "against base": lambda row: row.says,
}


@app.command(epilog="Examples: mulligan panel show sql | mulligan panel show sql --json")
def show(task: TaskName, as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Show what the newest version of a task's panel says of the base model and of each champion."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> PanelReport:
        await find_task(database, task)
        return await read_panel(task, database)

    report = ask_database(settings, read)
    if as_json:
        print_json(report)
        return
    console = standard_console()
    frozen = f", frozen {when(report.panel.created_at)}" if report.panel else ""
    console.print(f"panel of {task}: {report.says}{frozen}", markup=False)
    if report.panel:
        print_things(report.rows, COLUMNS, as_json=False, none=f"nothing asked yet: mulligan panel run {task}")


@app.command(epilog="Example: mulligan panel run sql")
def run(
    task: TaskName, data_dir: DataDir = None, database_url: DatabaseUrl = None, engine_url: EngineUrl = None
) -> None:
    """Ask the panel's problems of the base model and of every champion, where they were not asked yet.

    The worker does it by itself after a promotion, when no round waits. What is asked comes after users' requests.
    """
    settings = with_engine(load_settings(data_dir=data_dir, database_url=database_url), urls=engine_url)
    _run(settings, "--task", task)


@app.command(epilog="Example: mulligan panel freeze sql --reason 'other customers since May'")
def freeze(
    task: TaskName,
    *,
    reason: Annotated[str, typer.Option(help="Why: it is shown with the version.")] = "by command",
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Freeze a new version of a task's panel from the held-out problems of today.

    What was measured on the former version stays with it; every champion is asked the new one.
    """
    _run(load_settings(data_dir=data_dir, database_url=database_url), "--task", task, "--freeze", reason)


def _run(settings: Settings, *arguments: str) -> None:
    """Let the trainer's own code do it, in a process of its own: it needs the model's tokenizer."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**settings.environment(), **quiet, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-m", "trainer.panel", *arguments], env=environment, check=False)
    if done.returncode:
        raise typer.Exit(1)
