"""Says how each part of the system is, in a word and a sentence: for the dashboard's first page.

What this process sees of engines, verifiers and its own log; what the database says of the other processes and of the
workers. It answers also while the database is away, for that is when people look.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from server.api.context import Context
from server.errors import StoreUnavailable
from server.store.trainers import TrainerStore

DATABASE_TIMEOUT_S = 2.0
LIVE_WITHIN_S = 5.0
"""How old the last word of an API process may be."""


@dataclass(frozen=True, slots=True)
class Part:
    """How one part is. `worse`: it serves, but not as it should; `idle`: nobody needs it yet."""

    name: str
    state: Literal["good", "worse", "bad", "idle"]
    says: str


async def read_parts(rooms: Context) -> list[Part]:
    """Look at every part once."""
    database, workers, processes = await _look_at_database(rooms)
    return [await _look_at_engines(rooms), database, processes, workers, _look_at_verifiers(rooms), _look_at_log(rooms)]


async def _look_at_engines(rooms: Context) -> Part:
    ready, seen, out, readiness = await rooms.engine.ready(), rooms.engine.seen(), rooms.engine.out(), rooms.readiness
    if not ready:
        return Part("engine", "bad", "No engine answers: requests are refused with 503.")
    if not readiness.adapters:
        return Part("engine", "bad", f"The champions are not loaded: {readiness.reason}")
    if readiness.broken:
        return Part("engine", "bad", f"Files are missing or altered: {', '.join(readiness.broken)}")
    if out:
        why = "; ".join(f"{url}: {reason}" for url, reason in out.items())
        return Part("engine", "worse", f"{len(seen)} of {len(seen) + len(out)} engines take requests. {why}")
    if readiness.refused:
        return Part("engine", "worse", f"Not loaded: {', '.join(sorted(readiness.refused))}")
    return Part("engine", "good", f"{_count(len(seen), 'engine takes', 'engines take')} requests.")


async def _look_at_database(rooms: Context) -> tuple[Part, Part, Part]:
    """Look at the database, and at who says there that they live."""
    lost_after_s = rooms.settings.worker_lost_after_s
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_S):
            workers = await TrainerStore(rooms.database).live(lost_after_s)
            processes = await rooms.presence.live(LIVE_WITHIN_S)
    except (StoreUnavailable, TimeoutError):
        unknown = "Not known while the database is away."
        away = "It does not answer. Answers go out and wait in the spool."
        return Part("database", "bad", away), Part("worker", "worse", unknown), Part("api", "worse", unknown)
    database = Part("database", "good", f"{rooms.database.dialect} answers.")
    if workers:
        pools = ", ".join(sorted({worker.pool for worker in workers}))
        worker = Part("worker", "good", f"{_count(len(workers), 'worker', 'workers')}, pool {pools}.")
    else:
        worker = Part("worker", "bad", "No worker reports: rounds wait. `mulligan worker` starts one.")
    in_flight = sum(sum(process.in_flight.values()) for process in processes)
    api = f"{_count(len(processes), 'process', 'processes')}, {_count(in_flight, 'episode', 'episodes')} in flight."
    return database, worker, Part("api", "good", api)


def _look_at_verifiers(rooms: Context) -> Part:
    stops = rooms.watch.stops()
    if stops:
        why = "; ".join(f"{stop.verifier} ({stop.cause})" for stop in stops)
        return Part("verifiers", "worse", f"Stopped in this process, they abstain: {why}")
    count = len(rooms.roster.snapshot.latest)
    if not count:
        return Part("verifiers", "idle", "None is registered: nothing is checked, so nothing is retried.")
    return Part("verifiers", "good", f"{count} registered, none stopped.")


def _look_at_log(rooms: Context) -> Part:
    waiting = rooms.log.spool_bytes
    if rooms.log.spooling:
        return Part("log", "worse", f"Episodes go to the spool: {waiting:,} bytes wait in this process.")
    if waiting:
        return Part("log", "worse", f"The spool goes home: {waiting:,} bytes are left in this process.")
    return Part("log", "good", "Every episode is in the database.")


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
