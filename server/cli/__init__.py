"""The `mulligan` command: one module for each group of commands, errors in one line.

Commands that read or change things talk to the database of the data folder directly, so they run on the server's own
machine, with the server up or down. Exit status: 0 done, 1 failed, 2 misused.
"""

import os
import sys
from importlib import metadata
from typing import Annotated

import typer
from pydantic import ValidationError

from server.cli import (
    adapters,
    backup,
    db,
    demo,
    doctor,
    episodes,
    feedback,
    gate,
    keys,
    lineage,
    log,
    panel,
    parts,
    rounds,
    tasks,
    up,
    verifiers,
)
from server.cli.show import error_console
from server.errors import MulliganError
from server.logs import configure_logs

app = typer.Typer(
    name="mulligan",
    help="An OpenAI-compatible inference server that gives a model a second try, and learns from it.",
    epilog="Start with `mulligan demo`, or `mulligan up`. Commands that list or change things work on the database "
    "directly, so run them on the server's machine, with the server up or down: in the folder where it was started, or "
    "with its --data-dir. Settings can also come from MULLIGAN_... variables; an option wins. "
    "Exit status: 0 done, 1 failed, 2 misused.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mulligan {metadata.version('mulligan')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command; it is handled by callbacks."""


app.command(
    epilog="Examples: mulligan up | mulligan up --port 9000 --model Qwen/Qwen2.5-1.5B-Instruct --engine sglang"
)(up.up)
app.command(epilog="Examples: mulligan demo | mulligan demo --task countdown --seed 7 --json figures.json")(demo.demo)
app.command(
    epilog="Example: mulligan serve --workers 4 --engine-url http://127.0.0.1:30000 --database-url postgresql://..."
)(parts.serve)
app.command(epilog="Example: mulligan worker --database-url postgresql://... --broker-url redis://...")(parts.worker)
app.command(epilog="Example: mulligan beat --database-url postgresql://... --broker-url redis://...")(parts.beat)
app.command(epilog="Example: mulligan engine --engine local --port 30000")(parts.engine)
app.command(epilog="Examples: mulligan doctor | mulligan doctor --json")(doctor.doctor)
app.command(epilog="Examples: mulligan lineage ep_0193... | mulligan lineage sql@3 --json")(lineage.lineage)
app.command(epilog="Example: mulligan backup /backups/mulligan-2026-11-21.zip")(backup.backup)
app.command(
    epilog="Example: mulligan restore /backups/mulligan-2026-11-21.zip --data-dir /data --database-url postgresql://..."
)(backup.restore)
for name, group in (
    ("tasks", tasks.app),
    ("verifiers", verifiers.app),
    ("round", rounds.app),
    ("gate", gate.app),
    ("panel", panel.app),
    ("adapters", adapters.app),
    ("episodes", episodes.app),
    ("feedback", feedback.app),
    ("keys", keys.app),
    ("log", log.app),
    ("db", db.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command line and exit."""
    configure_logs("error")  # standard output is for what was asked
    os.umask(0o077)  # the data folder holds conversations: what we make is ours alone
    try:
        app()
    except MulliganError as error:
        _fail(str(error))
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}")
    except OSError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    error_console().print(f"error: {message}", style="red", markup=False)
    sys.exit(1)
