"""Moves adapters in and out of the engine without a dropped request.

Called by the trainer's promotion, the API and the command line.

A hot swap: check the files, load under a name that was never used before into every engine, probe that each really
answers with it, wait until every live API process sees it on every engine that it asks, flip the task's champion
pointer, drain the old adapter (every live API process has acknowledged the new generation and has no episode left on
the old one), unload the old one. The order is what keeps requests alive: an unload waits inside the engine for its
requests while holding up every load, and a request that comes meanwhile revives the adapter. Nothing here ever
overwrites a name or a path, and nothing is unloaded that a live process may still use.
"""

import asyncio
import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from server.adapters.probing import Probe, probe_everywhere
from server.adapters.unloading import PRESENCE_MAX_AGE_S, held, unload_unused, wait_until_seen
from server.domain import BASE_ADAPTER, Adapter, AdapterStatus, CanaryState, Event, Task
from server.engine.base import Engine
from server.errors import AdapterRefused, Conflict, MulliganError, NotFound
from server.store.adapters import AdapterStore
from server.store.events import EventStore
from server.store.holds import HoldStore
from server.store.moves import Hand
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore

DRAIN_TIMEOUT_S = 30.0
DRAIN_POLL_S = 0.1

_log = structlog.get_logger(__name__)


async def push(engine: Engine, name: str, path: str) -> bool:
    """Load an adapter under its name; say whether it was loaded now (it may have been there already).

    Raises: EngineUnavailable, AdapterRefused.
    """
    if await _is_loaded(engine, name, path):
        return False
    try:
        await engine.load_adapter(name, path)
    except AdapterRefused:
        if await _is_loaded(engine, name, path):  # another process was quicker: an engine loads a name once
            return False
        raise
    return True


async def _is_loaded(engine: Engine, name: str, path: str) -> bool:
    loaded = (await engine.state()).adapters
    if name in loaded and loaded[name] and Path(loaded[name]) != Path(path):
        raise AdapterRefused(f"The engine holds another adapter under the name {name!r}; a name is written once.")
    return name in loaded


async def promote(
    name: str,
    *,
    engine: Engine,
    tasks: TaskStore,
    adapters: AdapterStore,
    presence: PresenceStore,
    events: EventStore,
    actor: str,
    hand: Hand | None = None,
    reason: str = "",
    probe: Probe | None = None,
    expected_generation: int | None = None,
    epoch_of_round: tuple[str, int] | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    holds: HoldStore | None = None,
) -> Task:
    """Make an adapter its task's champion by a hot swap, and return the task as it is then.

    `expected_generation` is the task's, where the caller decided on an earlier look at it; `epoch_of_round` is a
    trainer's lease, which has to hold still at the flip. `hand` is whose hand it is; without one it is the gate's work,
    or a canary's, and `reason` says why. A canary of the task ends with it.

    Raises: NotFound, Conflict (another flip came first, or it is the champion already), Fenced, AdapterRefused, the
        engine's errors.
    """
    adapter = await _find(adapters, name)
    task = await _find_task(tasks, adapter.task)
    if task.champion == name:
        raise Conflict(f"{name!r} is the champion of task {task.name!r} already.")
    if adapter.status is AdapterStatus.REJECTED:
        raise Conflict(f"{name!r} was rejected: by the gate, its canary or a person, or its round was cancelled.")
    generation = task.generation if expected_generation is None else expected_generation
    details: dict[str, Any] = {"forced": bool(hand and hand.forced), "comment": hand.comment if hand else ""}
    if reason:
        details["reason"] = reason
    async with held(name, holds):
        loaded_now = await _load(engine, adapter)
        try:
            if probe is not None:
                details["probe_gap"] = await probe_everywhere(engine, name, probe)
                details["told_apart"] = probe.told_apart
            await wait_until_seen(name, presence=presence)
            flipped = await tasks.flip_champion(
                task.name,
                name,
                expected_generation=generation,
                epoch_of_round=epoch_of_round,
                event=_event("adapter.promoted", name, actor, details),
                hand=hand,
            )
        except MulliganError:
            if loaded_now:
                await unload_quietly(engine, tasks, adapter)
            raise
    for former in (task.champion, task.canary):
        await retire(
            former,
            flipped,
            engine=engine,
            tasks=tasks,
            presence=presence,
            events=events,
            actor=actor,
            timeout_s=drain_timeout_s,
            holds=holds,
            round_id=epoch_of_round[0] if epoch_of_round else "",
        )
    return flipped


async def rollback(
    task: str,
    *,
    engine: Engine,
    tasks: TaskStore,
    adapters: AdapterStore,
    presence: PresenceStore,
    events: EventStore,
    actor: str,
    to: str | None = None,
    comment: str = "",
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    holds: HoldStore | None = None,
) -> Task:
    """Put a former champion back ("" = the base model; None = the one before), by a hot swap, and return the task.

    A canary of the task ends with it. Whether `to` ever was champion is for the caller to see.

    Raises: NotFound, Conflict (it serves already, or another flip came first), AdapterRefused, the engine's errors.
    """
    present = await _find_task(tasks, task)
    if to is None and present.champion == BASE_ADAPTER:
        raise Conflict(f"Task {task!r} is served by the base model; there is nothing to roll back to.")
    former = (await _find(adapters, present.champion)).parent if to is None else to
    if former == present.champion:
        raise Conflict(f"Task {task!r} is served by {former or 'the base model'} already.")
    details = {"to": former, "comment": comment, **({"canary_ended": present.canary} if present.canary else {})}
    async with held(former, holds):
        if former != BASE_ADAPTER:
            await _load(engine, await _find(adapters, former))
            await wait_until_seen(former, presence=presence)
        flipped = await tasks.flip_champion(
            task,
            former,
            expected_generation=present.generation,
            event=_event("adapter.rolled_back", present.champion, actor, details),
            hand=Hand(actor, comment),
            canary_ends=CanaryState.ROLLED_BACK,
        )
    for name in (present.champion, present.canary):
        await retire(
            name,
            flipped,
            engine=engine,
            tasks=tasks,
            presence=presence,
            events=events,
            actor=actor,
            timeout_s=drain_timeout_s,
            holds=holds,
        )
    return flipped


async def retire(
    name: str,
    task: Task,
    *,
    engine: Engine,
    tasks: TaskStore,
    presence: PresenceStore,
    events: EventStore,
    actor: str,
    timeout_s: float,
    holds: HoldStore | None = None,
    round_id: str = "",
) -> bool:
    """Drain an adapter that is no longer champion and unload it; say whether it was unloaded.

    Past the timeout, or where the champion moved again meanwhile (perhaps back to this very adapter), or a round other
    than `round_id` uses it, it stays loaded, and an event says so. That does no harm: it takes a place in the engine
    until the sweep finds it.
    """
    if name in (task.champion, task.canary, BASE_ADAPTER):
        with suppress(MulliganError):
            await drain(BASE_ADAPTER, task, presence=presence, timeout_s=timeout_s)
        return False
    try:
        why = "" if await drain(name, task, presence=presence, timeout_s=timeout_s) else "episodes still ran on it"
        now = await tasks.get(task.name)
        if now is None or now.generation != task.generation:
            why = "the champion moved again meanwhile"
        why = why or await unload_unused(engine, name, holds, round_id=round_id)
        if not why:
            return True
        await events.add(_event("adapter.left_loaded", name, actor, {"waited_s": timeout_s, "why": why}))
    except MulliganError as error:  # the swap itself is done
        _log.warning("adapter_left_loaded", adapter=name, error=str(error))
    return False


async def drain(name: str, task: Task, *, presence: PresenceStore, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Wait until every live API process serves `task` at its generation and has no episode left on adapter `name`.

    For the base model, which stays, that is until they serve at that generation. Returns false past the timeout.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        live = await presence.live(PRESENCE_MAX_AGE_S)
        if all(
            process.acknowledged.get(task.name, -1) >= task.generation
            and (name == BASE_ADAPTER or not process.in_flight.get(name, 0))
            for process in live
        ):
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(DRAIN_POLL_S)


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(adapter: Adapter) -> None:
    """Compare an adapter's files with the hashes it was registered with.

    Raises: AdapterRefused.
    """
    for file, digest in adapter.files.items():
        path = Path(adapter.path) / file
        if not path.is_file():
            raise AdapterRefused(f"Adapter {adapter.name!r} lacks its file {file!r}.")
        if hash_file(path) != digest:
            raise AdapterRefused(f"The file {file!r} of adapter {adapter.name!r} is not the one that was registered.")


async def _load(engine: Engine, adapter: Adapter) -> bool:
    await asyncio.to_thread(check_files, adapter)
    return await push(engine, adapter.name, adapter.path)


async def unload_quietly(engine: Engine, tasks: TaskStore, adapter: Adapter) -> None:
    """Unload what was not promoted; an engine that cannot now has only one adapter too many.

    It stays where somebody else promoted it meanwhile: whoever lost that race must not take it from the winner.
    """
    try:
        task = await tasks.get(adapter.task)
        if task is None or adapter.name not in (task.champion, task.canary):
            await engine.unload_adapter(adapter.name)
    except MulliganError as error:
        _log.warning("adapter_not_unloaded", adapter=adapter.name, error=str(error))


async def _find(adapters: AdapterStore, name: str) -> Adapter:
    adapter = await adapters.get(name)
    if adapter is None:
        raise NotFound(f"There is no adapter {name!r}.")
    return adapter


async def _find_task(tasks: TaskStore, name: str) -> Task:
    task = await tasks.get(name)
    if task is None:
        raise NotFound(f"There is no task {name!r}.")
    return task


def _event(kind: str, subject: str, actor: str, details: dict[str, Any]) -> Event:
    return Event(kind=kind, subject=subject, actor=actor, details=details, created_at=time.time())
