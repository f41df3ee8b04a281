"""What people decide about adapters: promote, reject, roll back. Called by the API and the command line.

Whoever may is the caller's to see. Here it is made sure that what the gate (or a canary) did not pass is marked as
forced, that a decision has a name and a reason on it, and that one rolls back only to what was champion before.
"""

from dataclasses import dataclass

from server.adapters.canary import begin_canary, end_canary
from server.adapters.hot_swap import promote, rollback
from server.adapters.rooms import SwapRooms
from server.domain import BASE_ADAPTER, Adapter, AdapterStatus, CanaryPolicy, Round, RoundState, Task
from server.errors import Conflict, InvalidRequest
from server.store.moves import Hand
from server.store.withdrawals import TRAINED_ON_REVOKED

BASE_WORD = "base"
"""What people call the base model where an adapter is asked for; no adapter's name is without an @."""


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback would change. `champion_after` is `champion_before` where only a canary ends.

    `canary` is the adapter on trial that would end ("" = there is none); `choices` are the former champions that one
    may roll back to, the newest first; the base model always is one.
    """

    task: str
    champion_before: str
    champion_after: str
    canary: str
    generation: int
    choices: tuple[str, ...]
    says: str


def passed_gate(adapter: Adapter, made_by: Round | None) -> bool:
    """Say whether the gate passed an adapter, and nothing was found out about it since."""
    tainted = any(flag.startswith(TRAINED_ON_REVOKED) for flag in adapter.flags)
    return made_by is not None and made_by.report.get("decision") == RoundState.PROMOTED.value and not tainted


async def needs_force(name: str, rooms: SwapRooms) -> bool:
    """Say whether promoting an adapter goes against the gate, or without it; who was forced once stays so.

    Raises: NotFound.
    """
    adapter = await rooms.find_adapter(name)
    made_by = await rooms.rounds.get(adapter.round_id) if adapter.round_id else None
    return adapter.forced or not passed_gate(adapter, made_by)


async def promote_by_hand(
    name: str, comment: str, rooms: SwapRooms, *, actor: str, force: bool = False, canary: bool | None = None
) -> Task:
    """Promote an adapter by a person's decision. With `force` also what the gate did not pass, marked as forced.

    It becomes a canary where its task's policy has one, else champion at once; `canary` says otherwise. The canary that
    runs becomes champion.

    Raises: InvalidRequest without a comment, NotFound, Conflict, AdapterRefused, the engine's errors.
    """
    adapter = await rooms.find_adapter(name)
    hand = Hand(actor, _check_comment(comment), forced=await needs_force(name, rooms))
    if hand.forced and not force:
        raise Conflict(f"The gate did not pass {name!r}: `force` promotes it all the same, marked as forced for good.")
    task = await rooms.find_task(adapter.task)
    policy = task.training.canary
    as_canary = policy is not None if canary is None else canary
    if as_canary and task.canary != name:
        return await begin_canary(name, policy or CanaryPolicy(), rooms, actor=actor, hand=hand)
    return await promote(name, rooms, actor=actor, hand=hand)


async def reject_by_hand(name: str, comment: str, rooms: SwapRooms, *, actor: str) -> Adapter:
    """Reject a candidate or end a canary by a person's decision: no round goes on from it.

    Raises: InvalidRequest without a comment, NotFound, Conflict for what is neither.
    """
    adapter, hand = await rooms.find_adapter(name), Hand(actor, _check_comment(comment))
    canary = await rooms.canaries.find_running(adapter.task)
    if canary is not None and canary.adapter == name:
        await end_canary(canary, rooms, reason=f"rejected by {actor}: {hand.comment}", actor=actor, hand=hand)
    else:
        await rooms.canaries.reject(name, hand)
    return await rooms.find_adapter(name)


async def plan_rollback(task_name: str, to: str | None, rooms: SwapRooms) -> RollbackPlan:
    """Say what a rollback would change. `to` is a former champion, `base`, or None.

    Without it a canary that runs is ended and the champion stays; where none runs, the champion before comes back.

    Raises: NotFound, Conflict where there is nothing to change, or `to` never was champion.
    """
    task = await rooms.find_task(task_name)
    former = [one.name for one in await rooms.adapters.list(task_name) if one.status is AdapterStatus.RETIRED]
    after = await _choose_champion(task, to, former, rooms)
    if after == task.champion and not task.canary:
        raise Conflict(f"Task {task_name!r} is served by {_name(after)} already, and no canary runs.")
    parts = [] if after == task.champion else [f"champion {_name(task.champion)} -> {_name(after)}"]
    parts += [f"the canary {task.canary} ({100 * task.canary_share:g} %) ends"] if task.canary else []
    parts += [f"champion {_name(after)} stays"] if after == task.champion else []
    says = f"task {task_name}: {'; '.join(parts)}"
    return RollbackPlan(task_name, task.champion, after, task.canary, task.generation, tuple(former), says)


async def roll_back(plan: RollbackPlan, comment: str, rooms: SwapRooms, *, actor: str) -> Task:
    """Carry a plan out, if what serves is still what it was.

    Raises: Conflict where it moved meanwhile, AdapterRefused, the engine's errors.
    """
    task = await rooms.find_task(plan.task)
    if (task.champion, task.canary) != (plan.champion_before, plan.canary):
        raise Conflict(f"What serves the task {plan.task!r} moved meanwhile: look again.")
    if plan.champion_after != plan.champion_before:
        return await rollback(plan.task, rooms, actor=actor, to=plan.champion_after, comment=comment)
    canary = await rooms.canaries.find_running(plan.task)
    if canary is None:
        raise Conflict(f"The canary of task {plan.task!r} ended meanwhile: look again.")
    reason = f"rolled back by {actor}" + (f": {comment}" if comment else "")
    return await end_canary(canary, rooms, reason=reason, actor=actor, hand=Hand(actor, comment))


async def _choose_champion(task: Task, to: str | None, former: list[str], rooms: SwapRooms) -> str:
    if to is None:
        if task.canary:
            return task.champion
        if task.champion == BASE_ADAPTER:
            raise Conflict(f"Task {task.name!r} is served by the base model; there is nothing to roll back to.")
        return (await rooms.find_adapter(task.champion)).parent
    if to in (BASE_WORD, BASE_ADAPTER):
        return BASE_ADAPTER
    adapter = await rooms.find_adapter(to)
    if to == task.champion or to in former:
        return to
    if adapter.task != task.name:
        raise InvalidRequest(f"{to!r} is an adapter of task {adapter.task!r}.", param="to")
    there = ", ".join([*former, BASE_WORD])
    raise Conflict(f"{to!r} never was champion of task {task.name!r}: roll back to one of {there}, or promote it.")


def _check_comment(comment: str) -> str:
    if not comment.strip():
        raise InvalidRequest("A decision by hand needs a comment: say why.", param="comment")
    return comment.strip()


def _name(adapter: str) -> str:
    return adapter or "the base model"
