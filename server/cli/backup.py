"""`mulligan backup | restore`: one file with database and adapters, and back."""

import asyncio
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from server.cli.new_file import write_new_file
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import error_console, print_fields, print_json
from server.errors import Conflict, StoreUnavailable
from server.settings import Settings
from server.store import migrations
from server.store import restore as archive
from server.store.backup import FORMAT, Manifest, Tell, write_backup
from server.store.database import Database
from server.store.presence import PresenceStore
from server.store.spool import read_header_bytes
from server.supervisor.folder import read_note

HINTS = ("model", "model_name", "kind", "dtype", "context_tokens", "max_lora_rank", "lora_target_modules")
_LIVE_S = 15.0
_BAR_AFTER_S = 2.0


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Even in the place of a file that is there.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write database and adapters into one file, as they are at one moment, while the server runs.

    It has everything that was ever logged, and the hashes of keys: keep it as safe as the server. Secrets of verifiers
    stand in your settings alone, and are not in it. SQLite and PostgreSQL are restored from either.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    manifest = Manifest(
        FORMAT,
        metadata.version("mulligan"),
        "",
        "sqlite" if settings.database_url.startswith("sqlite") else "postgresql",
        time.time(),
        str(settings.adapters_dir),
        _read_hints(settings),
    )
    with write_new_file(file, force=force) as part, _Bar("backing up") as bar:
        ask_database(settings, lambda database: write_backup(database, part, manifest, tell=bar.tell))
    spools = list(settings.spool_dir.glob("*.spool"))
    if waiting := [path for path in spools if path.stat().st_size > read_header_bytes(path)]:
        message = f"{len(waiting)} spool files hold episodes that neither the database nor this backup has yet"
        error_console().print(f"warning: {message}", style="yellow")
    for path in manifest.missing:
        error_console().print(f"warning: {path} is missing or altered, and not in the backup", style="yellow")
    _print(file, manifest, as_json=as_json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that `mulligan backup` wrote.")],
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Even if there are a database and adapters: they are deleted first.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Put a backup back, with the server stopped: into an empty database and folder, unless --replace is said.

    The whole archive is checked first. A backup of an earlier release is brought up to date.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url, note=False)
    _refuse_running(settings)
    with archive.open_archive(file) as opened, _Bar("restoring") as bar:
        manifest = archive.read_manifest(opened)
        archive.check_revision(manifest)
        bar.expect(_count(manifest))
        archive.check_archive(opened, manifest, bar.tell)
        _check_room(settings, sum(opened.getinfo(name).file_size for name in manifest.files), replace=replace)
        _make_room(settings, replace=replace)
        migrations.upgrade(settings.database_url, manifest.revision)
        archive.write_files(opened, manifest, settings.adapters_dir, bar.tell)
        asyncio.run(_fill(settings, opened, manifest, bar.tell))
        migrations.upgrade(settings.database_url)
    for name, (was, now) in _differ(manifest.settings, _read_hints(settings)).items():
        message = f"warning: {name} was {was!r}, and is {now!r} here: adapters fit the model that they were trained on"
        error_console().print(message, style="yellow", markup=False)
    _print(file, manifest, as_json=as_json)


def _refuse_running(settings: Settings) -> None:
    """Refuse while a server runs on what would be filled. Raises: Conflict."""
    if read_note(settings.data_dir) is not None:
        raise Conflict(f"a server runs in {settings.data_dir}: stop it first")
    if asyncio.run(_ask(settings, _is_served)):
        raise Conflict("API processes run on this database: stop them first")


def is_there(database_url: str) -> bool:
    """Say whether a database may be there: of SQLite, whether its file is."""
    path = database_url.removeprefix("sqlite:///")
    return path == database_url or Path(path).exists()


async def _ask(settings: Settings, ask: Any) -> Any:
    if not is_there(settings.database_url):
        return None
    database = Database(settings.database_url)
    try:
        return await ask(database)
    finally:
        await database.close()


async def _is_served(database: Database) -> bool:
    if not await archive.has_table(database, "presence"):
        return False
    try:
        return bool(await PresenceStore(database).live(_LIVE_S))
    except StoreUnavailable:  # of another revision
        return False


def _check_room(settings: Settings, wanted: int, *, replace: bool) -> None:
    """Refuse what the disk has no room for, before anything is deleted for it. Raises: Conflict."""
    folder = settings.adapters_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    gone = [path.lstat().st_size for path in folder.rglob("*") if path.is_file()] if replace else []
    if wanted > (room := shutil.disk_usage(there).free + sum(gone)):
        raise Conflict(f"the adapters take {wanted} bytes, and {there} has room for {room}")


def _make_room(settings: Settings, *, replace: bool) -> None:
    """Make sure that database and folder are empty. Raises: Conflict."""
    folder = settings.adapters_dir
    has_rows, has_files = asyncio.run(_ask(settings, archive.is_filled)), folder.is_dir() and any(folder.iterdir())
    if not replace:
        for there, what in ((has_rows, "the database"), (has_files, f"the folder {folder}")):
            if there:
                raise Conflict(f"{what} is not empty: --replace deletes what is there, or say another place")
    asyncio.run(_ask(settings, archive.empty_database))
    if has_files:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    settings.data_dir.mkdir(parents=True, exist_ok=True)


async def _fill(settings: Settings, opened: Any, manifest: Manifest, tell: Tell) -> None:
    database = Database(settings.database_url)
    try:
        await archive.fill_database(database, opened, manifest, settings.adapters_dir, tell)
    finally:
        await database.close()


def _read_hints(settings: Settings) -> dict[str, Any]:
    """Read what a restored server should have as well; no secret is among it."""
    engine = settings.engine.model_dump(mode="json")
    return {**{f"engine.{name}": engine[name] for name in HINTS}, "held_out_share": settings.held_out_share}


def _differ(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (value, now[name]) for name, value in was.items() if name in now and now[name] != value}


def _count(manifest: Manifest) -> int:
    entries = len(manifest.tables) + 2 * len(manifest.files)
    return entries + sum(table.rows for table in manifest.tables.values())


def _print(file: Path, manifest: Manifest, *, as_json: bool) -> None:
    rows = {name: table.rows for name, table in manifest.tables.items() if table.rows}
    said = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "schema": manifest.revision,
        "version": manifest.version,
        "rows": sum(rows.values()),
        "adapters": len({one.adapter for one in manifest.files.values()}),
        "files": len(manifest.files),
    }
    if as_json:
        print_json({**said, "tables": rows, "missing": manifest.missing})
    else:
        print_fields(said)


class _Bar:
    """A bar on standard error, once it takes longer than two seconds."""

    def __init__(self, word: str) -> None:
        columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[entry]}"))
        self._progress = Progress(*columns, console=error_console(), disable=not sys.stderr.isatty(), transient=True)
        self._job = self._progress.add_task(word, total=None, entry="")
        self._began = time.monotonic()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def expect(self, total: int) -> None:
        """Say how much there is to do."""
        self._progress.update(self._job, total=total)

    def tell(self, entry: str, count: int) -> None:
        """Note that so much more is done."""
        self._progress.update(self._job, advance=count, entry=entry)
        if not self._progress.live.is_started and time.monotonic() - self._began > _BAR_AFTER_S:
            self._progress.start()
