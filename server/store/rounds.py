"""Keeps the rounds: the truth about what trains, while the queue only rings the doorbell.

Called by the API (create, cancel), the jobs (lease, reap) and the trainer (heartbeat, steps, finish). Every transition
is one UPDATE that names the state it leaves, so that of any number of processes exactly one makes it. A trainer's
writes carry the epoch of its lease; once a round was taken from it, each of them raises Fenced. Times are the
database's clock.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import AdapterStatus, CanaryState, Round, RoundState, Step, new_id
from server.errors import Conflict, NotFound
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.fencing import fence, raise_fenced
from server.store.round_queue import find_pool, give_places, lock_pool, queue_of
from server.store.rows import Row, clean_values, fetch_one, fetch_row, fetch_rows, to_json
from server.store.tables import adapters, canaries, rounds, steps

CHANGEABLE = frozenset({"phase", "reason", "adapter", "parent", "report", "steps_done", "steps_total"})
OPEN = (RoundState.QUEUED.value, RoundState.RUNNING.value)
DECIDED = (RoundState.PROMOTED.value, RoundState.INCONCLUSIVE.value, RoundState.REGRESSED.value)


class RoundStore:
    """The rounds of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def create(self, task: str, options: Mapping[str, Any]) -> Round:
        """Queue a round in its task's pool. Raises: Conflict while one of that task is queued or running."""
        number = select(func.coalesce(func.max(rounds.c.number), 0) + 1).where(rounds.c.task == task)
        values = {**_BLANK, "id": new_id("rd"), "task": task, "state": RoundState.QUEUED.value}
        statement = insert(rounds).values(
            **values, number=number.scalar_subquery(), options=to_json(options), created_at=UnixNow()
        )
        try:
            async with self._database.write() as connection:
                statement = statement.values(pool=await find_pool(connection, task))
                made = _decode(await fetch_one(connection, statement.returning(rounds)))
                return (await give_places(connection, [made]))[0]
        except IntegrityError as error:
            open_one = await self._find_last(task, rounds.c.state.in_(OPEN))
            remedy = f": wait for {open_one.id}, or cancel it" if open_one else ": ask again"  # it ended just now
            raise Conflict(f"A round of {task!r} is queued or running already{remedy}") from error

    async def get(self, round_id: str) -> Round | None:
        """Find a round by its id."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(rounds).where(rounds.c.id == round_id))
            return (await give_places(connection, [_decode(row)]))[0] if row else None

    async def queued(self, pool: str | None = None) -> list[Round]:
        """List the rounds that wait for a worker, those that are next first: their doorbell may have been lost."""
        async with self._database.read() as connection:
            found = [_decode(row) for row in await fetch_rows(connection, queue_of(pool))]
            return await give_places(connection, found)

    async def is_idle(self, pool: str) -> bool:
        """Say whether no round of a pool is queued or runs."""
        statement = select(rounds.c.id).where(rounds.c.pool == pool, rounds.c.state.in_(OPEN)).limit(1)
        async with self._database.read() as connection:
            return await fetch_row(connection, statement) is None

    async def last_ended(self, task: str) -> Round | None:
        """Find the task's latest round that is over, however it ended."""
        return await self._find_last(task, rounds.c.state.not_in(OPEN))

    async def last_decided(self, task: str) -> Round | None:
        """Find the task's latest round that came to a decision: promoted, inconclusive or regressed."""
        return await self._find_last(task, rounds.c.state.in_(DECIDED))

    async def _find_last(self, task: str, condition: ColumnElement[bool]) -> Round | None:
        statement = select(rounds).where(rounds.c.task == task, condition).order_by(rounds.c.number.desc()).limit(1)
        async with self._database.read() as connection:
            row = await fetch_row(connection, statement)
        return _decode(row) if row else None

    async def lease(self, round_id: str, owner: str) -> Round | None:
        """Take a queued round: running, with the next epoch.

        None if it is not queued (any more), or another round of its pool runs.
        """
        async with self._database.write() as connection:
            row = await fetch_row(connection, select(rounds.c.pool).where(rounds.c.id == round_id))
            if row is None or not await lock_pool(connection, row["pool"]):
                return None
            return await _lease(connection, round_id, owner)

    async def lease_next(self, pool: str, owner: str) -> Round | None:
        """Take the round that is next in a pool; None where none waits, or one of the pool runs."""
        async with self._database.write() as connection:
            if not await lock_pool(connection, pool):
                return None
            row = await fetch_row(connection, queue_of(pool).limit(1))
            return await _lease(connection, row["id"], owner) if row else None

    async def heartbeat(self, round_id: str, epoch: int) -> Round:
        """Say that the trainer lives; tells it of a cancellation by the way. Raises: Fenced."""
        return await self.update(round_id, epoch)

    async def update(self, round_id: str, epoch: int, **changes: Any) -> Round:
        """Write down how far the round is (`phase`, `adapter`, `report`, `steps_total`, ...); a heartbeat too.

        Raises: Fenced; TypeError for a field that is not a trainer's to change.
        """
        return await self._write_fenced(round_id, epoch, {**_check(changes), "heartbeat_at": UnixNow()})

    async def add_step(self, round_id: str, epoch: int, step: Step) -> None:
        """Add a step's figures, once however often it is told; sets `steps_done`; a heartbeat too.

        Steps that an earlier lease left at this number or later ones are forgotten: that lease's work was lost.

        Raises: Fenced.
        """
        later = and_(steps.c.round_id == round_id, steps.c.number >= step.number, steps.c.epoch < epoch)
        new = self._insert(steps).values(
            round_id=round_id,
            number=step.number,
            epoch=epoch,
            metrics=to_json(step.metrics),
            created_at=step.created_at or UnixNow(),
        )
        done = case((rounds.c.steps_done < step.number, step.number), else_=rounds.c.steps_done)
        async with self._database.write() as connection:
            await fence(connection, (round_id, epoch))
            await connection.execute(delete(steps).where(later))
            await connection.execute(new.on_conflict_do_nothing())
            await connection.execute(update(rounds).where(rounds.c.id == round_id).values(steps_done=done))

    async def steps(self, round_id: str) -> list[Step]:
        """List a round's steps in order. A figure that was no number (JSON has no word for it) is NaN."""
        statement = select(steps).where(steps.c.round_id == round_id).order_by(steps.c.number)
        async with self._database.read() as connection:
            return [_decode_step(row) for row in await fetch_rows(connection, statement)]

    async def finish(self, round_id: str, epoch: int, state: RoundState, reason: str, **changes: Any) -> Round:
        """End the round, with any last changes. Raises: Fenced; ValueError for a state that is not an end."""
        if not RoundState(state).ended:
            raise ValueError(f"A round does not end {state}")
        ending = {"state": RoundState(state).value, "reason": reason, "ended_at": UnixNow(), "heartbeat_at": UnixNow()}
        return await self._write_fenced(round_id, epoch, {**_check(changes), **ending})

    async def request_cancel(self, round_id: str) -> Round:
        """Ask for an end: at once for a queued round, at its trainer's next heartbeat for a running one.

        Raises: NotFound; Conflict if it ended otherwise already.
        """
        queued = rounds.c.state == RoundState.QUEUED.value
        changes = {
            "cancel_requested": True,
            "state": case((queued, RoundState.CANCELLED.value), else_=rounds.c.state),
            "reason": case((queued, "cancelled before it started"), else_=rounds.c.reason),
            "ended_at": case((queued, UnixNow()), else_=rounds.c.ended_at),
        }
        row = await self._change(and_(rounds.c.id == round_id, rounds.c.state.in_(OPEN)), changes)
        if row is not None:
            return _decode(row)
        found = await self.get(round_id)
        if found is None:
            raise NotFound(f"There is no round {round_id!r}")
        if found.state is not RoundState.CANCELLED:
            raise Conflict(f"Round {round_id} has ended already: {found.state}")
        return found

    async def reap(self, *, lost_after_s: float, max_leases: int = 2) -> list[Round]:
        """Take the rounds from workers that fell silent for `lost_after_s`; returns those that it took.

        Such a round is queued again, or ends cancelled if that was asked for, or failed once `max_leases` workers had
        it; where its adapter came to serve before, that decides how it ends. Its epoch grows, so that a trainer that
        was only slow can write no more.
        """
        lost = and_(rounds.c.state == RoundState.RUNNING.value, rounds.c.heartbeat_at < UnixNow() - lost_after_s)
        cancelled, failed = rounds.c.cancel_requested, rounds.c.leases >= max_leases
        reason = literal("lost its worker ") + rounds.c.owner + ", lease " + cast(rounds.c.leases, String)
        decided, words = _find_decision()
        changes = {
            "epoch": rounds.c.epoch + 1,
            "state": case(
                *((known, state.value) for state, known in decided.items()),
                (cancelled, RoundState.CANCELLED.value),
                (failed, RoundState.FAILED.value),
                else_=RoundState.QUEUED.value,
            ),
            "reason": case(
                *((known, literal(words[state]) + reason) for state, known in decided.items()), else_=reason
            ),
            "ended_at": case((or_(*decided.values(), cancelled, failed), UnixNow()), else_=rounds.c.ended_at),
        }
        statement = update(rounds).where(lost).values(**changes).returning(rounds)
        async with self._database.write() as connection:
            return [_decode(row) for row in await fetch_rows(connection, statement)]

    async def _write_fenced(self, round_id: str, epoch: int, changes: Mapping[str, Any]) -> Round:
        holds = and_(rounds.c.id == round_id, rounds.c.epoch == epoch, rounds.c.state == RoundState.RUNNING.value)
        row = await self._change(holds, changes)
        if row is None:
            raise_fenced(round_id, epoch)
        return _decode(row)

    async def _change(self, condition: ColumnElement[bool], changes: Mapping[str, Any]) -> Row | None:
        statement = update(rounds).where(condition).values(**clean_values(changes)).returning(rounds)
        async with self._database.write() as connection:
            return await fetch_row(connection, statement)

    async def list(self, task: str | None = None, limit: int = 50) -> list[Round]:
        """List the latest rounds, of one task or of all, newest first."""
        statement = select(rounds).order_by(rounds.c.created_at.desc(), rounds.c.id.desc()).limit(limit)
        if task is not None:
            statement = statement.where(rounds.c.task == task)
        async with self._database.read() as connection:
            return await give_places(connection, [_decode(row) for row in await fetch_rows(connection, statement)])


def _find_decision() -> tuple[Mapping[RoundState, ColumnElement[bool]], Mapping[RoundState, str]]:
    """Say by which conditions a lost round's adapter has decided already how the round ends, and in what words."""
    stands = exists().where(adapters.c.name == rounds.c.adapter)
    tried = exists().where(canaries.c.adapter == rounds.c.adapter)
    served = (AdapterStatus.CHAMPION.value, AdapterStatus.RETIRED.value)
    decided = {
        RoundState.PROMOTED: stands.where(adapters.c.status.in_(served)),
        RoundState.INCONCLUSIVE: stands.where(adapters.c.status == AdapterStatus.CANARY.value),
        RoundState.REGRESSED: tried.where(canaries.c.state == CanaryState.ROLLED_BACK.value),
    }
    words = {
        RoundState.PROMOTED: "it was promoted before this: ",
        RoundState.INCONCLUSIVE: "its canary began, which decides, before this: ",
        RoundState.REGRESSED: "its canary was rolled back before this: ",
    }
    return decided, words


async def _lease(connection: AsyncConnection, round_id: str, owner: str) -> Round | None:
    changes = {
        "state": RoundState.RUNNING.value,
        "owner": owner,
        "epoch": rounds.c.epoch + 1,
        "leases": rounds.c.leases + 1,
        "heartbeat_at": UnixNow(),
        "started_at": case((rounds.c.started_at == 0, UnixNow()), else_=rounds.c.started_at),
        "phase": "",
        "steps_done": 0,
    }
    condition = and_(rounds.c.id == round_id, rounds.c.state == RoundState.QUEUED.value)
    row = await fetch_row(connection, update(rounds).where(condition).values(**changes).returning(rounds))
    return _decode(row) if row else None


_BLANK: dict[str, Any] = {
    "phase": "",
    "reason": "",
    "adapter": "",
    "parent": "",
    "epoch": 0,
    "leases": 0,
    "owner": "",
    "heartbeat_at": 0.0,
    "cancel_requested": False,
    "report": {},
    "steps_done": 0,
    "steps_total": 0,
    "started_at": 0.0,
    "ended_at": 0.0,
}


def _check(changes: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(changes) - CHANGEABLE:
        raise TypeError(f"Not a trainer's to change: {', '.join(sorted(unknown))}")
    return {name: to_json(value) if name == "report" else value for name, value in changes.items()}


def _decode(row: Row) -> Round:
    known = {name: value for name, value in row.items() if name != "leases"}
    known["state"] = RoundState(row["state"])
    return Round(**known)


def _decode_step(row: Row) -> Step:
    metrics = {name: float("nan") if value is None else value for name, value in row["metrics"].items()}
    return Step(row["round_id"], row["number"], metrics, row["created_at"])
