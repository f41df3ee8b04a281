"""Reads what an audit looks at, a bounded part of the log, and writes down what it suspects.

Called through `server.orchestration.audit`. Answers are digested page by page, so that a window of long ones is never
in memory as a whole.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, Subquery, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Binding, BindingMode, Event, Feedback, JudgedAttempt, LoggedVerdict, Promotion
from server.store.database import Database
from server.store.events import write_event
from server.store.feedback import fetch_feedback
from server.store.newest import newest_first
from server.store.rows import Row, fetch_row, fetch_rows
from server.store.tables import adapters, attempts, episodes, events, feedback, rounds, tasks

SUSPECTED = "reward_hacking_suspected"
PROMOTED = "adapter.promoted"  # as `server.adapters.hot_swap` writes it

PAGE = 100  # episodes that are read together
AT_ONCE = 500  # episodes whose attempts are counted together
EPISODES_PER_ATTEMPT = 2  # of the window: where little is verified, it ends there
AROUND = 2000  # episodes on either side of a promotion
NEWEST_FEEDBACK = 20_000  # of all tasks, among which a task's own are sought
FEEDBACK_WINDOW = 2000  # episodes
LATELY = 200  # events among which an earlier one of the same kind is sought

Told = tuple[Sequence[LoggedVerdict], Sequence[Feedback]]
"""The verdicts on the answer of an episode, and the feedback on it."""

_JUDGED = ("passed", "failed")
_deterministic = msgspec.json.Encoder(order="deterministic", enc_hook=dict)


class AuditStore:
    """The log of one database, as audits see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_newest(self, task: str) -> str:
        """Find the id of a task's newest episode; "" where there is none."""
        newest = newest_first(select(episodes.c.id), episodes.c.task, task).limit(1)
        async with self._database.read() as connection:
            row = await fetch_row(connection, newest)
        return row["id"] if row else ""

    async def read_window(self, task: str, limit: int) -> list[JudgedAttempt]:
        """Read the newest judged attempts of a task, newest first: `limit` at most."""
        found: list[JudgedAttempt] = []
        before, seen = None, 0
        while len(found) < limit and seen < EPISODES_PER_ATTEMPT * limit:
            page = _page(task, before)
            async with self._database.read() as connection:
                rows = await fetch_rows(connection, page)
                tries = await _fetch_judged(connection, [row["id"] for row in rows])
            questions = {row["id"]: _name_question(row) for row in rows}
            found += [_digest(row, questions[row["episode_id"]]) for row in tries]
            seen += len(rows)
            if len(rows) < PAGE:
                break
            before = rows[-1]["id"]
        return found[:limit]

    async def read_promotion(self, task: str, champion: str) -> Promotion | None:
        """Read what was served before and after the champion was promoted; None for one that never was.

        After it only what the champion answered; before it only what others did.
        """
        promoted = (
            select(events.c.created_at)
            .where(events.c.subject == champion, events.c.kind == PROMOTED)
            .order_by(events.c.id.desc())
            .limit(1)
        )
        gate = (
            select(rounds.c.report)
            .join(adapters, adapters.c.round_id == rounds.c.id)
            .where(adapters.c.name == champion)
        )
        async with self._database.read() as connection:
            row = await fetch_row(connection, promoted)
            if row is None:
                return None
            at = row["created_at"]
            report = await fetch_row(connection, gate)
            border = f"ep_{int(at * 1000):012x}"  # ids begin with the millisecond that they were made in
            columns = select(episodes.c.id, episodes.c.adapter).limit(AROUND)
            newest = newest_first(columns, episodes.c.task, task)
            oldest = newest_first(columns, episodes.c.task, task, oldest=True)
            earlier = newest.where(episodes.c.id < border).subquery("near")
            later = oldest.where(episodes.c.id >= border).subquery("near")
            before = await _fetch_solved(connection, earlier, earlier.c.adapter != champion)
            after = await _fetch_solved(connection, later, later.c.adapter == champion)
        expected, error = _read_gain(report["report"] if report else {})
        return Promotion(
            champion,
            at,
            expected,
            error,
            before=len(before),
            before_solved=sum(before.values()),
            after=len(after),
            after_solved=sum(after.values()),
            examples=tuple(sorted((one for one, solved in after.items() if solved), reverse=True)[:5]),
        )

    async def read_feedback(self, task: str) -> list[Told]:
        """Read the newest feedback on a task: the verdicts on the last attempts that have some, and what it says."""
        newest = select(feedback.c.episode_id).order_by(feedback.c.episode_id.desc()).limit(NEWEST_FEEDBACK)
        ids = newest.subquery("newest")
        told = (
            select(episodes.c.id)
            .join(ids, episodes.c.id == ids.c.episode_id)
            .where(episodes.c.task == task)
            .distinct()
            .order_by(episodes.c.id.desc())
            .limit(FEEDBACK_WINDOW)
        )
        found: list[Told] = []
        async with self._database.read() as connection:
            names = [row["id"] for row in await fetch_rows(connection, told)]
            for start in range(0, len(names), PAGE):
                found += await _fetch_told(connection, names[start : start + PAGE])
        return found

    async def suspect(
        self, task: str, champion: str, signal: str, details: Mapping[str, Any], *, after_s: float
    ) -> bool:
        """Add an event, unless one of that signal under that champion is younger than `after_s`; say whether.

        The task's row is locked meanwhile, so that of two processes only one tells.
        """
        now = time.time()
        lately = (
            select(events.c.details, events.c.created_at)
            .where(events.c.subject == task, events.c.kind == SUSPECTED)
            .order_by(events.c.id.desc())
            .limit(LATELY)
        )
        async with self._database.write() as connection:
            await connection.execute(select(tasks.c.name).where(tasks.c.name == task).with_for_update())
            for row in await fetch_rows(connection, lately):
                same = (row["details"].get("signal"), row["details"].get("champion")) == (signal, champion)
                if same and row["created_at"] > now - after_s:
                    return False
            event = Event(SUSPECTED, task, "audit", {**details, "signal": signal, "champion": champion}, now)
            await write_event(connection, event)
        return True


def _page(task: str, before: str | None) -> Select:
    columns = (episodes.c.id, episodes.c.problem, episodes.c.bindings)
    statement = newest_first(select(*columns), episodes.c.task, task).limit(PAGE)
    return statement if before is None else statement.where(episodes.c.id < before)


async def _fetch_judged(connection: AsyncConnection, ids: Sequence[str]) -> list[Row]:
    columns = (attempts.c.episode_id, attempts.c.status, attempts.c.answer, attempts.c.verdicts)
    statement = (
        select(*columns)
        .where(attempts.c.episode_id.in_(ids), attempts.c.status.in_(_JUDGED))
        .order_by(attempts.c.episode_id.desc(), attempts.c.number.desc())
    )
    return await fetch_rows(connection, statement)


def _name_question(row: Row) -> str:
    """Tell apart what was asked: by the arguments of the verifiers that count, which hold references, if there are any.

    Two prompts with the same reference are one question: the same answer to both is no wonder.
    """
    if not row["problem"]:
        return ""  # `store: false`
    bindings = msgspec.convert(row["bindings"], tuple[Binding, ...])
    args = [one.args for one in bindings if one.mode == BindingMode.ENFORCE]
    return _hash(_deterministic.encode(args)) if any(args) else row["problem"]


def _digest(row: Row, question: str) -> JudgedAttempt:
    text = _read_text(row["answer"]) if question else ""
    verdicts = msgspec.convert(row["verdicts"], tuple[LoggedVerdict, ...])
    audits = {
        one.verifier: one.status == "passed"
        for one in verdicts
        if one.mode == BindingMode.AUDIT and one.status in _JUDGED
    }
    digest = _hash(text.encode("utf-8", "replace")) if question else ""
    return JudgedAttempt(row["episode_id"], row["status"] == "passed", question, digest, len(text), audits)


def _read_text(answer: Mapping[str, Any]) -> str:
    """Read what an answer says: its content and its calls, case and white space aside."""
    content = answer.get("content")
    parts = [content if isinstance(content, str) else "" if content is None else str(content)]
    for call in answer.get("tool_calls") or ():
        called = call.get("function") or {}
        parts.append(f"{called.get('name')} {called.get('arguments')}")
    return " ".join(" ".join(parts).casefold().split())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


async def _fetch_solved(connection: AsyncConnection, near: Subquery, wanted: ColumnElement[bool]) -> dict[str, bool]:
    """Say of each judged episode among some whether an attempt passed, the second at most.

    By their ids, some at a time: joined with the attempts they may make PostgreSQL read all of these.
    """
    ids = [row["id"] for row in await fetch_rows(connection, select(near.c.id).where(wanted).order_by(near.c.id))]
    passed = func.max(case((attempts.c.status == "passed", 1), else_=0)).label("solved")
    found: dict[str, bool] = {}
    for start in range(0, len(ids), AT_ONCE):
        some = attempts.c.episode_id.in_(ids[start : start + AT_ONCE])
        statement = (
            select(attempts.c.episode_id, passed)
            .where(some, attempts.c.number <= 2, attempts.c.status.in_(_JUDGED))
            .group_by(attempts.c.episode_id)
        )
        found |= {row["episode_id"]: bool(row["solved"]) for row in await fetch_rows(connection, statement)}
    return found


def _read_gain(report: Mapping[str, Any]) -> tuple[float, float]:
    """Read the gain that a gate measured and its standard error: of the second try, or of the first where that is more.

    A task that only observes never retries, so what it gains is the first try's.
    """
    low, high = report.get("ci95") or (0.0, 0.0)
    # Where a gate looks several times its interval is wider than that of one look; older reports have no error.
    second = (report.get("difference") or 0.0, report.get("error") or (high - low) / (2 * 1.96))
    return max(second, (report.get("first_difference") or 0.0, report.get("first_error") or 0.0))


async def _fetch_told(connection: AsyncConnection, ids: Sequence[str]) -> list[Told]:
    columns = (attempts.c.episode_id, attempts.c.verdicts)
    tried = select(*columns).where(attempts.c.episode_id.in_(ids)).order_by(*attempts.primary_key.columns)
    last = {row["episode_id"]: row["verdicts"] for row in await fetch_rows(connection, tried)}
    said: dict[str, list[Feedback]] = {}
    for one in await fetch_feedback(connection, ids):
        said.setdefault(one.episode_id, []).append(one)
    return [
        (msgspec.convert(last[name], tuple[LoggedVerdict, ...]), said.get(name, [])) for name in ids if name in last
    ]
