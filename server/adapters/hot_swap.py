"""Moves a task's champion pointer without a dropped request: `promote` forwards, `rollback` back.

Called by the trainer, the canaries, and what people decide (`server.adapters.decisions`).

A hot swap: check the files, load under a name that was never used before into every engine, probe that each really
answers with it, wait until every live API process sees it on every engine that it asks (all that is
`server.adapters.loading`), flip the task's champion pointer, drain the old adapter (every live API process has
acknowledged the new generation and has no episode left on the old one), unload the old one. The order is what keeps
requests alive: an unload waits inside the engine for its requests while holding up every load, and a request that comes
meanwhile revives the adapter. Nothing is unloaded that a live process may still use.
"""

import time
from contextlib import nullcontext

from server.adapters.loading import brought_in
from server.adapters.probing import Probe
from server.adapters.rooms import SwapRooms
from server.adapters.unloading import DRAIN_TIMEOUT_S, retire
from server.domain import BASE_ADAPTER, AdapterStatus, CanaryState, Event, Task
from server.errors import Conflict
from server.store.fencing import RoundEpoch
from server.store.moves import Hand


async def promote(
    name: str,
    rooms: SwapRooms,
    *,
    actor: str,
    hand: Hand | None = None,
    reason: str = "",
    probe: Probe | None = None,
    expected_generation: int | None = None,
    epoch_of_round: RoundEpoch | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
) -> Task:
    """Make an adapter its task's champion by a hot swap, and return the task as it is then.

    `expected_generation` is the task's, where the caller decided on an earlier look at it; `epoch_of_round` is a
    trainer's lease, which has to hold still at the flip. `hand` is whose hand it is; without one it is the gate's work,
    or a canary's, and `reason` says why. A canary of the task ends with it.

    Raises: NotFound, Conflict (another flip came first, or it is the champion already), Fenced, AdapterRefused, the
        engine's errors.
    """
    adapter = await rooms.find_adapter(name)
    task = await rooms.find_task(adapter.task)
    if task.champion == name:
        raise Conflict(f"{name!r} is the champion of task {task.name!r} already.")
    if adapter.status is AdapterStatus.REJECTED:
        raise Conflict(f"{name!r} was rejected: by the gate, its canary or a person, or its round was cancelled.")
    details = {"forced": bool(hand and hand.forced), "comment": hand.comment if hand else ""}
    details |= {"reason": reason} if reason else {}
    async with brought_in(adapter, rooms, probe) as found:
        flipped = await rooms.tasks.flip_champion(
            task.name,
            name,
            expected_generation=task.generation if expected_generation is None else expected_generation,
            epoch_of_round=epoch_of_round,
            event=Event("adapter.promoted", name, actor, {**details, **found}, time.time()),
            hand=hand,
        )
    round_id = epoch_of_round[0] if epoch_of_round else ""
    await _retire_former(task, flipped, rooms, actor=actor, timeout_s=drain_timeout_s, round_id=round_id)
    return flipped


async def rollback(
    task_name: str,
    rooms: SwapRooms,
    *,
    actor: str,
    to: str | None = None,
    comment: str = "",
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
) -> Task:
    """Put a former champion back ("" = the base model; None = the one before), by a hot swap, and return the task.

    A canary of the task ends with it. Whether `to` ever was champion is for the caller to see.

    Raises: NotFound, Conflict (it serves already, or another flip came first), AdapterRefused, the engine's errors.
    """
    task = await rooms.find_task(task_name)
    if to is None and task.champion == BASE_ADAPTER:
        raise Conflict(f"Task {task_name!r} is served by the base model; there is nothing to roll back to.")
    former = (await rooms.find_adapter(task.champion)).parent if to is None else to
    if former == task.champion:
        raise Conflict(f"Task {task_name!r} is served by {former or 'the base model'} already.")
    details = {"to": former, "comment": comment, **({"canary_ended": task.canary} if task.canary else {})}
    in_place = nullcontext() if former == BASE_ADAPTER else brought_in(await rooms.find_adapter(former), rooms)
    async with in_place:
        flipped = await rooms.tasks.flip_champion(
            task_name,
            former,
            expected_generation=task.generation,
            event=Event("adapter.rolled_back", task.champion, actor, details, time.time()),
            hand=Hand(actor, comment),
            canary_ends=CanaryState.ROLLED_BACK,
        )
    await _retire_former(task, flipped, rooms, actor=actor, timeout_s=drain_timeout_s)
    return flipped


async def _retire_former(
    before: Task, flipped: Task, rooms: SwapRooms, *, actor: str, timeout_s: float, round_id: str = ""
) -> None:
    for name in (before.champion, before.canary):
        await retire(name, flipped, rooms, actor=actor, timeout_s=timeout_s, round_id=round_id)
