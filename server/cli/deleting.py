"""`mulligan episodes delete | deletions`: what was logged of a user, a key, an episode or a time goes for good."""

import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import error_console, print_fields, print_json, print_things, standard_console, when
from server.domain import Adapter
from server.errors import InvalidRequest
from server.orchestration.deletion import Folders, describe_deletion, describe_seer, find_adapters, run_deletion
from server.settings import Settings
from server.store.database import Database
from server.store.deletions import DONE, FILES, Deletion, DeletionStore, Doomed

ACTOR = "command line"
_BAR_AFTER_S = 2.0

COLUMNS = {
    "id": lambda one: one.id,
    "status": lambda one: "done" if one.phase == DONE else "unfinished",
    "user": lambda one: one.user_hash,
    "key": lambda one: one.key,
    "episode": lambda one: one.episode,
    "until": lambda one: when(one.until_at),
    "episodes": lambda one: one.report.get("episodes", 0),
    "adapters": lambda one: ", ".join(one.report.get("adapters", ())),
    "left": lambda one: len(one.report.get("left", ())),
}


def delete(
    *,
    user: Annotated[
        str, typer.Option(help="Of whom: what requests said as `user` or `safety_identifier`.", show_default=False)
    ] = "",
    key: Annotated[str, typer.Option(metavar="ID", help="Asked with this API key.", show_default=False)] = "",
    episode: Annotated[str, typer.Option(metavar="ID", help="This one alone.", show_default=False)] = "",
    before: Annotated[datetime | None, typer.Option(help="Only from before this time (UTC).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it is meant.")] = False,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Clean this machine's files of what was deleted elsewhere.")
    ] = False,
    remove_torn: Annotated[
        bool, typer.Option("--remove-torn", help="Delete spool files whose end cannot be read, too.")
    ] = False,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for processes and rounds to let go.")] = 15.0,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete episodes for good: what is all of what is named, from database, spools and rounds' folders.

    Says which adapters may have learnt from them. The same command again goes on with what was broken off. Exit status
    1 while something is left.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    at = before.replace(tzinfo=before.tzinfo or UTC).timestamp() if before else 0.0
    doomed = Doomed(user, key, episode, at)
    if files_only:
        done = ask_database(settings, lambda database: _clean_again(database, settings, remove_torn))
        _print(done, as_json=as_json)
        return
    doomed.check()
    planned = ask_database(settings, lambda database: _plan(database, doomed))
    if dry_run:
        _print_plan(planned, as_json=as_json)
        return
    if not yes:
        _ask_whether(planned)
    done = ask_database(
        settings,
        lambda database: _delete(
            database, doomed, settings, total=planned["episodes"], wait_s=wait_s, remove_torn=remove_torn
        ),
    )
    _print(done, as_json=as_json)
    if any(one["status"] != "done" for one in done):
        raise typer.Exit(1)


def deletions(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List what was deleted: users only by their hash, and never what was said."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    found = ask_database(settings, lambda database: DeletionStore(database).recent(limit=limit))
    print_things(found, COLUMNS, as_json=as_json)


async def _plan(database: Database, doomed: Doomed) -> dict[str, Any]:
    counts = await DeletionStore(database).count(doomed)
    adapters = await find_adapters(database, counts["rounds"])
    return {**counts, "adapters": [describe_seer(one) for one in adapters]}


async def _delete(
    database: Database, doomed: Doomed, settings: Settings, *, total: int, wait_s: float, remove_torn: bool
) -> list[dict[str, Any]]:
    store = DeletionStore(database)
    pending = await store.find_open(doomed)
    if doomed.before:  # an older one may have had another time
        pending = [one for one in pending if abs(one.until_at - doomed.before) < 1]
    pending.append(await store.begin(doomed, actor=ACTOR))
    columns = (TextColumn("deleting"), BarColumn(), MofNCompleteColumn())
    began, done = time.monotonic(), []
    with Progress(*columns, console=error_console(), disable=not sys.stderr.isatty(), transient=True) as bar:
        bar.stop()
        job = bar.add_task("deleting", total=total)

        def tell(now: Deletion) -> None:
            bar.update(job, completed=now.report.get("episodes", 0))
            if not bar.live.is_started and time.monotonic() - began > _BAR_AFTER_S:
                bar.start()

        folders = Folders(settings.spool_dir, settings.rounds_dir)
        for one in pending:
            ended = await run_deletion(database, one, folders, wait_s=wait_s, remove_torn=remove_torn, tell=tell)
            done.append(await _describe(database, ended))
    return done


async def _clean_again(database: Database, settings: Settings, remove_torn: bool) -> list[dict[str, Any]]:
    """Go through all deletions again, as far as this machine's files go."""
    done = []
    folders = Folders(settings.spool_dir, settings.rounds_dir)
    for one in await DeletionStore(database).recent(limit=10_000):
        ended = await run_deletion(database, replace(one, phase=FILES), folders, wait_s=0, remove_torn=remove_torn)
        done.append(await _describe(database, ended))
    return done


async def _describe(database: Database, deletion: Deletion) -> dict[str, Any]:
    adapters: list[Adapter] = await find_adapters(database, list(deletion.report.get("rounds", ())))
    return describe_deletion(deletion, adapters)


def _ask_whether(planned: dict[str, Any]) -> None:
    if not sys.stdin.isatty():
        raise InvalidRequest("nobody can be asked whether it is meant: give --yes, or look with --dry-run first")
    typer.confirm(f"Delete {planned['episodes']} episodes for good?", abort=True, err=True)


def _print_plan(planned: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    shown = {name: value for name, value in planned.items() if name != "adapters"}
    print_fields({**shown, "rounds": ", ".join(planned["rounds"]), "changed": "nothing: a dry run"})
    _print_seers(planned["adapters"])


def _print(done: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    for one in done:
        counts = ", ".join(f"{count} {name}" for name, count in one["deleted"].items() if count)
        print_fields(
            {
                "deletion": f"{one['id']} ({one['status']})",
                "deleted": counts or "nothing was there",
                "rounds that had trained on it": ", ".join(one["rounds"]),
                "rounds asked to end": ", ".join(one["cancelled"]),
            }
        )
        for left in one["left"]:
            error_console().print(f"left: {left}", style="yellow", markup=False)
    if any(one["left"] for one in done):
        error_console().print("give the same command again for what is left", style="yellow")
    seers = {seer["name"]: seer for one in done for seer in one["adapters"]}
    _print_seers([*seers.values()])


def _print_seers(seers: list[dict[str, str]]) -> None:
    if seers:
        standard_console().print("\nThese adapters may have learnt from it; what retires each:")
        for seer in seers:
            standard_console().print(f"  {seer['name']} ({seer['status']}): {seer['command']}", markup=False)
