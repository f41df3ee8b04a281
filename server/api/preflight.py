"""Puts the preflight together: all that stops, or will stop, a server from serving and training.

Called by the doctor and, once, when an API process starts, which logs it. What needs the trainer's tokenizer and its
folders comes from the workers, who look when the doctor asks (`trainer.preflight`). It changes nothing.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from server.adapters.preflight import check_champions, check_disk, check_engine, failed, passed, warned
from server.addresses import hide_password
from server.domain import BASE_ADAPTER, DEFAULT_POOL, Adapter, Check, CheckState, Task, TrainerPresence
from server.doorbell import Doorbell
from server.engine.inspection import EngineFacts, describe_failure, inspect_engine
from server.engine.launch import count_gpus
from server.errors import MulliganError, StoreUnavailable
from server.orchestration.fingerprints import list_doubts
from server.orchestration.slots import Room, plan_slots
from server.settings import EngineSettings, RoundSizes, Settings
from server.store import migrations
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.tool_use import find_tool_tasks
from server.store.trainers import TrainerStore

STARTING_MOST_S = 60.0
STARTING_POLL_S = 0.5
STALE_AFTER_S = 86400.0
"""A worker's look that is older says nothing of today."""

_log = structlog.get_logger(__name__)


async def look(settings: Settings, sizes: RoundSizes, database: Database) -> list[Check]:
    """Look at everything that can be seen from here, and at what the workers found last."""
    checks = check_settings(settings, sizes)
    if not database.is_there():
        remedy = "name the server's folder: --data-dir, or run where it was started; `mulligan up` makes a new one"
        return [*checks, failed("database", f"there is none at {database.url.database}", remedy)]
    checks.append(await check_broker(settings))
    try:
        checks.append(await check_schema(database))
        if checks[-1].state is CheckState.FAILED:
            return checks
        tasks = await TaskStore(database).list()
        adapters = {one.name: one for one in await AdapterStore(database).list()}
        workers = await TrainerStore(database).live(settings.worker_lost_after_s)
        told = await check_workers(settings, database, tasks, workers)
        tool_tasks = await find_tool_tasks(database)
    except StoreUnavailable as error:
        remedy = "start it, or name another: MULLIGAN_DATABASE_URL (--database-url)"
        return [*checks, failed("database", str(error), remedy)]
    checks += [*told, *check_disk({"adapters": settings.adapters_dir, "rounds": settings.rounds_dir})]
    ranks = {task.name: _read_rank(task, sizes) for task in tasks}
    for url in settings.engine.every_url:
        try:
            facts = await inspect_engine(url)
        except MulliganError as error:
            remedy = "start it (`mulligan engine`), or name the one that runs: MULLIGAN_ENGINE__URL"
            checks.append(failed("engine answers", describe_failure(url, error), remedy))
            continue
        checks.append(passed("engine answers", f"{url}, {facts.version}"))
        checks += check_engine(facts, settings.engine, ranks=ranks, tool_tasks=tool_tasks)
        checks.append(check_slots(tasks, facts))
    checks += await asyncio.to_thread(check_champions, tasks, adapters)
    checks += check_doubts(tasks, adapters, find_fingerprints(workers))
    return [*checks, *read_findings(workers)]


def _read_rank(task: Task, sizes: RoundSizes) -> int:
    own: Any = task.training.options.get("lora_rank")
    return own if isinstance(own, int) and not isinstance(own, bool) else sizes.lora_rank


async def check_schema(database: Database) -> Check:
    """Check that the database answers and has the newest schema. Raises: StoreUnavailable."""
    there, newest = await find_revision(database), await asyncio.to_thread(migrations.newest)
    if there == newest:
        return passed("database", f"{database.dialect}, schema {there}")
    return failed(
        "database", f"its schema is {there or 'empty'}, this release wants {newest}", "run `mulligan db upgrade`"
    )


async def find_revision(database: Database) -> str | None:
    """Find the database's revision; None where there is none yet, which stays so. Raises: StoreUnavailable."""
    if not database.is_there():
        return None
    await database.ping()
    return await asyncio.to_thread(migrations.current, database.url.render_as_string(hide_password=False))


async def check_broker(settings: Settings) -> Check:
    """Check that bells reach the queue."""
    doorbell = Doorbell(settings)
    try:
        why = await asyncio.to_thread(doorbell.find_fault)
    finally:
        doorbell.close()
    where = (
        "files in the data folder"
        if settings.broker_url.startswith("filesystem")
        else hide_password(settings.broker_url)
    )
    if not why:
        return passed("broker", where)
    remedy = "start it, or name another: MULLIGAN_BROKER_URL (--broker-url)"
    return failed("broker", f"{where}: {why}; rounds wait for the scheduler's next tick, which needs it too", remedy)


async def check_workers(
    settings: Settings, database: Database, tasks: Sequence[Task], workers: Sequence[TrainerPresence]
) -> list[Check]:
    """Check that each pool that a task names has a worker that lives. Raises: StoreUnavailable."""
    running = {one.owner: one.id for one in await RoundStore(database).list(limit=200) if one.state == "running"}
    pools: dict[str, list[str]] = {DEFAULT_POOL: []}
    for task in tasks:
        pools.setdefault(task.training.pool, []).append(task.name)
    checks = []
    for pool, names in sorted(pools.items()):
        here = [one for one in workers if one.pool == pool]
        if not here and pool == DEFAULT_POOL and tasks and not names:
            continue
        if here:
            told = [one.id + (f" (runs {running[one.id]})" if one.id in running else "") for one in here]
            checks.append(passed("worker", f"pool {pool}: {', '.join(told)}"))
            continue
        option = "" if pool == DEFAULT_POOL else f"MULLIGAN_POOL={pool} "
        says = f"no worker of pool {pool} was heard within {settings.worker_lost_after_s:g} s"
        whose = f"; it trains {', '.join(sorted(names))}" if names else ""
        checks.append(failed("worker", says + whose, f"start one: {option}mulligan worker"))
    return checks


def check_settings(settings: Settings, sizes: RoundSizes) -> list[Check]:
    """Find settings that contradict each other."""
    engine, found = settings.engine, []
    if engine.max_loras_per_batch > engine.max_loaded_loras:
        found.append(
            (
                f"engine.max_loras_per_batch is {engine.max_loras_per_batch}, above max_loaded_loras "
                f"{engine.max_loaded_loras}",
                f"MULLIGAN_ENGINE__MAX_LOADED_LORAS={engine.max_loras_per_batch}",
            )
        )
    if sizes.lora_rank > engine.max_lora_rank:
        found.append(
            (
                f"trainer.lora_rank is {sizes.lora_rank}, above engine.max_lora_rank {engine.max_lora_rank}",
                f"MULLIGAN_ENGINE__MAX_LORA_RANK={sizes.lora_rank}",
            )
        )
    if sizes.gate_min_problems > sizes.gate_problems:
        found.append(
            (
                f"a gate asks {sizes.gate_problems} problems and promotes nothing below {sizes.gate_min_problems}",
                f"MULLIGAN_TRAINER__GATE_PROBLEMS={sizes.gate_min_problems}",
            )
        )
    if settings.worker_lost_after_s < 3 * settings.worker_heartbeat_s:
        wanted = 5 * settings.worker_heartbeat_s
        found.append(
            (
                f"a worker counts as lost after {settings.worker_lost_after_s:g} s and says that it lives every "
                f"{settings.worker_heartbeat_s:g} s: one late word loses its round",
                f"MULLIGAN_WORKER_LOST_AFTER_S={wanted:g}",
            )
        )
    if shares_gpu_unsplit(engine, count_gpus()):
        says = "SGLang takes most of this machine's one GPU, and leaves a trainer on it little memory"
        remedy = "set MULLIGAN_ENGINE__COLOCATE=true, unless another machine trains"
        return [*_tell(found), warned("settings", says, remedy)]
    if settings.database_url.startswith("sqlite") and settings.broker_url.startswith("redis"):
        says = "the queue is on Redis and the database a file: workers on other machines would not see it"
        return [*_tell(found), warned("settings", says, "name a PostgreSQL database: MULLIGAN_DATABASE_URL")]
    return _tell(found) or [passed("settings", "nothing contradicts")]


def shares_gpu_unsplit(engine: EngineSettings, gpus: int) -> bool:
    """Say whether SGLang on this machine would share its one GPU with a trainer, its memory not split."""
    here = any(urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") for url in engine.every_url)
    return engine.kind == "sglang" and here and gpus == 1 and engine.device != "cpu" and not engine.colocate


def _tell(found: Sequence[tuple[str, str]]) -> list[Check]:
    return [failed("settings", says, f"set {remedy}") for says, remedy in found]


def check_slots(tasks: Sequence[Task], facts: EngineFacts) -> Check:
    """Plan the adapters that an engine holds against its slots."""
    plan = plan_slots(tasks, Room(facts.max_loaded_loras, facts.max_loras_per_batch))
    says = f"{facts.url}, {plan.says}"
    if not plan.fits:
        return failed("engine's adapter slots", says, plan.remedy)
    return (
        warned("engine's adapter slots", says, plan.remedy) if plan.remedy else passed("engine's adapter slots", says)
    )


def check_doubts(
    tasks: Sequence[Task], adapters: Mapping[str, Adapter], present: Mapping[str, str] | None
) -> list[Check]:
    """Say which champions no longer find what they were made for."""
    checks = []
    for task in tasks:
        adapter = adapters.get(task.champion) if task.champion != BASE_ADAPTER else None
        for doubt in list_doubts(adapter, task, present) if adapter else ():
            says, _, remedy = doubt.partition(": ")
            checks.append(warned("champions' fingerprints", f"{task.champion} was {says}", remedy))
    return checks or [passed("champions' fingerprints", "none was made for something else")]


def find_fingerprints(workers: Sequence[TrainerPresence]) -> dict[str, str] | None:
    """Find the trainer's fingerprints among what the workers found."""
    for worker in workers:
        for check in worker.preflight.get("checks", ()):
            if check["name"] == "trainer's model" and check["state"] == CheckState.OK:
                return {name: value for name, value in json.loads(check["says"]).items() if name != "path"}
    return None


def read_findings(workers: Sequence[TrainerPresence]) -> list[Check]:
    """Read what the workers found when they looked last."""
    checks = []
    for worker in workers:
        at = worker.preflight.get("at", 0.0)
        if time.time() - at > STALE_AFTER_S:
            continue
        checks += [msgspec.convert({**check, "where": worker.id}, Check) for check in worker.preflight["checks"]]
    return checks


async def log_preflight(settings: Settings, sizes: RoundSizes, database: Database, is_up: Callable[[], bool]) -> None:
    """Look once and log what is not well: a server that starts says at once what would stop it later.

    Waits until `is_up` says that the engine has started, for a minute at most.
    """
    deadline = time.monotonic() + STARTING_MOST_S
    while not is_up() and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody else waits for it
        await asyncio.sleep(STARTING_POLL_S)
    try:
        checks = await look(settings, sizes, database)
    except Exception as error:  # noqa: BLE001 -- the look must never stop a server that could serve
        _log.warning("preflight_broke", error=f"{type(error).__name__}: {error}")
        return
    for check in checks:
        if check.state in (CheckState.FAILED, CheckState.WARNED):
            _log.warning("preflight", check=check.name, state=check.state.value, says=check.says, remedy=check.remedy)
    bad = sum(check.state is CheckState.FAILED for check in checks)
    _log.info("preflight_done", checks=len(checks), failed=bad, more="mulligan doctor")
