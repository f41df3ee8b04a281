"""Moves adapters in and out of the engine without a dropped request.

Called by the trainer's promotion, the API and the command line.

A hot swap: check the files, load under a name that was never used before, probe that the engine really answers with
it, flip the task's champion pointer, drain the old adapter (every live API process has acknowledged the new generation
and has no episode left on the old one), unload the old one. The order is what keeps requests alive: an unload waits
inside the engine for its requests while holding up every load, and a request that comes meanwhile revives the adapter.
Nothing here ever overwrites a name or a path, and nothing is unloaded that a live process may still use.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from server.domain import BASE_ADAPTER, Adapter, AdapterStatus, Event, Task
from server.engine.base import Engine
from server.errors import AdapterRefused, Conflict, MulliganError, NotFound
from server.store.adapters import AdapterStore
from server.store.events import EventStore
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore

PRESENCE_MAX_AGE_S = 5.0
"""An API process that has not reported for so long is taken for gone; live ones report four times a second."""

DRAIN_TIMEOUT_S = 30.0
DRAIN_POLL_S = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Probe:
    """What an adapter must answer: greedy `token_ids` (T,) after `prompt_ids`, with their `logprobs` (T,).

    Made by a forward pass of the trainer. `tolerance` is in nats. `told_apart` says whether the base model's
    logprobs of these tokens lie further off than that: where they do, an engine that serves the base is found out. An
    adapter that hardly changes anything cannot be told apart; the event of its promotion says so.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    tolerance: float
    told_apart: bool = True


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


async def probe(engine: Engine, name: str, expected: Probe) -> float:
    """Ask the engine for the greedy continuation under `name` and compare it with what the trainer computed.

    Returns the largest difference of logprobs in nats.

    Raises: AdapterRefused where the engine answers with something else.
    """
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": len(expected.token_ids)}
    answer = await engine.complete_ids(expected.prompt_ids, name, sampling)
    tokens = list(answer.token_ids)
    if tokens != list(expected.token_ids)[: len(tokens)] or not tokens:
        raise AdapterRefused(
            f"The engine does not answer with {name!r}: it continued with the tokens {tokens}, "
            f"the adapter's own are {list(expected.token_ids)}."
        )
    gap = max(abs(ours - theirs) for ours, theirs in zip(expected.logprobs, answer.logprobs, strict=False))
    if gap > expected.tolerance:
        raise AdapterRefused(
            f"The engine does not answer with {name!r} as it was trained: logprobs differ by {gap:.4f} nats, "
            f"{expected.tolerance:g} are allowed."
        )
    return gap


async def promote(
    name: str,
    *,
    engine: Engine,
    tasks: TaskStore,
    adapters: AdapterStore,
    presence: PresenceStore,
    events: EventStore,
    actor: str,
    forced: bool = False,
    probe: Probe | None = None,
    expected_generation: int | None = None,
    epoch_of_round: tuple[str, int] | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
) -> Task:
    """Make an adapter its task's champion by a hot swap, and return the task as it is then.

    `expected_generation` is the champion pointer's, where the caller decided on an earlier look at it;
    `epoch_of_round` is a trainer's lease, which has to hold still at the flip.

    Raises: NotFound, Conflict (another flip came first, or it is the champion already), Fenced, AdapterRefused, the
        engine's errors.
    """
    adapter = await _find(adapters, name)
    task = await _find_task(tasks, adapter.task)
    if task.champion == name:
        raise Conflict(f"{name!r} is the champion of task {task.name!r} already.")
    generation = task.generation if expected_generation is None else expected_generation
    details: dict[str, Any] = {"from": task.champion, "forced": forced}
    loaded_now = await _load(engine, adapter)
    try:
        if probe is not None:
            details["probe_gap"] = await _probe(engine, name, probe)
            details["told_apart"] = probe.told_apart
        flipped = await tasks.flip_champion(
            task.name, name, expected_generation=generation, epoch_of_round=epoch_of_round
        )
    except MulliganError:
        if loaded_now:
            await _unload_quietly(engine, tasks, adapter)
        raise
    marked = adapters.set_status(name, AdapterStatus.CHAMPION, forced=forced or None)
    event = _event("adapter.promoted", name, actor, {**details, "generation": flipped.generation})
    await _settle(marked, adapters, task.champion, events, event)
    await retire(
        task.champion,
        flipped,
        engine=engine,
        tasks=tasks,
        presence=presence,
        events=events,
        actor=actor,
        timeout_s=drain_timeout_s,
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
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
) -> Task:
    """Put the champion before the present one back, or the base model, by a hot swap, and return the task.

    Raises: NotFound, Conflict (the base model serves already, or another flip came first), AdapterRefused, the
        engine's errors.
    """
    present = await _find_task(tasks, task)
    if present.champion == BASE_ADAPTER:
        raise Conflict(f"Task {task!r} is served by the base model; there is nothing to roll back to.")
    former = (await _find(adapters, present.champion)).parent
    if former != BASE_ADAPTER:
        await _load(engine, await _find(adapters, former))
    flipped = await tasks.flip_champion(task, former, expected_generation=present.generation)
    details = {"from": present.champion, "to": former, "generation": flipped.generation}
    event = _event("adapter.rolled_back", present.champion, actor, details)
    marked = None if former == BASE_ADAPTER else adapters.set_status(former, AdapterStatus.CHAMPION)
    await _settle(marked, adapters, present.champion, events, event)
    await retire(
        present.champion,
        flipped,
        engine=engine,
        tasks=tasks,
        presence=presence,
        events=events,
        actor=actor,
        timeout_s=drain_timeout_s,
    )
    return flipped


async def _settle(
    marked: Awaitable[Adapter] | None, adapters: AdapterStore, former: str, events: EventStore, event: Event
) -> None:
    """Write down what a flip has changed. The pointer has moved, so nothing here may make the swap look undone."""
    writes: list[Awaitable[object]] = [marked] if marked else []
    if former != BASE_ADAPTER:
        writes.append(adapters.set_status(former, AdapterStatus.RETIRED))
    writes.append(events.add(event))
    for write in writes:
        try:
            await write
        except MulliganError as error:
            _log.error("swap_not_written_down", kind=event.kind, adapter=event.subject, error=str(error))


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
) -> bool:
    """Drain an adapter that is no longer champion and unload it; say whether it was unloaded.

    Past the timeout, or where the champion moved again meanwhile (perhaps back to this very adapter), it stays loaded,
    and an event says so. That does no harm: it takes a place in the engine until it is evicted or the engine restarts.
    """
    if name == BASE_ADAPTER:
        return False
    try:
        why = "" if await drain(name, task, presence=presence, timeout_s=timeout_s) else "episodes still ran on it"
        now = await tasks.get(task.name)
        if now is None or now.generation != task.generation:
            why = "the champion moved again meanwhile"
        if not why:
            await engine.unload_adapter(name)
            return True
        await events.add(_event("adapter.left_loaded", name, actor, {"waited_s": timeout_s, "why": why}))
    except MulliganError as error:  # the swap itself is done
        _log.warning("adapter_left_loaded", adapter=name, error=str(error))
    return False


async def drain(name: str, task: Task, *, presence: PresenceStore, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Wait until every live API process serves `task` at its generation and has no episode left on adapter `name`."""
    deadline = time.monotonic() + timeout_s
    while True:
        live = await presence.live(PRESENCE_MAX_AGE_S)
        if all(
            process.acknowledged.get(task.name, -1) >= task.generation and not process.in_flight.get(name, 0)
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


async def _unload_quietly(engine: Engine, tasks: TaskStore, adapter: Adapter) -> None:
    """Unload what was not promoted; an engine that cannot now has only one adapter too many.

    It stays where somebody else promoted it meanwhile: whoever lost that race must not take it from the winner.
    """
    try:
        task = await tasks.get(adapter.task)
        if task is None or task.champion != adapter.name:
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


_probe = probe  # `promote` has an argument of that name
