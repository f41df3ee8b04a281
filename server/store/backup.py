"""Writes one file with everything that a server needs to go on elsewhere: database, adapters, and hints of settings.

Called by `mulligan backup`. The database is read in one transaction, so what is in the file belongs together, whatever
is written meanwhile; then the adapters' files, each held against the hash that the database has of it. The file is a
ZIP archive: a table is an entry of JSON lines, and `manifest.json`, the last entry, has a SHA-256 of every other one.
It needs no tool of a database and belongs to no dialect: what was written on one is restored on the other.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import msgspec
from sqlalchemy import JSON, Connection, LargeBinary, MetaData, Table, Text, cast, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import AdapterStatus
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.partitions import is_partition
from server.store.tables import metadata

FORMAT = "mulligan.backup/1"
MANIFEST = "manifest.json"
SCHEMA = "alembic_version"
LIVING = frozenset({"presence", "trainers", "sessions", SCHEMA})
"""What tells of processes that run, of who is logged in, or of the schema itself: nothing to restore."""

JSON_TEXT, BYTES, PLAIN = "json", "bytes", "plain"
ROWS_AT_ONCE = 200
CHUNK_BYTES = 2**20

Tell = Callable[[str, int], None]
"""Is told which entry is worked at, and how many more of its rows, or files, are done."""

_encode = msgspec.json.Encoder().encode


class SavedTable(msgspec.Struct):
    """A table in an archive: its columns with the kind of each, and how many rows its entry has."""

    columns: dict[str, str]
    rows: int
    sha256: str


class SavedFile(msgspec.Struct):
    """A file of an adapter in an archive."""

    adapter: str
    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct):
    """What an archive holds, and of what server it is."""

    format: str
    version: str
    revision: str
    dialect: str
    made_at: float
    adapters_dir: str
    settings: dict[str, Any] = {}
    tables: dict[str, SavedTable] = {}
    files: dict[str, SavedFile] = {}
    missing: list[str] = []


async def write_backup(database: Database, archive: Path, manifest: Manifest, *, tell: Tell | None = None) -> Manifest:
    """Write an archive; `manifest` says of what server, and is filled.

    An adapter's file that is missing or altered is named in `missing`, and left out.

    Raises: Conflict where that is a champion's; NotFound where the database was never migrated; OSError,
    StoreUnavailable.
    """
    say = tell or (lambda _name, _count: None)
    with ZipFile(archive, "w", ZIP_DEFLATED, compresslevel=1) as file:
        async with database.snapshot() as connection:
            manifest.revision = await _read_revision(connection)
            found = await connection.run_sync(reflect_tables)
            for table in found:
                if table.name not in LIVING:
                    manifest.tables[table.name] = await _write_table(connection, file, table, say)
            saved = await _list_files(connection, Path(manifest.adapters_dir))
            champions = {row[0] for row in await connection.execute(text("SELECT champion FROM tasks"))}
        for entry, path, wanted in saved:
            digest = await asyncio.to_thread(_write_file, file, entry, path, wanted)
            say("adapters", 1)
            if digest is not None:
                manifest.files[entry] = wanted
            elif wanted.adapter in champions:
                message = f"the champion {wanted.adapter} is damaged: {path} is missing or altered"
                raise Conflict(f"{message}. Put it back, or roll its task back, so that the backup can serve")
            else:
                manifest.missing.append(str(path))
        file.writestr(MANIFEST, msgspec.json.format(_encode(manifest)))
    return manifest


def reflect_tables(connection: Connection) -> list[Table]:
    """Read the tables as they are, whatever the revision; a table after those that it belongs to."""
    names = [name for name in inspect(connection).get_table_names() if not is_partition(name)]
    there = MetaData()
    there.reflect(connection, only=names)
    # On PostgreSQL the log's tables know each other by their partitions only: today's code knows the order.
    order = {table.name: place for place, table in enumerate(metadata.sorted_tables)}
    found = [there.tables[name] for name in names]
    return sorted(found, key=lambda table: (order.get(table.name, len(order)), table.name))


def kind_of(column: Any) -> str:
    """Say how a column's values are written: JSON as the text that is stored, bytes as base64, the rest as it is."""
    return JSON_TEXT if isinstance(column.type, JSON) else BYTES if isinstance(column.type, LargeBinary) else PLAIN


async def _read_revision(connection: AsyncConnection) -> str:
    if SCHEMA not in await connection.run_sync(lambda one: inspect(one).get_table_names()):
        raise NotFound("there is nothing to back up: this database was never migrated")
    return (await connection.execute(text(f"SELECT version_num FROM {SCHEMA}"))).scalar_one()  # noqa: S608 - our own


async def _write_table(connection: AsyncConnection, file: ZipFile, table: Table, tell: Tell) -> SavedTable:
    kinds = {column.name: kind_of(column) for column in table.columns}
    # As text: what JSON was written with, the order of keys and all, is part of prompts that a model saw.
    columns = [
        cast(column, Text).label(column.name) if kinds[column.name] == JSON_TEXT else column for column in table.columns
    ]
    digest, rows = hashlib.sha256(), 0
    with file.open(f"tables/{table.name}.jsonl", "w", force_zip64=True) as entry:
        stream = await connection.stream(select(*columns).execution_options(yield_per=ROWS_AT_ONCE))
        async for part in stream.partitions(ROWS_AT_ONCE):
            lines = b"".join(_encode(tuple(row)) + b"\n" for row in part)
            digest.update(lines)
            entry.write(lines)
            rows += len(part)
            tell(table.name, len(part))
    return SavedTable(kinds, rows, digest.hexdigest())


async def _list_files(connection: AsyncConnection, folder: Path) -> list[tuple[str, Path, SavedFile]]:
    """List the adapters' files: the entry of each, where it lies, and what it has to be."""
    rows = await connection.execute(text("SELECT name, task, path, files, status FROM adapters ORDER BY name"))
    found = []
    for name, task, path, files, status in rows:
        if _is_thrown_away(path, status):
            continue
        hashes: Mapping[str, str] = msgspec.json.decode(files) if isinstance(files, str | bytes) else files
        place = place_of(Path(path), folder, task, name)
        for one, sha256 in sorted(hashes.items()):
            found.append((f"adapters/{place}/{one}", Path(path) / one, SavedFile(name, one, 0, sha256)))
    return found


def _is_thrown_away(path: str, status: str) -> bool:
    """Say whether nothing but the hashes of a rejected adapter is left, as it has to be."""
    return not path or (status == AdapterStatus.REJECTED.value and not Path(path).exists())


def place_of(path: Path, folder: Path, task: str, name: str) -> str:
    """Say where below the folder of adapters one lies; one that lies elsewhere gets a place of its own there."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"{task}/{name}"


def _write_file(file: ZipFile, name: str, path: Path, wanted: SavedFile) -> str | None:
    """Write one file as it is, and return its hash; None, and no entry, where it is not what it has to be."""
    if not path.is_file() or hash_file(path) != wanted.sha256:
        return None
    wanted.bytes = path.stat().st_size
    info = ZipInfo(name)
    info.compress_type, info.external_attr = ZIP_STORED, 0o600 << 16
    digest = hashlib.sha256()
    with path.open("rb") as source, file.open(info, "w", force_zip64=True) as entry:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            entry.write(chunk)
    if digest.hexdigest() != wanted.sha256:
        raise Conflict(f"{path} changed while it was backed up: try again")
    return wanted.sha256


def hash_file(path: Path) -> str:
    """Hash a file's content. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
