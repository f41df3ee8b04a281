"""What a scrape reads beside the counts: the gauges of this process, and what database and disk say of the server.

Called by the route of `/metrics`; the meter reads the gauges once a second as well. The database is asked every few
seconds at most, however many scrape, and for so long at most that a scraper does not give up.
"""

import asyncio
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from server.api.context import Context
from server.errors import StoreUnavailable
from server.store.episode_insert import REJECTED
from server.store.spool import SUFFIX, TORN, read_header_bytes
from server.store.vitals import Vitals, VitalsStore
from server.telemetry import catalogue as c
from server.telemetry.tally import Key, Names, Series

DATABASE_TIMEOUT_S = 2.0
READ_EVERY_S = 5.0
LIVE_WITHIN_S = 20.0
"""How old a worker's last sign of life may be; each says one every few seconds, also while a round runs."""

_process = psutil.Process()


def read_gauges(context: Context) -> dict[Key, float]:
    """Read what this process has now."""
    with _process.oneshot():
        memory, cpu, started = _process.memory_info().rss, _process.cpu_times(), _process.create_time()
    log, traffic = context.log, context.traffic
    gauges: dict[Key, float] = {
        (c.QUEUED.name,): traffic.queued,
        (c.RUNNING.name,): traffic.running,
        (c.RUNNING_MOST.name,): context.settings.limits.max_concurrent,
        (c.STOPPED.name,): len(context.watch.stops()),
        (c.SPOOLING.name,): log.spooling,
        (c.WITHHELD.name,): log.withheld,
        (c.MEMORY.name,): memory,
        (c.CPU.name,): cpu.user + cpu.system,
        (c.STARTED.name,): started,
    }
    seen, several = context.engine.seen(), len(context.engine.members) > 1
    for member in context.engine.members:
        # One engine alone is always asked; whether it is there, the looks at it tell.
        gauges[c.ENGINE_UP.name, member.url] = member.url in seen if several else member.looked and not member.bad_looks
        gauges[c.ENGINE_ADAPTERS.name, member.url] = len(member.adapters)
    return gauges


class VitalSigns:
    """What is of the whole server, kept for a few seconds."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = VitalsStore(context.database)
        self._tasks, self._pools = Names(), Names()
        self._reading = asyncio.Lock()
        self._read_at = -READ_EVERY_S
        self._held: Series = {}

    async def read(self) -> Series:
        """Read it, or what was read a moment ago."""
        async with self._reading:
            if time.monotonic() - self._read_at >= READ_EVERY_S:
                self._held = {**self._read_settings(), **await self._read_database()}
                self._held |= await asyncio.to_thread(_read_disks, self._context)
                self._read_at = time.monotonic()
            return self._held

    def _read_settings(self) -> Series:
        tasks = self._context.roster.snapshot.tasks.values()
        return {
            (c.BUILD.name, _version()): 1.0,
            (c.SPOOL_MOST.name,): self._context.settings.log.spool_max_bytes,
            **{(c.GENERATION.name, self._tasks.read(task.name)): task.generation for task in tasks},
        }

    async def _read_database(self) -> Series:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_S):
                vitals = await self._store.read(LIVE_WITHIN_S)
        except (StoreUnavailable, TimeoutError):
            return {(c.DATABASE_UP.name,): 0.0}
        return {(c.DATABASE_UP.name,): 1.0, **self._tell(vitals)}

    def _tell(self, vitals: Vitals) -> Series:
        told: Series = {(c.ROUNDS.name, state): count for state, count in vitals.rounds.items()}
        # A pool that a task wants and where nobody lives is told as well: else nothing would say that nobody trains.
        pools = {task.training.pool for task in self._context.roster.snapshot.tasks.values()} | set(vitals.trainers)
        for pool in sorted(pools):
            told[c.TRAINERS.name, self._pools.read(pool)] = vitals.trainers.get(pool, 0)
        for pool, seen_s in vitals.seen_s.items():
            told[c.TRAINER_SEEN_S.name, self._pools.read(pool)] = max(0.0, seen_s)
        for one in vitals.open:
            place = (self._pools.read(one.pool), self._tasks.read(one.task))
            if one.state == "queued":
                _keep_longest(told, (c.ROUND_QUEUED_S.name, *place), one.queued_s)
            else:
                _keep_longest(told, (c.ROUND_RUNNING_S.name, *place), one.running_s)
                _keep_longest(told, (c.ROUND_HEARTBEAT_S.name, *place), one.heartbeat_s)
                _keep_longest(told, (c.ROUND_PROGRESS_S.name, *place), one.progress_s)
        return told


def _keep_longest(told: Series, key: Key, seconds: float) -> None:
    """Of all that are counted together as `other`, tell of the one that it takes longest."""
    held = told.get(key, 0.0)
    assert not isinstance(held, list)
    told[key] = max(held, seconds, 0.0)


def _read_disks(context: Context) -> Series:
    settings = context.settings
    told: Series = {(c.SPOOL.name,): _spool_bytes(settings.spool_dir)}
    rejected = settings.spool_dir / REJECTED
    told[c.SET_ASIDE.name, "rejected"] = _size(rejected)
    told[c.SET_ASIDE.name, "torn"] = sum(map(_size, settings.spool_dir.glob(f"*{TORN}")))
    for name, folder in (("data", settings.data_dir), ("adapters", settings.adapters_dir)):
        try:
            disk = shutil.disk_usage(folder)
        except OSError:  # it is not there yet
            continue
        told[c.DISK_FREE.name, name], told[c.DISK_SIZE.name, name] = disk.free, disk.total
    return told


def _spool_bytes(folder: Path) -> int:
    """Add up what waits in the spools of all processes, dead or alive, less the files' heads."""
    total = 0
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            total += max(0, path.stat().st_size - read_header_bytes(path))
        except OSError:  # it was brought home a moment ago
            continue
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _version() -> str:
    try:
        return version("mulligan")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
