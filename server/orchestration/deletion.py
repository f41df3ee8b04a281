"""Runs a deletion from its tombstone to its end: the database, this machine's files, and which adapters saw the data.

Called by the command line and by the API. Everything that it does can be done again, so a deletion that was killed, or
that has to wait for a process or a round, is simply run again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.domain import Adapter, AdapterStatus
from server.errors import NotFound
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.deletion_files import clean_rounds, clean_spool
from server.store.deletions import DATABASE, DONE, Deletion, DeletionStore
from server.store.lineage import LineageStore

LOOKED_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Folders:
    """Where this machine keeps what a deletion has to look at."""

    spool: Path
    rounds: Path


async def run_deletion(
    database: Database,
    deletion: Deletion,
    folders: Folders,
    *,
    wait_s: float = 15.0,
    remove_torn: bool = False,
    tell: Callable[[Deletion], None] | None = None,
) -> Deletion:
    """Run a deletion to its end, or to where it has to wait longer than `wait_s` for others: `report["left"]` says why.

    `tell` is told of it after each batch. Raises: StoreUnavailable, OSError.
    """
    store = DeletionStore(database)
    if deletion.phase == DATABASE:
        async for now in store.sweep(deletion):
            deletion = now
            if tell is not None:
                tell(now)
    deadline = time.monotonic() + wait_s
    while True:
        left = await _clean_files(database, store, deletion, folders, remove_torn=remove_torn)
        if not left or time.monotonic() >= deadline:
            break
        await asyncio.sleep(LOOKED_EVERY_S)
    # What a spool brought home meanwhile was looked at under the tombstone; what it brought just before is found now.
    async for now in store.sweep(deletion):
        deletion = now
    flagged = [one.name for one in await find_adapters(database, deletion.report.get("rounds", []))]
    deletion = await store.finish(deletion, flagged=flagged, left=left)
    await database.forget_free_pages()
    return deletion


async def _clean_files(
    database: Database, store: DeletionStore, deletion: Deletion, folders: Folders, *, remove_torn: bool
) -> list[str]:
    """Clean this machine's files; says what is left."""
    left = await clean_spool(database, folders.spool, remove_torn=remove_torn)
    running = await store.list_running(deletion)
    ended = [one for one in deletion.report.get("rounds", []) if one not in running]
    await asyncio.to_thread(clean_rounds, folders.rounds, ended)
    return left + [f"the round {one} still runs: it was asked to end" for one in running]


async def find_adapters(database: Database, round_ids: list[str]) -> list[Adapter]:
    """Find the adapters that may have seen what rounds trained on: those of the rounds, and what went on from them."""
    lineage, adapters = LineageStore(database), AdapterStore(database)
    names: dict[str, None] = {}
    for round_id in round_ids:
        try:
            trace = await lineage.trace(round_id)
        except NotFound:
            continue
        for one in trace.rounds:
            if one.adapter is not None:
                names |= dict.fromkeys((one.adapter.adapter.name, *one.adapter.descendants))
    found = [await adapters.get(name) for name in names]
    return [one for one in found if one is not None]


def describe_deletion(deletion: Deletion, adapters: list[Adapter]) -> dict[str, Any]:
    """Describe a deletion in plain values: what is gone, what is left, and what to do about the adapters."""
    lists = ("rounds", "tasks", "cancelled", "adapters", "left")
    report = deletion.report
    return {
        "object": "mulligan.deletion",
        "id": deletion.id,
        "status": "done" if deletion.phase == DONE else "unfinished",
        "user_hash": deletion.user_hash,
        "key": deletion.key,
        "episode": deletion.episode,
        "until": deletion.until_at,
        "created_at": deletion.created_at,
        "ended_at": deletion.ended_at,
        "deleted": {name: count for name, count in report.items() if name not in lists},
        "rounds": list(report.get("rounds", ())),
        "cancelled": list(report.get("cancelled", ())),
        "adapters": [describe_seer(one) for one in adapters],
        "left": list(report.get("left", ())),
    }


def describe_seer(adapter: Adapter) -> dict[str, str]:
    """Describe an adapter that may have seen what was deleted, and the command that takes it out of service."""
    serves = adapter.status in (AdapterStatus.CHAMPION, AdapterStatus.CANARY)
    command = f"mulligan adapters rollback {adapter.task}" if serves else f"mulligan adapters retire {adapter.name}"
    return {"name": adapter.name, "task": adapter.task, "status": str(adapter.status), "command": command}
