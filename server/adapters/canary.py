"""Moves a canary: begins it, widens it, makes it champion or ends it. What to do when is `canary_rule`'s.

Called by the trainer (a candidate that passed the gate; the worker's looks), the API and the command line. A canary is
loaded and probed like a champion before it is in the database, so that whoever reads of it finds it in the engines; and
it is unloaded only once no process gives it to new episodes. Between the two every move is one transaction that names
the generation it was decided on. A process that is killed in between leaves an adapter too many in the engines, which
the sweep of orphans finds, and never a task without a champion or with two.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from server.adapters.canary_rule import Decision, Move, decide, slow_bound_ms
from server.adapters.hot_swap import promote
from server.adapters.loading import brought_in, load
from server.adapters.probing import Probe
from server.adapters.rooms import SwapRooms
from server.adapters.unloading import DRAIN_TIMEOUT_S, retire
from server.domain import (
    AdapterStatus,
    Canary,
    CanaryPolicy,
    CanaryState,
    CanaryStep,
    Event,
    Task,
    new_id,
)
from server.errors import AdapterRefused, Conflict, MulliganError, StoreUnavailable
from server.store.fencing import RoundEpoch
from server.store.moves import Hand
from server.store.withdrawals import TRAINED_ON_REVOKED

WORKER = "canary"
"""The actor of what nobody's hand did."""

REST = 20
"""A canary is looked at again after so many times as long as the last look took: at most a twentieth of the time."""

_log = structlog.get_logger(__name__)


async def begin_canary(
    name: str,
    policy: CanaryPolicy,
    rooms: SwapRooms,
    *,
    actor: str,
    hand: Hand | None = None,
    probe: Probe | None = None,
    expected_generation: int | None = None,
    epoch_of_round: RoundEpoch | None = None,
) -> Task:
    """Let an adapter's first share of its task's conversations begin with it, and return the task.

    Raises: NotFound, Conflict (the task has a canary, it serves already, or what serves moved meanwhile), Fenced,
        AdapterRefused, the engine's errors.
    """
    adapter = await rooms.find_adapter(name)
    task = await rooms.find_task(adapter.task)
    if name in (task.champion, task.canary):
        raise Conflict(f"{name!r} serves task {task.name!r} already.")
    if adapter.status is AdapterStatus.REJECTED:
        raise Conflict(f"{name!r} was rejected: by the gate, a canary or a person. That is for good.")
    if task.canary:
        raise Conflict(
            f"Task {task.name!r} has the canary {task.canary!r}: promote it, reject it or roll it back first."
        )
    forced = bool(hand and hand.forced) or adapter.forced
    before = await rooms.figures.read_before(task.name, task.champion)
    comment = hand.comment if hand else ""
    details = {"share": policy.share, "champion": task.champion, "forced": forced, "comment": comment}
    async with brought_in(adapter, rooms, probe) as found:
        now = time.time()
        step = CanaryStep(policy.share, now)
        canary = Canary(
            new_id("cn"), task.name, name, task.champion, policy, (step,),
            baseline=before, forced=forced, started_at=now,
        )  # fmt: skip
        return await rooms.canaries.begin(
            canary,
            expected_generation=task.generation if expected_generation is None else expected_generation,
            event=Event("canary.begun", name, actor, {**details, **found}, now),
            hand=hand,
            epoch_of_round=epoch_of_round,
        )


async def end_canary(
    canary: Canary,
    rooms: SwapRooms,
    *,
    reason: str,
    actor: str,
    state: CanaryState = CanaryState.ROLLED_BACK,
    hand: Hand | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
) -> Task:
    """End a canary without making it champion, and unload it once nobody uses it any more.

    Raises: Conflict where it ended, or somebody else moved it on.
    """
    kind = "canary.rolled_back" if state is CanaryState.ROLLED_BACK else "canary.ended"
    details = {"reason": reason, "champion": canary.champion, "comment": hand.comment if hand else ""}
    now = time.time()
    event = Event(kind, canary.adapter, actor, details, now)
    task = await rooms.canaries.end(canary, state, reason, canary.report, event=event, hand=hand, ended_at=now)
    _log.warning("canary_ended", task=canary.task, adapter=canary.adapter, reason=reason, actor=actor)
    await retire(canary.adapter, task, rooms, actor=actor, timeout_s=drain_timeout_s)
    return task


class CanaryKeeper:
    """Looks at the canaries that run, and does with each what the rule says. It remembers only how long a look took."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, drain_timeout_s: float = DRAIN_TIMEOUT_S
    ) -> None:
        self._clock = clock
        self._drain_timeout_s = drain_timeout_s
        self._due_at: dict[str, float] = {}

    async def look(self, rooms: SwapRooms) -> int:
        """Look at each that is due; return how many were moved.

        One that cannot be moved now (its engine is away, somebody else was quicker) waits for the next look.

        Raises: StoreUnavailable.
        """
        running = await rooms.canaries.running()
        self._due_at = {one.id: self._due_at.get(one.id, -1.0) for one in running}
        moved = 0
        for canary in running:
            began = self._clock()
            if began < self._due_at[canary.id]:
                continue
            try:
                moved += await self._look_at(canary, rooms)
            except StoreUnavailable:
                raise
            except Conflict as error:
                _log.info("canary_moved_elsewhere", task=canary.task, adapter=canary.adapter, error=str(error))
            except MulliganError as error:
                _log.warning("canary_not_moved", task=canary.task, adapter=canary.adapter, error=str(error))
            self._due_at[canary.id] = self._clock() + REST * (self._clock() - began)
        return moved

    async def _look_at(self, canary: Canary, rooms: SwapRooms) -> bool:
        why = "the champion was moved by something that knows of no canaries"
        if await rooms.canaries.abandon(canary, why, ended_at=time.time()):
            _log.warning("canary_abandoned", task=canary.task, adapter=canary.adapter)
            return True
        if (broken := await _find_breakage(canary, rooms)) is not None:
            await end_canary(canary, rooms, reason=broken, actor=WORKER, drain_timeout_s=self._drain_timeout_s)
            return True
        if gone := await _find_revoked(canary, rooms):
            why = f"a verifier that rewarded it was revoked since: {gone}"
            how = {"state": CanaryState.SUPERSEDED, "drain_timeout_s": self._drain_timeout_s}
            await end_canary(canary, rooms, reason=why, actor=WORKER, **how)
            return True
        now = time.time()
        decision = decide(canary, await rooms.figures.read_cells(canary, slow_bound_ms(canary)), now)
        return await self._carry_out(decision, replace(canary, report=decision.report), rooms, now)

    async def _carry_out(self, decision: Decision, canary: Canary, rooms: SwapRooms, now: float) -> bool:
        if decision.move is Move.STAY:
            await rooms.canaries.note(canary, decision.report)
        elif decision.move is Move.ROLL_BACK:
            reason = decision.reason
            await end_canary(canary, rooms, reason=reason, actor=WORKER, drain_timeout_s=self._drain_timeout_s)
        elif decision.move is Move.WIDEN:
            step = CanaryStep(canary.policy.widen[len(canary.steps) - 1], now)
            details = {"share": step.share, "from": canary.steps[-1].share, "reason": decision.reason}
            event = Event("canary.widened", canary.adapter, WORKER, details, now)
            await rooms.canaries.widen(canary, step, decision.report, event=event)
            _log.info("canary_widened", task=canary.task, adapter=canary.adapter, share=step.share)
        else:
            await rooms.canaries.note(canary, decision.report)
            await promote(
                canary.adapter,
                rooms,
                actor=WORKER,
                reason=decision.reason,
                expected_generation=canary.generation,
                drain_timeout_s=self._drain_timeout_s,
            )
            _log.info("canary_promoted", task=canary.task, adapter=canary.adapter, reason=decision.reason)
        return decision.move is not Move.STAY


async def _find_revoked(canary: Canary, rooms: SwapRooms) -> str:
    """Name the revoked verifiers that a canary learnt from and its champion did not; "" for one that was forced."""
    if canary.forced:
        return ""
    adapter, champion = await rooms.adapters.get(canary.adapter), await rooms.adapters.get(canary.champion)
    known = champion.flags if champion else ()
    gone = [one for one in (adapter.flags if adapter else ()) if one not in known]
    return ", ".join(one.removeprefix(TRAINED_ON_REVOKED) for one in gone if one.startswith(TRAINED_ON_REVOKED))


async def _find_breakage(canary: Canary, rooms: SwapRooms) -> str | None:
    """Say why the engines cannot have a canary any more; None where they have it, or may get it again.

    Raises: the engine's errors.
    """
    if canary.adapter in (await rooms.engine.state()).adapters:
        return None
    adapter = await rooms.adapters.get(canary.adapter)
    try:
        if adapter is None:
            raise AdapterRefused("it is not in the database")
        await load(rooms.engine, adapter)
    except AdapterRefused as error:
        return f"it cannot be loaded any more: {error}"
    return None
