"""Cleans the data folder of what was deleted: spools of dead processes, what the database refused, rounds' folders.

Called by `server.orchestration.deletion`. It touches no file that a living process holds: those heed the tombstones
themselves as they bring their episodes home. Everything can be done again.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from server.store.backlog import Backlog
from server.store.database import Database
from server.store.episode_insert import REJECTED, EpisodeInserter
from server.store.episode_rows import COLUMNS, EpisodeRows, hash_users
from server.store.spool import SUFFIX, read_header_bytes
from server.store.tombstones import Tombstones, fetch_tombstones

TORN = ".torn"
_CLEANING = ".cleaning"
_TIMEOUT_S = 30.0


async def clean_spool(database: Database, folder: Path, *, remove_torn: bool = False) -> list[str]:
    """Bring dead processes' episodes home without the deleted ones, and clean what the database refused.

    Returns what may still hold some of it: files of living processes, which are empty a moment later, and files whose
    end cannot be read, which `remove_torn` deletes. Raises: StoreUnavailable, what the driver raises, OSError.
    """
    if not await asyncio.to_thread(folder.is_dir):
        return []
    inserter = EpisodeInserter(database, folder, timeout_s=_TIMEOUT_S)
    try:
        await Backlog(folder, 0, inserter).adopt()
    finally:
        await inserter.close()
    tombstones = await fetch_tombstones(database)
    await asyncio.to_thread(clean_rejected, folder, tombstones)
    return await asyncio.to_thread(_look_at_rest, folder, remove_torn)


def clean_rejected(folder: Path, tombstones: Tombstones) -> int:
    """Take deleted episodes out of the file of the rejected; returns how many. Raises: OSError.

    The file is put aside first, for other processes append to it at any time; a killed cleaning is gone on with.
    """
    path = folder / REJECTED
    if path.exists():
        path.rename(folder / f"{REJECTED}.{secrets.token_hex(4)}{_CLEANING}")
    taken = 0
    for aside in folder.glob(f"{REJECTED}.*{_CLEANING}"):
        kept = []
        for line in aside.read_bytes().splitlines(keepends=True):
            if _is_covered(line, tombstones):
                taken += 1
            else:
                kept.append(line)
        if kept:
            _append(path, b"".join(kept))
        aside.unlink()
    return taken


def _is_covered(line: bytes, tombstones: Tombstones) -> bool:
    """Say whether a line's episode is deleted; what cannot be read is none of ours."""
    try:
        values: dict[str, Any] = msgspec.json.decode(line)["episode"]
        if values.get("user_hash") is None:
            users = hash_users(msgspec.json.decode(values["request"] or "{}"))
            values |= dict(zip(("user_hash", "safety_hash"), users, strict=True))
        row = tuple(values.get(column) for column in COLUMNS[0])
        return tombstones.covers(EpisodeRows(row, (), ()))
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look_at_rest(folder: Path, remove_torn: bool) -> list[str]:
    left = []
    for path in sorted(folder.glob(f"*{TORN}")):
        if remove_torn:
            path.unlink(missing_ok=True)
        else:
            left.append(f"{path}: its end cannot be read; --remove-torn deletes it")
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            waiting = path.stat().st_size > read_header_bytes(path)
        except FileNotFoundError:
            continue
        if waiting:
            left.append(f"{path}: a living process brings its episodes home, without the deleted ones, in a moment")
    return left


def clean_rounds(folder: Path, round_ids: Sequence[str]) -> list[str]:
    """Delete rounds' folders: checkpoints, pushes, logs. Returns the rounds that had one here. Raises: OSError."""
    found = []
    for round_id in round_ids:
        path = Path(os.path.normpath(folder / round_id))  # an id is a name, wherever the row comes from
        if path.is_dir() and path.parent == Path(os.path.normpath(folder)):
            shutil.rmtree(path)
            found.append(round_id)
    return found
