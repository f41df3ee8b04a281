"""Deletes what was logged of a user, of a key, of one episode, or from before a time; for good, and again if need be.

Called by `server.orchestration.deletion`, which sees to files too. First a tombstone is written, so that nothing comes
back from memory or a spool; then episodes go in batches, each one a transaction that also notes which rounds had
trained on them. So a deletion that was broken off is gone on with from its row, by whoever finds it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, cast, delete, exists, func, insert, or_, select, text, update
from sqlalchemy import Text as TextType
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import BacktestState, Event, RoundState, new_id
from server.errors import InvalidRequest, StoreUnavailable
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.episode_rows import hash_user
from server.store.episodes import TRAINING
from server.store.events import write_event
from server.store.feedback import REPLACED
from server.store.rows import Row, clean_values, fetch_one, fetch_row, fetch_rows, to_json
from server.store.tables import adapters, backtests, deletions, episodes, events, metadata, replays, rounds

DATABASE, FILES, DONE = "database", "files", "done"
"""The phases of a deletion."""

TRAINED_ON_DELETED = "trained_on_deleted:"
"""How an adapter's flag begins that may have learnt from deleted episodes; the deletion's id follows."""

GOES, BLANKED, STAYS = "goes", "blanked", "stays"
RULES: Mapping[str, str] = {
    "attempts": GOES,
    "reflections": GOES,
    "feedback": GOES,
    "rollouts": GOES,
    "panel_problems": BLANKED,  # its `content`: that there was such a problem, and how it went, is no text of anybody's
    "round_episodes": STAYS,  # that an id was trained on has to outlive its content
    "gate_pairs": STAYS,  # figures
}
"""What becomes of the rows, in each table with an `episode_id`, of an episode that is deleted. A test wants all."""

TRAINED_BY = frozenset({"round_episodes", "rollouts"})
"""Where it stands which rounds trained on an episode."""

BATCH = 200
_LOCK_TRIES = 5
_LOCK_WAIT = "SET LOCAL lock_timeout = '3s'"
# Conflicts with what an insert holds: none is under way once it is there, and itself, so that numbers come in order.
_LOCK = "LOCK TABLE episodes IN SHARE ROW EXCLUSIVE MODE"


@dataclass(frozen=True, slots=True)
class Doomed:
    """What is to be deleted: what is all of what is named. `before` is in Unix seconds; at least one is given."""

    user: str = ""
    key: str = ""
    episode: str = ""
    before: float = 0.0

    def check(self) -> None:
        """Refuse what names nothing, which would be everything. Raises: InvalidRequest."""
        if not (self.user or self.key or self.episode or self.before):
            raise InvalidRequest("Say what to delete: a user, a key, an episode, or what is from before a time.")


@dataclass(frozen=True, slots=True)
class Deletion:
    """One deletion: what it covers, by hashes and ids, how far it is, and what it found. "" narrows by nothing."""

    id: str
    user_hash: str
    key: str
    episode: str
    until_at: float
    number: int = 0
    actor: str = ""
    phase: str = DATABASE
    report: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    heartbeat_at: float = 0.0
    ended_at: float = 0.0

    @property
    def rounds(self) -> Sequence[str]:
        """The rounds that had seen what it covers, so far as it was found."""
        return self.report.get("rounds", ())


class DeletionStore:
    """The deletions of one database."""

    def __init__(self, database: Database, *, batch: int = BATCH) -> None:
        self._database = database
        self._batch = batch

    async def begin(self, doomed: Doomed, *, actor: str = "") -> Deletion:
        """Write the tombstone; from here on nothing that it covers gets into the log any more.

        The same again while that is not done goes on with it. Raises: InvalidRequest, StoreUnavailable.
        """
        doomed.check()
        until: Any = math.nextafter(doomed.before, 0) if doomed.before else UnixNow()
        named = {"user_hash": hash_user(doomed.user), "key": doomed.key, "episode": doomed.episode}
        values = {**clean_values(named), "id": new_id("del"), "until_at": until, "actor": actor, "phase": DATABASE}
        statement = insert(deletions).values(
            **values, report={}, created_at=UnixNow(), heartbeat_at=UnixNow(), ended_at=0.0
        )
        for again in reversed(range(_LOCK_TRIES)):
            try:
                async with self._database.write() as connection:
                    if self._database.dialect == "postgresql":
                        await connection.execute(text(_LOCK_WAIT))
                        await connection.execute(text(_LOCK))
                    row = await fetch_one(connection, statement.returning(deletions))
                    await write_event(connection, Event("episodes.deletion", row["id"], actor, _show(row)))
                    return _decode(row)
            except StoreUnavailable:
                if not again:
                    raise
                await asyncio.sleep(0.5)
        raise AssertionError  # the last try returns or raises

    async def get(self, deletion_id: str) -> Deletion | None:
        """Find a deletion by its id."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(deletions).where(deletions.c.id == deletion_id))
        return _decode(row) if row else None

    async def recent(self, *, limit: int = 50, stale_s: float | None = None) -> list[Deletion]:
        """List deletions, newest first; with `stale_s` those that are not done and that nobody is seen to work on."""
        statement = select(deletions).order_by(deletions.c.number.desc()).limit(limit)
        if stale_s is not None:
            statement = statement.where(deletions.c.phase != DONE, deletions.c.heartbeat_at < UnixNow() - stale_s)
        async with self._database.read() as connection:
            return [_decode(row) for row in await fetch_rows(connection, statement)]

    async def find_open(self, doomed: Doomed) -> list[Deletion]:
        """Find the deletions of the same that were broken off."""
        same = and_(
            deletions.c.phase != DONE,
            deletions.c.user_hash == hash_user(doomed.user),
            deletions.c.key == doomed.key,
            deletions.c.episode == doomed.episode,
        )
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(deletions).where(same).order_by(deletions.c.number))
        return [_decode(row) for row in rows]

    async def count(self, doomed: Doomed) -> dict[str, Any]:
        """Count what would go now, and name the rounds that trained on it: changes nothing but missing hashes."""
        doomed.check()
        await self.fill_hashes()
        until = math.nextafter(doomed.before, 0) if doomed.before else math.inf
        planned = Deletion("", hash_user(doomed.user), doomed.key, doomed.episode, until)
        ids = select(episodes.c.id).where(_covered(planned))
        counts: dict[str, Any] = {}
        async with self._database.read() as connection:
            counts["episodes"] = await _count(connection, select(func.count()).select_from(ids.subquery()))
            found: set[str] = set()
            for name, rule in RULES.items():
                table = metadata.tables[name]
                belong = table.c.episode_id.in_(ids)
                if rule != STAYS:
                    counts[name] = await _count(connection, select(func.count()).select_from(table).where(belong))
                if name in TRAINED_BY:
                    used = await fetch_rows(connection, select(table.c.round_id).where(belong).distinct())
                    found |= {row["round_id"] for row in used}
            counts["replays"] = await _count(
                connection, select(func.count()).select_from(replays).where(_replays_of(planned))
            )
        return {**counts, "rounds": sorted(found)}

    async def fill_hashes(self) -> int:
        """Fill in whom requests name, in rows that an earlier release wrote; returns how many there were."""
        done, after = 0, ""
        said = [episodes.c.request[name].as_string().label(name) for name in ("user", "safety_identifier")]
        while True:
            unknown = select(episodes.c.id, *said).where(episodes.c.user_hash.is_(None), episodes.c.id > after)
            async with self._database.write() as connection:
                rows = await fetch_rows(connection, unknown.order_by(episodes.c.id).limit(self._batch))
                for row in rows:
                    hashes = {
                        "user_hash": hash_user(row["user"]),
                        "safety_hash": hash_user(row["safety_identifier"]),
                    }
                    await connection.execute(update(episodes).where(episodes.c.id == row["id"]).values(**hashes))
            done += len(rows)
            if len(rows) < self._batch:
                return done
            after = rows[-1]["id"]

    async def sweep(self, deletion: Deletion) -> AsyncIterator[Deletion]:
        """Take everything that it covers out of the database, batch by batch; gives the deletion after each.

        Raises: StoreUnavailable; then what was committed stays, and the next sweep does the rest.
        """
        if deletion.user_hash:
            await self.fill_hashes()
        while True:
            async with self._database.write() as connection:
                await self._prepare(connection)
                chosen = await self._choose(connection, deletion)
                deletion = await self._delete(connection, deletion, chosen)
            yield deletion
            if len(chosen) < self._batch:
                break
        async with self._database.write() as connection:
            await self._prepare(connection)
            deletion = await self._delete_beside(connection, deletion)
        yield deletion

    async def _prepare(self, connection: AsyncConnection) -> None:
        """Let SQLite overwrite what is deleted; else it would stay readable in the file's free pages."""
        if self._database.dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA secure_delete = ON")

    async def _choose(self, connection: AsyncConnection, deletion: Deletion) -> Sequence[Row]:
        """Choose the next episodes. Each way of naming a user by itself: an index knows one of them.

        They are locked: whoever was just adding something to one has committed, and so it is found, or finds nothing.
        """
        columns = (episodes.c.id, episodes.c.task, episodes.c.split)
        chosen: dict[str, Row] = {}
        for condition in _ways(deletion):
            statement = select(*columns).where(condition).order_by(episodes.c.id).limit(self._batch - len(chosen))
            statement = statement.with_for_update()
            chosen |= {row["id"]: row for row in await fetch_rows(connection, statement)}
            if len(chosen) == self._batch:
                break
        return [*chosen.values()]

    async def _delete(self, connection: AsyncConnection, deletion: Deletion, chosen: Sequence[Row]) -> Deletion:
        ids = [row["id"] for row in chosen]
        counts: dict[str, int] = {}
        seen_by: set[str] = set()
        if ids:
            for name, rule in RULES.items():
                table = metadata.tables[name]
                belong = table.c.episode_id.in_(ids)
                if name in TRAINED_BY:
                    used = await fetch_rows(connection, select(table.c.round_id).where(belong).distinct())
                    seen_by |= {row["round_id"] for row in used}
                if rule == GOES:
                    counts[name] = (await connection.execute(delete(table).where(belong))).rowcount
                elif rule == BLANKED:
                    held = and_(belong, table.c.content.is_not(None))
                    blanking = update(table).where(held).values(content=None)
                    counts[name] = (await connection.execute(blanking)).rowcount
            told = and_(events.c.kind == REPLACED, events.c.subject.in_(ids))
            await connection.execute(update(events).where(told).values(details={"deleted": deletion.id}))
            await connection.execute(delete(episodes).where(episodes.c.id.in_(ids)))
        counts["episodes"] = len(ids)
        trained = {row["task"] for row in chosen if row["split"] == TRAINING}
        return await _note(connection, deletion, counts, rounds=seen_by, tasks=trained)

    async def _delete_beside(self, connection: AsyncConnection, deletion: Deletion) -> Deletion:
        """Delete the answers to repeat and the examples of backtests, and stop what still works with what is gone."""
        gone = (await connection.execute(delete(replays).where(_replays_of(deletion)))).rowcount
        blanked = await _blank_examples(connection)
        # A backtest that runs holds answers in memory: it begins again, and reads the log as it is now.
        await connection.execute(
            update(backtests)
            .where(backtests.c.state == BacktestState.RUNNING.value, backtests.c.owner != "")
            .values(owner="", leases=backtests.c.leases - 1, done=0, total=0)
        )
        running = and_(
            rounds.c.state == RoundState.RUNNING.value,
            or_(rounds.c.task.in_(deletion.report.get("tasks", [])), rounds.c.id.in_(deletion.report["rounds"])),
        )
        cancel = update(rounds).where(running).values(cancel_requested=True).returning(rounds.c.id)
        # Only once: a round that begins later reads the log as it is now.
        first = deletion.phase == DATABASE
        cancelled = {row["id"] for row in await fetch_rows(connection, cancel)} if first else set[str]()
        counts = {"replays": gone, "examples": blanked}
        return await _note(connection, deletion, counts, rounds=cancelled, cancelled=cancelled, phase=FILES)

    async def list_running(self, deletion: Deletion) -> list[str]:
        """List the rounds among those that it names which have not ended yet."""
        open_ = rounds.c.state.in_((RoundState.RUNNING.value, RoundState.QUEUED.value))
        mine = rounds.c.id.in_(deletion.report.get("rounds", []))
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(rounds.c.id).where(open_, mine).order_by(rounds.c.id))
        return [row["id"] for row in rows]

    async def finish(self, deletion: Deletion, *, flagged: Sequence[str], left: Sequence[str] = ()) -> Deletion:
        """Forget what rounds sampled meanwhile, flag adapters, and end it; `left` says what keeps it from its end."""
        flag = TRAINED_ON_DELETED + deletion.id
        rollouts = metadata.tables["rollouts"]
        lost = and_(
            rollouts.c.round_id.in_(deletion.report.get("rounds", [])),
            ~exists().where(episodes.c.id == rollouts.c.episode_id),
        )
        async with self._database.write() as connection:
            await self._prepare(connection)
            more = (await connection.execute(delete(rollouts).where(lost))).rowcount
            named = select(adapters.c.name, adapters.c.flags).where(adapters.c.name.in_(flagged))
            for row in await fetch_rows(connection, named.order_by(adapters.c.name)):
                if flag not in row["flags"]:
                    values = {"flags": [*row["flags"], flag]}
                    await connection.execute(update(adapters).where(adapters.c.name == row["name"]).values(**values))
            phase = FILES if left else DONE
            return await _note(connection, deletion, {"rollouts": more}, adapters=set(flagged), left=left, phase=phase)


def _ways(deletion: Deletion) -> list[ColumnElement[bool]]:
    """Say what it covers, once for each index that finds it."""
    narrow = [episodes.c.created_at <= deletion.until_at] if deletion.until_at != math.inf else []
    for column, value in ((episodes.c.key, deletion.key), (episodes.c.id, deletion.episode)):
        if value:
            narrow.append(column == value)
    if not deletion.user_hash:
        return [and_(*narrow)]
    hashes = (episodes.c.user_hash, episodes.c.safety_hash)
    return [and_(column == deletion.user_hash, column != "", *narrow) for column in hashes]


def _covered(deletion: Deletion) -> ColumnElement[bool]:
    return or_(*_ways(deletion))


def _replays_of(deletion: Deletion) -> ColumnElement[bool]:
    """Say which answers to repeat it covers. Those that name nobody because they are of an earlier release go too."""
    parts = [replays.c.claimed_at <= deletion.until_at] if deletion.until_at != math.inf else []
    if deletion.key:
        parts.append(replays.c.key == deletion.key)
    if deletion.episode:
        parts.append(cast(replays.c.headers, TextType).contains(deletion.episode, autoescape=True))
    if deletion.user_hash:
        hashes = (replays.c.user_hash, replays.c.safety_hash)
        parts.append(or_(replays.c.user_hash.is_(None), *(column == deletion.user_hash for column in hashes)))
    return and_(*parts)


async def _blank_examples(connection: AsyncConnection) -> int:
    """Take the reasons out of backtests' examples whose episode is not in the log any more; returns how many."""
    blanked = 0
    reports = select(backtests.c.id, backtests.c.report).where(cast(backtests.c.report, TextType).contains('"newest"'))
    for row in await fetch_rows(connection, reports):
        parts = [row["report"].get(name) for name in ("flips", "flakes")]
        examples = [one for part in parts if isinstance(part, dict) for one in part.get("newest", ())]
        ids = sorted({one["episode_id"] for one in examples if _has_reason(one)})
        there = select(episodes.c.id).where(episodes.c.id.in_(ids))
        living = {one["id"] for one in await fetch_rows(connection, there)} if ids else set()
        gone = [one for one in examples if one["episode_id"] not in living and _has_reason(one)]
        for one in gone:
            for verdict in _verdicts_of(one):
                verdict["reason"] = ""
        if gone:
            statement = update(backtests).where(backtests.c.id == row["id"]).values(report=to_json(row["report"]))
            await connection.execute(statement)
        blanked += len(gone)
    return blanked


def _verdicts_of(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [example.get("old"), example.get("new"), *example.get("verdicts", ())]
    return [one for one in found if isinstance(one, dict)]


def _has_reason(example: Mapping[str, Any]) -> bool:
    return any(one.get("reason") for one in _verdicts_of(example))


async def _note(
    connection: AsyncConnection, deletion: Deletion, counts: Mapping[str, int], *, phase: str = "", **found: Any
) -> Deletion:
    """Add to the row's report, in the transaction that did it: sums grow, and sets."""
    mine = deletions.c.id == deletion.id
    row = await fetch_one(connection, select(deletions.c.report).where(mine).with_for_update())
    report = {"rounds": [], "tasks": [], **row["report"]}
    for name, count in counts.items():
        report[name] = report.get(name, 0) + count
    for name, more in found.items():
        report[name] = sorted({*report.get(name, ()), *more}) if isinstance(more, set) else list(more)
    values: dict[str, Any] = {"report": report, "heartbeat_at": UnixNow()}
    if phase:
        values["phase"] = phase
    if phase == DONE:
        values["ended_at"] = UnixNow()
    changed = update(deletions).where(mine).values(**values).returning(deletions)
    done = _decode(await fetch_one(connection, changed))
    if phase == DONE:
        await write_event(connection, Event("episodes.deleted", done.id, done.actor, {"report": report}))
    return done


async def _count(connection: AsyncConnection, statement: Select) -> int:
    return (await connection.execute(statement)).scalar_one()


def _show(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("user_hash", "key", "episode", "until_at")}


def _decode(row: Mapping[str, Any]) -> Deletion:
    return replace(Deletion(**row), report=dict(row["report"]))
