"""The worker's two jobs: run a queued round, and keep the rounds going. Called by trainer.worker's Celery tasks.

The rounds table is the truth: a job takes the lease on the row, runs the round in a process of its own, reports its
heartbeat, and writes how it failed where the process could not. Whatever rings twice, late or never does no harm. The
worker itself must never import torch, and no trainer may outlive it.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from server.domain import Round, RoundState, Task
from server.errors import Conflict, Fenced, StoreUnavailable
from server.settings import Settings
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore

Stopping = Callable[[], bool]
"""Says whether the worker is about to stop."""

Ring = Callable[[str], None]
"""Rings the workers for a round."""

WATCH_S = 0.2
"""How often the trainer process is looked at: bounds how long a cancel, a fence or a stop takes."""

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


async def run_round(round_id: str, settings: Settings, stopping: Stopping) -> str:
    """Take the lease on a round and see it through; return how it ended, in a word."""
    database = Database(settings.database_url)
    try:
        rounds = RoundStore(database)
        leased = await rounds.lease(round_id, f"{socket.gethostname()}:{os.getpid()}")
        if leased is None:
            return "not queued"  # another worker has it, or it was cancelled: a bell that rang twice
        log = _log.bind(round=leased.id, task=leased.task, epoch=leased.epoch)
        log.info("round_begins")
        try:
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
    trainer = await start_trainer(leased, settings, log_path)
    try:
        ended_by = await _watch(trainer, leased, rounds, settings, stopping)
    finally:
        await stop_trainer(trainer)
    if ended_by == "cancelled":
        await rounds.finish(leased.id, leased.epoch, RoundState.CANCELLED, "cancelled on request")
        return RoundState.CANCELLED
    row = await rounds.get(leased.id)
    if row is not None and row.state is RoundState.RUNNING:
        reason = read_reason(log_path, trainer.returncode or 0)
        await rounds.finish(leased.id, leased.epoch, RoundState.FAILED, reason)
        return RoundState.FAILED
    return row.state if row else "gone"


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
    """Start the round's own process, in a group of its own, bound to our life by the kernel."""
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trainer.round",
            "--round",
            leased.id,
            "--epoch",
            str(leased.epoch),
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
    """Kill what is left of the trainer and of all that it started. It holds nothing that a kill could break."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(trainer.pid, signal.SIGKILL)
    await trainer.wait()


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


async def tick(settings: Settings, ring: Ring) -> dict[str, int]:
    """Take rounds from lost workers, start due rounds, ring for the queued; return how many of each."""
    database = Database(settings.database_url)
    try:
        rounds, tasks, episodes = RoundStore(database), TaskStore(database), EpisodeStore(database)
        reaped = await rounds.reap(lost_after_s=settings.worker_lost_after_s)
        for row in reaped:
            _log.warning("round_reaped", round=row.id, state=row.state.value, reason=row.reason)
        started = 0
        for task in await tasks.list():
            if await is_due(task, rounds, episodes):
                with suppress(Conflict):  # one is queued or running
                    begun = await rounds.create(task.name, {})
                    _log.info("round_due", round=begun.id, task=task.name)
                    started += 1
        queued = await rounds.queued()
        for row in queued:
            ring(row.id)
        return {"reaped": len(reaped), "started": started, "rung": len(queued)}
    finally:
        await database.close()


async def is_due(task: Task, rounds: RoundStore, episodes: EpisodeStore) -> bool:
    """Say whether a task's policy wants a round now: enough failures since the last one, or enough time."""
    policy = task.training
    if policy.train_on_new_failures is None and policy.interval_s is None:
        return False
    last = await rounds.last_ended(task.name)
    since = (last.started_at or last.created_at) if last else 0.0
    failures = await episodes.count_failures(task.name, since=since)
    if policy.train_on_new_failures is not None and failures >= max(1, policy.train_on_new_failures):
        return True
    waited_s = time.time() - (last.ended_at if last else task.created_at)
    return policy.interval_s is not None and failures > 0 and waited_s >= policy.interval_s
