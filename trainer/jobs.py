"""The worker's two jobs: run a queued round, and keep the rounds going and the tasks audited.

Called by trainer.worker's Celery tasks. The rounds table is the truth: a job takes the lease on the row, runs the round
in a process of its own, reports its heartbeat, and writes how it failed where the process could not. Whatever rings
twice, late or never does no harm. The worker itself must never import torch, and no trainer may outlive it.
"""

import asyncio
import ctypes
import math
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec
import psutil
import structlog

from server.domain import BASE_ADAPTER, Check, CheckState, Round, RoundState, Task
from server.engine.replicas import open_replicas
from server.errors import Conflict, Fenced, StoreUnavailable
from server.settings import RoundSizes, Settings
from server.store.adapters import AdapterStore
from server.store.audit import AuditStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.panels import PanelStore
from server.store.progress import ProgressStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.trainers import TrainerStore
from server.store.verifiers import VerifierStore
from trainer import leftovers
from trainer.auditing import Auditor
from trainer.canaries import CanaryWatch
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings
from trainer.spreading import read_spread
from trainer.upkeep import Upkeep

Stopping = Callable[[], bool]
"""Says whether the worker is about to stop."""

Ring = Callable[[Round], None]
"""Rings the workers of a round's pool."""

WATCH_S = 0.2
"""How often the trainer process is looked at: bounds how long a cancel, a fence or a stop takes."""

KILLED_S = 5.0
"""How long a killed process may take to be gone."""

PREFLIGHT_MOST_S = 120.0

PANEL_WATCH_S = 1.0
"""How often a panel's run looks whether a round waits: how late it gives way."""

STORE_PATIENCE = 0.5
"""The share of `worker_lost_after_s` for which a heartbeat may fail because the database is away."""

_log = structlog.get_logger(__name__)
# Idle threads sleep instead of spinning: the engine shares the machine. Nothing is asked of the hub.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """The worker stops; the round goes back into the queue once its heartbeat is stale."""


def name_worker() -> str:
    """Name this worker as the tables of rounds and of workers know it."""
    return f"{socket.gethostname()}:{os.getpid()}"


async def run_round(round_id: str, settings: Settings, stopping: Stopping, canaries: CanaryWatch | None = None) -> str:
    """Take the lease on the round that is next in our pool, and see it through; return how it ended, in a word.

    `round_id` is whose bell rang; the queue decides whose turn it is.
    """
    database = Database(settings.database_url)
    try:
        rounds = RoundStore(database)
        leased = await rounds.lease_next(settings.pool, name_worker())
        if leased is None:
            _log.debug("nothing_to_run", rung_for=round_id, pool=settings.pool)
            return "not queued"  # the pool has its round, or the bell rang twice: the next tick rings for what waits
        log = _log.bind(round=leased.id, task=leased.task, epoch=leased.epoch)
        log.info("round_begins")
        try:
            async with canaries.looking(database) if canaries else nullcontext():
                return await _see_through(leased, rounds, settings, stopping)
        except Fenced:
            log.warning("round_lost")
            return "lost"
        except Stopped:
            log.warning("round_left", why="the worker stops; another one, or this one later, begins it again")
            return "left"
        except Exception as error:
            log.exception("round_broke")
            await rounds.finish(leased.id, leased.epoch, RoundState.FAILED, f"the worker broke: {error!r}")
            return RoundState.FAILED
    finally:
        await database.close()


async def _see_through(leased: Round, rounds: RoundStore, settings: Settings, stopping: Stopping) -> str:
    folder = settings.rounds_dir / leased.id
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "round.log"
    try:
        trainer = await start_trainer(leased, settings, log_path)
    except RoundFailed as error:
        await rounds.finish(leased.id, leased.epoch, RoundState.FAILED, str(error))
        return RoundState.FAILED
    try:
        ended_by = await _watch(trainer, leased, rounds, settings, stopping)
    finally:
        await stop_trainer(trainer)
    row = await rounds.get(leased.id)
    if row is None or row.state is not RoundState.RUNNING or row.epoch != leased.epoch:
        return row.state if row else "gone"  # the trainer wrote its end itself, or another worker has the round
    state, reason = RoundState.CANCELLED, "cancelled on request"
    if ended_by != "cancelled":
        state, reason = RoundState.FAILED, read_reason(log_path, trainer.returncode or 0)
    if (serves := await clear_up(row, settings)) is not None:
        before = "it was promoted" if serves is RoundState.PROMOTED else "its canary began, which decides,"
        state, reason = serves, f"{before} before this: {reason}"
    await rounds.finish(leased.id, leased.epoch, state, reason)
    return state


async def clear_up(row: Round, settings: Settings) -> RoundState | None:
    """Take what a dead trainer left out of the engine and off the disk; say how it ends if its adapter serves."""
    database, engine = Database(settings.database_url), open_replicas(settings.engine)
    try:
        return await leftovers.clear_up(
            row, settings.rounds_dir / row.id, engine, AdapterStore(database), TaskStore(database)
        )
    except StoreUnavailable as error:
        _log.warning("left_uncleared", round=row.id, error=str(error))
        return None
    finally:
        await engine.close()
        await database.close()


async def _watch(
    trainer: asyncio.subprocess.Process, leased: Round, rounds: RoundStore, settings: Settings, stopping: Stopping
) -> str:
    """Send heartbeats until the trainer ends or has to. Raises: Fenced, Stopped, StoreUnavailable."""
    patience_s = settings.worker_lost_after_s * STORE_PATIENCE
    beaten = time.monotonic()
    due = beaten + settings.worker_heartbeat_s
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                await trainer.wait()
                return "ended"
        if stopping():
            raise Stopped
        if time.monotonic() < due:
            continue
        try:
            row = await rounds.heartbeat(leased.id, leased.epoch)
            beaten = time.monotonic()
        except Fenced:
            row = await rounds.get(leased.id)
            if row is None or row.epoch != leased.epoch:
                raise  # another worker has it
            due = math.inf  # the trainer has just ended the round itself, and will end
            continue
        except StoreUnavailable:
            if time.monotonic() - beaten > patience_s:
                raise
            row = leased
        due = time.monotonic() + settings.worker_heartbeat_s
        if row.cancel_requested:
            return "cancelled"


async def start_trainer(leased: Round, settings: Settings, log_path: Path) -> asyncio.subprocess.Process:
    """Start the round's own process, or the launcher of several, in its own group, bound to our life by the kernel.

    Raises: RoundFailed where accelerate's config asks for what rounds do not support; nothing is started then.
    """
    spread = read_spread(TrainerSettings().accelerate_config)
    argv = ["--round", leased.id, "--epoch", str(leased.epoch)]
    command = [sys.executable, "-m", "trainer.round", *argv]
    if spread is not None:
        command = spread.command(argv, log_path.parent / "ranks")
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_ENVIRONMENT, **settings.environment()},
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),  # one system call; a wrapper would come too late
        )


def _die_with(parent: int) -> Callable[[], None]:
    """Make what a child calls before it runs: the kernel kills it when its parent dies, even by kill -9."""

    def bind_to_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return bind_to_parent


async def stop_trainer(trainer: asyncio.subprocess.Process) -> None:
    """Kill what is left of the trainer and of all that it started. It holds nothing that a kill could break.

    The ranks of several GPUs have groups of their own, and are killed one by one, after their launcher.
    """
    started: list[psutil.Process] = []
    with suppress(psutil.Error):
        started = psutil.Process(trainer.pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(trainer.pid, signal.SIGKILL)
    for one in started:
        with suppress(psutil.Error):
            one.kill()
    await trainer.wait()
    if started:
        await asyncio.to_thread(psutil.wait_procs, started, KILLED_S)


def read_reason(log_path: Path, returncode: int) -> str:
    """Read why the trainer failed from the last line of its log that says so."""
    with log_path.open("rb") as log:
        log.seek(max(0, log_path.stat().st_size - 64 * 1024))
        tail = log.read().decode("utf-8", "replace")
    said = re.findall(r"^error: (.+)$", tail, re.MULTILINE)
    if said and returncode == 1:
        return said[-1][:2000]
    how = f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with status {returncode}"
    hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "nothing")
    return f"the trainer {how}{hint} without ending the round; its log {log_path.name} ends with: {last[:500]}"


async def run_preflight(settings: Settings) -> int:
    """Look with the trainer's eyes, in a process of its own, and write what it found; return how many checks failed."""
    looking = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trainer.preflight",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**_ENVIRONMENT, **settings.environment()},
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
    )
    err = b""
    try:
        async with asyncio.timeout(PREFLIGHT_MOST_S):
            out, err = await looking.communicate()
        checks = msgspec.json.decode(out, type=list[Check])
    except (TimeoutError, msgspec.DecodeError) as error:
        await stop_trainer(looking)
        late = isinstance(error, TimeoutError)
        tail = "" if late else err.decode(errors="replace").strip().rpartition("\n")[2]
        why = f"it took over {PREFLIGHT_MOST_S:g} s" if late else f"it broke: {tail[:500]}"
        remedy = "run `python -m trainer.preflight` on the worker's machine"
        checks = [Check("trainer's preflight", CheckState.FAILED, why, remedy)]
    database = Database(settings.database_url)
    try:
        await TrainerStore(database).report(name_worker(), settings.pool, checks)
    finally:
        await database.close()
    return sum(check.state is CheckState.FAILED for check in checks)


async def run_panel(task: str, settings: Settings, stopping: Stopping) -> str:
    """Ask a task's panel while nothing else waits in our pool; return how that ended, in a word.

    It is broken off for a round, and goes on after it: what was asked stays written.
    """
    database = Database(settings.database_url)
    try:
        rounds = RoundStore(database)
        if not await rounds.is_idle(settings.pool):
            return "a round goes first"
        folder = settings.rounds_dir / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{task}.log").open("wb") as log:
            asking = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "trainer.panel", "--task", task),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, **settings.environment()},
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PANEL_WATCH_S):
                        await asking.wait()
                        break
                if stopping() or not await rounds.is_idle(settings.pool):
                    return "broken off"
        finally:
            await stop_trainer(asking)
        said = "asked" if asking.returncode == 0 else read_reason(folder / f"{task}.log", asking.returncode or 0)
        _log.info("panel", task=task, said=said)
        return said
    finally:
        await database.close()


async def find_due_panels(tasks: Sequence[Task], database: Database, sizes: RoundSizes) -> list[Task]:
    """Find the tasks whose panel wants work: enough problems and none frozen yet, or a champion that was not asked.

    A panel that a revocation or an erasure has made stale is due as well.
    """
    store, due = PanelStore(database), []
    revoked = await VerifierStore(database).revoked()
    for task in tasks:
        if task.champion == BASE_ADAPTER:
            continue  # nothing to compare yet
        panel = await store.find_latest(task.name)
        if panel is None:
            wanted = int(task.training.options.get("panel_min_problems", sizes.panel_min_problems))
            if await ProgressStore(database).count_problems(task.name, revoked, most=wanted) >= wanted:
                due.append(task)
        elif await store.count_results(panel, task.champion) < panel.size or await store.find_stale(panel, revoked):
            due.append(task)
    return due


async def tick(
    settings: Settings,
    ring: Ring,
    auditor: Auditor,
    upkeep: Upkeep | None = None,
    canaries: CanaryWatch | None = None,
    *,
    ring_panel: Callable[[Task], None] | None = None,
) -> dict[str, int]:
    """Take rounds from lost workers, start due rounds, ring for the queued, audit; return how many of each.

    `canaries` are looked at. With `upkeep` the log is kept within its bounds as well, last: nothing waits for that.
    """
    database = Database(settings.database_url)
    try:
        rounds, tasks, episodes = RoundStore(database), TaskStore(database), EpisodeStore(database)
        reaped = await rounds.reap(lost_after_s=settings.worker_lost_after_s)
        for row in reaped:
            _log.warning("round_reaped", round=row.id, state=row.state.value, reason=row.reason)
            if row.state.ended:  # nobody takes it over
                await clear_up(row, settings)
        started = 0
        there = await tasks.list()
        for task in there:
            if await is_due(task, rounds, episodes):
                with suppress(Conflict):  # one is queued or running
                    begun = await rounds.create(task.name, {})
                    _log.info("round_due", round=begun.id, task=task.name)
                    started += 1
        queued = await rounds.queued()
        for row in queued:
            ring(row)
        if canaries is not None:
            await canaries.look(database)
        for task in await find_due_panels(there, database, RoundSizes()) if ring_panel else ():
            if ring_panel and await rounds.is_idle(task.training.pool):
                ring_panel(task)
        suspected = await auditor.look(there, AuditStore(database))
        if upkeep is not None:
            await upkeep.look(database)
        return {"reaped": len(reaped), "started": started, "rung": len(queued), "suspected": suspected}
    finally:
        await database.close()


async def is_due(task: Task, rounds: RoundStore, episodes: EpisodeStore) -> bool:
    """Say whether a task's policy wants a round now: enough failures since the last one, or enough time.

    Not while a canary runs: once it ends, the round would have been compared with what is champion no more.
    """
    policy = task.training
    if task.canary or (policy.train_on_new_failures is None and policy.interval_s is None):
        return False
    last = await rounds.last_ended(task.name)
    since = (last.started_at or last.created_at) if last else 0.0
    wanted = max(1, policy.train_on_new_failures or 1)
    failures = await episodes.count_failures(task.name, since=since, most=wanted)
    if policy.train_on_new_failures is not None and failures >= wanted:
        return True
    waited_s = time.time() - (last.ended_at if last else task.created_at)
    return policy.interval_s is not None and failures > 0 and waited_s >= policy.interval_s
