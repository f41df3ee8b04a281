"""`mulligan log`: how big and how old the episode log is, and what goes from it."""

import asyncio
import time
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from server.cli.options import AsJson, DatabaseUrl, DataDir, load_settings, open_database
from server.cli.show import error_console, print_fields, print_json, print_things, standard_console, to_json, when
from server.errors import InvalidRequest
from server.settings import LogSettings, Settings
from server.store.database import Database
from server.store.partitions import read_time
from server.store.retention import DAY_S, LogStatus, Pruned, RetentionStore

app = typer.Typer(help="Show how big and how old the episode log is, and prune it.", no_args_is_help=True)

_SPINNER_AFTER_S = 2.0
_DATE = "%Y-%m-%d"

PARTITIONS = {
    "partition": lambda one: one.name,
    "episodes": lambda one: f"{one.rows:,}",
    "size": lambda one: spell_bytes(one.bytes),
    "from": lambda one: _spell_border(one.first),
    "until": lambda one: _spell_border(one.past or ""),
}


@app.command(epilog="Examples: mulligan log status | mulligan log status --json")
def status(as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Show how many episodes there are, the bytes, the oldest, how long they are kept and what goes next.

    On PostgreSQL also the months that the log is divided into. Episodes go by themselves, by the worker's tick; how
    old they may get is MULLIGAN_LOG__RETENTION_DAYS.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def ask() -> LogStatus:
        async with open_database(settings) as database:
            return await _open(database, settings.log).read_status()

    found = asyncio.run(ask())
    if as_json:
        print_json(found)
        return
    print_fields(
        {
            "episodes": f"{found.rows:,}",
            "size": spell_bytes(found.bytes),
            "oldest": f"{found.oldest}, of {when(found.oldest_at)}" if found.oldest else "none",
            "kept for": _spell_days(found.retention_days),
            "past that": f"{found.past_limit:,} episodes, which the worker takes, or `mulligan log prune`"
            if found.past_limit
            else "",
            "kept longer": f"{found.kept:,} held-out problems, for gates (MULLIGAN_LOG__KEEP_PROBLEMS)"
            if found.kept
            else "",
            "goes next": _spell_next(found),
        }
    )
    if found.partitions:
        standard_console().print()
        print_things(found.partitions, PARTITIONS, as_json=False)


@app.command(
    epilog="Examples: mulligan log prune --dry-run | mulligan log prune | mulligan log prune --older-than 30 --exact"
)
def prune(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=1, help="Instead of MULLIGAN_LOG__RETENTION_DAYS, this once."),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="On PostgreSQL also the past part of the month that the limit lies in, row by row."
        ),
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete the episodes that are past the limit, now. The worker does so by itself, a little at a time.

    On PostgreSQL a month goes as a whole once its last day is past the limit; everything on SQLite, and with --exact,
    goes row by row. The server may be up. The space of rows is used again; to give it back to the disk, SQLite needs
    VACUUM.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    if older_than is not None:
        settings = settings.model_copy(update={"log": settings.log.model_copy(update={"retention_days": older_than})})
    if not settings.log.retention_days:
        raise InvalidRequest(
            "the log is kept for ever (MULLIGAN_LOG__RETENTION_DAYS=0): say --older-than DAYS to prune it this once"
        )
    found = asyncio.run(_plan(settings, exact=exact) if dry_run else _prune(settings, exact=exact))
    if as_json:
        print_json({"dry_run": dry_run, "retention_days": settings.log.retention_days, **to_json(found)})
        return
    standard_console().print(_tell(found, settings.log, dry_run=dry_run))


async def _plan(settings: Settings, *, exact: bool) -> Pruned:
    async with open_database(settings) as database:
        return await _open(database, settings.log).plan(exact=exact)


async def _prune(settings: Settings, *, exact: bool) -> Pruned:
    """Prune, with a count on standard error once it takes longer than two seconds."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = error_console()
    async with open_database(settings) as database:
        bar, began = Progress(*columns, console=console, disable=not console.is_terminal), time.monotonic()
        job = bar.add_task("pruning")

        def tell(done: Pruned) -> None:
            bar.update(job, description=f"{done.month_episodes + done.episodes:,} episodes deleted")
            if not bar.live.is_started and time.monotonic() - began > _SPINNER_AFTER_S:
                bar.start()

        try:
            return await _open(database, settings.log).prune(exact=exact, tell=tell)
        finally:
            bar.stop()


def _open(database: Database, settings: LogSettings) -> RetentionStore:
    return RetentionStore(database, settings.retention_days, settings.keep_problems)


def _tell(found: Pruned, settings: LogSettings, *, dry_run: bool) -> str:
    border = time.strftime(_DATE, time.gmtime(time.time() - settings.retention_days * DAY_S))
    count = found.month_episodes + found.episodes
    said = [f"{count:,} episodes older than {border} {'would go' if dry_run else 'are deleted'}"]
    if found.months:
        said.append(f"{found.month_episodes:,} of them with the months {', '.join(found.months)}")
    if found.feedback:
        said.append(f"feedback on them: {found.feedback:,}")
    if found.kept:
        said.append(f"{found.kept:,} held-out problems stay, for gates (MULLIGAN_LOG__KEEP_PROBLEMS)")
    if found.more:
        said.append("some months are left, for the log was in use all the time: run it again")
    return "; ".join(said)


def _spell_days(days: float) -> str:
    return f"{days:g} days (MULLIGAN_LOG__RETENTION_DAYS)" if days else "ever (MULLIGAN_LOG__RETENTION_DAYS=0)"


def _spell_next(found: LogStatus) -> str:
    if not found.next_what:
        return "nothing"
    return f"{found.next_what}, {'now' if found.past_limit else 'on ' + when(found.next_at)}"


def _spell_border(border: str) -> str:
    at = read_time(border)
    return "" if at is None else time.strftime(_DATE, time.gmtime(at))


def spell_bytes(count: float) -> str:
    """Spell a number of bytes with its binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
