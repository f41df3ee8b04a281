"""What follows when another adapter comes to serve a task, written in the transaction that moves the pointer.

Called by the task store (flips) and the canary store: statuses, the round that made the adapter, the end of a canary,
the line in the audit log. So a process that is killed leaves all of a move or nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import BASE_ADAPTER, AdapterStatus, CanaryState, Event, RoundState, Task
from server.errors import Conflict
from server.store.clock import UnixNow
from server.store.events import write_event
from server.store.rows import clean_values, fetch_row
from server.store.tables import adapters, canaries, rounds


@dataclass(frozen=True, slots=True)
class Hand:
    """Whose hand moves an adapter, and why. `forced`: against, or without, what the gate said; the mark stays."""

    actor: str
    comment: str = ""
    forced: bool = False


STATUS_AFTER = {
    CanaryState.PROMOTED: AdapterStatus.CHAMPION,
    CanaryState.ROLLED_BACK: AdapterStatus.REJECTED,
    CanaryState.SUPERSEDED: AdapterStatus.CANDIDATE,
}
"""What becomes of an adapter whose canary ends."""


async def hold_adapter(connection: AsyncConnection, name: str) -> None:
    """Make sure that an adapter may come to serve, until this is committed: whoever rejects it meanwhile waits.

    Raises: Conflict where it was rejected.
    """
    held = select(adapters.c.status).where(adapters.c.name == name).with_for_update()
    row = await fetch_row(connection, held)
    if row is not None and row["status"] == AdapterStatus.REJECTED.value:
        raise Conflict(f"{name!r} was rejected meanwhile: by a person, or its round was cancelled. That is for good.")


async def mark_champion(
    connection: AsyncConnection, task: Task, former: str, event: Event | None, hand: Hand | None
) -> None:
    """Write down a flip: `task` as it is now, `former` the champion before."""
    if former not in (BASE_ADAPTER, task.champion):
        await set_status(connection, former, AdapterStatus.RETIRED)
    if task.champion != BASE_ADAPTER:
        await set_status(connection, task.champion, AdapterStatus.CHAMPION, hand)
        if hand is None or not hand.forced:  # what is forced does not change what the gate said
            why = str(event.details.get("reason", "")) if event else ""
            by = f"promoted by {hand.actor}: {hand.comment}" if hand else f"passed the gate and its canary: {why}"
            await decide_round(connection, task.champion, RoundState.PROMOTED, by)
    if event is not None:
        added = {"from": former, "generation": task.generation}
        await write_event(connection, replace(event, details={**event.details, **added}))


async def end_running_canary(
    connection: AsyncConnection, task: Task, ends: CanaryState, adapter: str, why: str = ""
) -> None:
    """End the canary of a task whose champion was flipped; `adapter` was on trial ("" = nothing was)."""
    won = adapter != BASE_ADAPTER and adapter == task.champion
    state = CanaryState.PROMOTED if won else ends
    reason = why or f"the champion is now {task.champion or 'the base model'}"
    running = (canaries.c.task == task.name, canaries.c.state == CanaryState.RUNNING.value)
    ending = {"state": state.value, "ended_at": UnixNow(), "generation": task.generation}
    ending["reason"] = reason
    await connection.execute(update(canaries).where(*running).values(**clean_values(ending)))
    if adapter != BASE_ADAPTER and not won:
        await set_status(connection, adapter, STATUS_AFTER[ends])
        if ends is CanaryState.ROLLED_BACK:
            await decide_round(connection, adapter, RoundState.REGRESSED, f"its canary was ended: {reason}")


async def set_status(connection: AsyncConnection, name: str, status: AdapterStatus, hand: Hand | None = None) -> None:
    """Move an adapter to another status, by a hand or none."""
    changes: dict[str, Any] = {"status": status.value}
    if hand is not None:
        changes |= {"decided_by": hand.actor, "comment": hand.comment}
        if hand.forced:
            changes["forced"] = True
    await connection.execute(update(adapters).where(adapters.c.name == name).values(**clean_values(changes)))


async def decide_round(connection: AsyncConnection, adapter: str, state: RoundState, why: str) -> None:
    """Write how the round that made an adapter ended after all, where a canary or a human had still to decide."""
    made = adapters.select().with_only_columns(adapters.c.round_id).where(adapters.c.name == adapter).scalar_subquery()
    changes = clean_values({"state": state.value, "reason": why})
    undecided = (rounds.c.id == made, rounds.c.state == RoundState.INCONCLUSIVE.value)
    await connection.execute(update(rounds).where(*undecided).values(**changes))
