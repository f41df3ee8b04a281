"""Puts a backup back: checks the whole archive first, then fills an empty database and the adapters' folder.

Called by `mulligan restore`, with the server stopped. The rows go in at the revision that they were saved at, in one
transaction, and the newest migrations follow. It must never touch what is there unless it was told to replace it, and
never before the archive was found whole.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import msgspec
from sqlalchemy import Table, Text, bindparam, cast, func, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import Conflict, InvalidRequest
from server.store import migrations
from server.store.backup import (
    BYTES,
    CHUNK_BYTES,
    FORMAT,
    JSON_TEXT,
    MANIFEST,
    SCHEMA,
    Manifest,
    Tell,
    place_of,
    reflect_tables,
)
from server.store.database import Database

ROWS_AT_ONCE = 500
MANIFEST_MOST_BYTES = 256 * 2**20
_MOST_NAMED = 5

_decode_line = msgspec.json.Decoder(list[Any]).decode


def read_manifest(file: ZipFile) -> Manifest:
    """Read what an archive says that it holds. Raises: InvalidRequest."""
    try:
        if file.getinfo(MANIFEST).file_size > MANIFEST_MOST_BYTES:
            raise InvalidRequest(f"the archive is damaged: {MANIFEST} has over {MANIFEST_MOST_BYTES} bytes")
        manifest = msgspec.json.decode(file.read(MANIFEST), type=Manifest)
    except KeyError as error:
        raise InvalidRequest(f"this is no backup: it has no {MANIFEST}") from error
    except (msgspec.DecodeError, BadZipFile, zlib.error) as error:
        raise InvalidRequest(f"the archive is damaged: {MANIFEST}") from error
    if manifest.format != FORMAT:
        raise InvalidRequest(f"this is a backup of the format {manifest.format}, and {FORMAT} is what is known here")
    return manifest


def open_archive(path: Path) -> ZipFile:
    """Open an archive. Raises: InvalidRequest where it is none, or cut off."""
    try:
        return ZipFile(path)
    except BadZipFile as error:
        raise InvalidRequest(f"{path} is cut off or no backup: the directory at its end is not there") from error
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error


def check_archive(file: ZipFile, manifest: Manifest, tell: Tell) -> None:
    """Read every entry and hold it against its hash, and what it says against the manifest.

    Raises: InvalidRequest, naming all that are damaged.
    """
    bad = [f"{name} (leads out of its folder)" for name in manifest.files if not _stays_inside(name)]
    bad += [f"the table {name} (is none of a backup)" for name in manifest.tables if name == SCHEMA]
    checks = {f"tables/{name}.jsonl": partial(_check_rows, file, manifest, name) for name in manifest.tables}
    checks |= {name: partial(_check_file, file, name, one.sha256) for name, one in manifest.files.items()}
    for name, check in checks.items():
        try:
            why = check()
        except (KeyError, BadZipFile, zlib.error, EOFError, OSError):
            why = "cannot be read"
        if why:
            bad.append(f"{name} ({why})")
        tell("checking", 1)
    if bad:
        more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise InvalidRequest(f"the archive is damaged: {', '.join(bad[:_MOST_NAMED])}{more}. Nothing was changed")


def _stays_inside(name: str) -> bool:
    """Say whether an adapter's file is put below the folder of adapters, whatever the archive calls it."""
    path = Path(name)
    return path.parts[:1] == ("adapters",) and len(path.parts) > 1 and ".." not in path.parts


def _check_file(file: ZipFile, name: str, sha256: str) -> str:
    digest = hashlib.sha256()
    for chunk in _read_entry(file, name):
        digest.update(chunk)
    return "" if digest.hexdigest() == sha256 else "altered"


def _check_rows(file: ZipFile, manifest: Manifest, table: str) -> str:
    """Say what is wrong with a table's entry, "" where nothing is."""
    saved = manifest.tables[table]
    digest, rows, why = hashlib.sha256(), 0, ""
    with file.open(f"tables/{table}.jsonl") as lines:
        for line in lines:
            digest.update(line)
            rows += 1
            why = why or _check_row(line, table, manifest)
    if digest.hexdigest() != saved.sha256:
        return "altered"
    return why or ("" if rows == saved.rows else f"{rows} rows, not {saved.rows}")


def _check_row(line: bytes, table: str, manifest: Manifest) -> str:
    columns = manifest.tables[table].columns
    try:
        row = dict(zip(columns, _decode_line(line), strict=True))
        if table == "adapters":
            _find_place(Path(manifest.adapters_dir), row["path"], row["task"], row["name"])
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, InvalidRequest):
        return "its rows are not what a backup writes"
    return ""


def _read_entry(file: ZipFile, name: str) -> Iterator[bytes]:
    with file.open(name) as entry:
        while chunk := entry.read(CHUNK_BYTES):
            yield chunk


async def is_filled(database: Database) -> bool:
    """Say whether a database holds any row of ours."""
    async with database.read() as connection:
        for table in await connection.run_sync(reflect_tables):
            if (
                table.name != SCHEMA
                and (await connection.execute(select(text("1")).select_from(table).limit(1))).first()
            ):
                return True
    return False


async def empty_database(database: Database) -> None:
    """Drop every table of ours, the schema's revision too."""
    async with database.write() as connection:
        dialect = connection.dialect.name
        if dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for table in reversed(await connection.run_sync(reflect_tables)):
            cascade = " CASCADE" if dialect == "postgresql" else ""
            await connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{table.name}"{cascade}')


async def fill_database(database: Database, file: ZipFile, manifest: Manifest, adapters_dir: Path, tell: Tell) -> None:
    """Put all rows into a database that is at the manifest's revision and empty, in one transaction.

    Raises: InvalidRequest for rows that do not fit; StoreUnavailable.
    """
    try:
        await _fill(database, file, manifest, adapters_dir, tell)
    except (SQLAlchemyError, ValueError, KeyError, TypeError) as error:  # without what the rows say
        raise InvalidRequest(f"the archive has rows that its schema does not take: {type(error).__name__}") from None


async def _fill(database: Database, file: ZipFile, manifest: Manifest, adapters_dir: Path, tell: Tell) -> None:
    async with database.write() as connection:
        tables = await connection.run_sync(reflect_tables)
        if unknown := set(manifest.tables) - {table.name for table in tables}:
            raise InvalidRequest(f"the archive has tables that this schema has not: {', '.join(sorted(unknown))}")
        for table in tables:
            saved = manifest.tables.get(table.name)
            if saved is None:
                continue
            statement = _make_insert(table, saved.columns, connection.dialect.name)
            for rows in _read_rows(file, table.name, saved.columns):
                if table.name == "adapters":
                    _move(rows, Path(manifest.adapters_dir), adapters_dir)
                await connection.execute(statement, rows)
                tell(table.name, len(rows))
            await _go_on_counting(connection, table)


def _make_insert(table: Table, kinds: Mapping[str, str], dialect: str) -> Any:
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        column = table.c[name]
        if kind == JSON_TEXT:
            given = bindparam(f"p_{name}", type_=Text())
            # SQLite keeps JSON as text; a cast would make a number of it.
            values[name] = cast(given, column.type) if dialect == "postgresql" else given
        else:
            values[name] = bindparam(f"p_{name}", type_=column.type)
    return insert(table).values(values)


def _read_rows(file: ZipFile, table: str, kinds: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    names = [f"p_{name}" for name in kinds]
    packed = [place for place, kind in enumerate(kinds.values()) if kind == BYTES]
    rows: list[dict[str, Any]] = []
    with file.open(f"tables/{table}.jsonl") as lines:
        for line in lines:
            values = _decode_line(line)
            for place in packed:
                if values[place] is not None:
                    values[place] = base64.b64decode(values[place])
            rows.append(dict(zip(names, values, strict=True)))
            if len(rows) == ROWS_AT_ONCE:
                yield rows
                rows = []
    if rows:
        yield rows


def _move(rows: list[dict[str, Any]], old: Path, new: Path) -> None:
    """Let adapters lie where they are put back."""
    for row in rows:
        if row["p_path"]:  # what was rejected has none
            row["p_path"] = str(new / _find_place(old, row["p_path"], row["p_task"], row["p_name"]))


def _find_place(old: Path, path: str, task: str, name: str) -> Path:
    """Find where below the folder an adapter is put back; what lies there may be deleted. Raises: InvalidRequest."""
    place = Path(place_of(Path(path), old, task, name))
    if not place.parts or place.is_absolute() or ".." in place.parts:
        raise InvalidRequest(f"the archive is damaged: the adapter {name} leads out of its folder")
    return place


async def _go_on_counting(connection: AsyncConnection, table: Table) -> None:
    """Let PostgreSQL's sequence go on after the largest number; SQLite counts from there by itself."""
    keys = [*table.primary_key.columns]
    if connection.dialect.name != "postgresql" or len(keys) != 1 or keys[0].type.python_type is not int:
        return
    sequence = (await connection.execute(select(func.pg_get_serial_sequence(table.name, keys[0].name)))).scalar_one()
    largest = (await connection.execute(select(func.max(keys[0])))).scalar_one()
    if sequence is not None and largest is not None:
        await connection.execute(select(func.setval(sequence, largest)))


def write_files(file: ZipFile, manifest: Manifest, folder: Path, tell: Tell) -> None:
    """Put the adapters' files into their folder, each whole or not at all, of an archive that was checked.

    Raises: InvalidRequest, OSError.
    """
    for name, saved in manifest.files.items():
        path = folder.joinpath(*Path(name).parts[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        part, digest = path.with_name(f".{path.name}.part"), hashlib.sha256()
        with part.open("wb") as target:
            for chunk in _read_entry(file, name):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != saved.sha256:
            part.unlink()
            raise InvalidRequest(f"the archive is damaged: {name}")
        part.replace(path)
        tell("adapters", 1)


def check_revision(manifest: Manifest) -> None:
    """Refuse a backup of a later release. Raises: Conflict."""
    if not migrations.knows(manifest.revision):
        raise Conflict(
            f"the backup is of version {manifest.version}, schema {manifest.revision}, which this release does not "
            "know: restore it with that release or a later one"
        )


async def has_table(database: Database, name: str) -> bool:
    """Say whether a table is there."""
    async with database.read() as connection:
        return await connection.run_sync(lambda one: inspect(one).has_table(name))
