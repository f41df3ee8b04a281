"""Keeps what all processes together have used of each limited key, and gives out what is left.

Called by `server.api.limits`. A key has one row, and whoever takes of it holds that row's lock: so no limit is ever
passed by two who looked at the same time. Time is the database's clock alone. A minute is any 60 seconds: what is
counted in one second counts until 60 whole seconds have gone by, so it is counted for 60 to 61.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import KeyLimits
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import key_usage

MINUTE_S = 60
SLOT_LEASE_S = 5.0
"""After so long without a word of a process its slots are free: it died."""

Counts = dict[int, int]
"""How many in which second (Unix time), of the last minute."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process says of a key and what it wants of it.

    `slots_used` are in use in this process; it wants to hold `slots_wanted` in all, those included. `unspent` are
    requests that it was given and did not spend, by the second that they were given for. `tokens` were used since the
    last claim.
    """

    key: str
    limits: KeyLimits
    requests: int = 0
    slots_used: int = 0
    slots_wanted: int = 0
    unspent: Mapping[int, int] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a claim was given, and how the key stands now, all processes together.

    `requests` may be spent within the next `second_left_s` only; `second` names them when they are given back unspent.
    `*_free_in_s`: how long until there is room again (0: there is some). `*_clear_in_s`: until nothing counts any more.
    """

    requests: int
    slots: int
    second: int
    second_left_s: float
    requests_used: int
    requests_free_in_s: float
    requests_clear_in_s: float
    tokens_used: int
    tokens_free_in_s: float
    tokens_clear_in_s: float
    budget_spent: int
    budget_free_in_s: float | None  # None: never


@dataclass(slots=True)
class Usage:
    """The row of one key."""

    requests: Counts = field(default_factory=dict)
    tokens: Counts = field(default_factory=dict)
    slots: dict[str, tuple[int, float]] = field(default_factory=dict)  # process -> how many it holds, seen when
    period: str = ""
    spent: int = 0


class KeyLimitStore:
    """The use of the keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def settle(self, process: str, claims: Sequence[Claim]) -> list[Ledger]:
        """Write what the claims say and give them what there is; one claim a key, all in one transaction.

        Raises: StoreUnavailable.
        """
        keys = sorted(claim.key for claim in claims)  # locked in the same order by everybody
        async with self._database.write() as connection:
            rows = await self._lock(connection, keys)
            ledgers, changed = [], []
            for claim in claims:
                usage, now = rows[claim.key]
                ledgers.append(settle(usage, claim, process, now))
                changed.append({"of": claim.key, **_encode(usage)})
            await connection.execute(update(key_usage).where(key_usage.c.key == bindparam("of")), changed)
        return ledgers

    async def look(self, claims: Sequence[Claim]) -> list[Ledger]:
        """See how keys stand, for claims that say and want nothing. Nothing is locked or written.

        Raises: StoreUnavailable.
        """
        statement = _select([claim.key for claim in claims])
        async with self._database.read() as connection:
            rows = {row["key"]: row for row in await fetch_rows(connection, statement)}
            (clock,) = await fetch_rows(connection, select(UnixNow().label("now")))
        found = {key: (_decode(row), row["now"]) for key, row in rows.items()}
        return [settle(*_split(claim, found, clock["now"])) for claim in claims]

    async def spent(self) -> dict[str, int]:
        """Read how many tokens of its budget each key has spent in its present period. Raises: StoreUnavailable."""
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(key_usage, UnixNow().label("now")))
        return {row["key"]: row["spent"] for row in rows if row["period"] in _periods(row["now"])}

    async def _lock(self, connection: AsyncConnection, keys: Sequence[str]) -> dict[str, tuple[Usage, float]]:
        statement = _select(keys).with_for_update()
        rows = await fetch_rows(connection, statement)
        if len(rows) < len(keys):
            blank = {"requests": [], "tokens": [], "slots": {}, "period": "", "spent": 0}
            missing = sorted(set(keys) - {row["key"] for row in rows})
            await connection.execute(
                self._insert(key_usage).on_conflict_do_nothing(), [{"key": key, **blank} for key in missing]
            )
            rows = await fetch_rows(connection, statement)
        return {row["key"]: (_decode(row), row["now"]) for row in rows}


def settle(usage: Usage, claim: Claim, process: str, now: float) -> Ledger:
    """Bring a key's use up to date with a claim, and say what the claim gets. Changes `usage`; no I/O."""
    second = int(now)
    _count_unspent(usage, claim)
    usage.requests, usage.tokens = _recent(usage.requests, second), _recent(usage.tokens, second)
    if claim.tokens:
        usage.tokens[second] = usage.tokens.get(second, 0) + claim.tokens
    limits, period = claim.limits, name_period(claim.limits.budget_period, now)
    if usage.period != period:
        usage.period, usage.spent = period, 0
    usage.spent += claim.tokens
    used, tokens = sum(usage.requests.values()), sum(usage.tokens.values())
    slots = _give_slots(usage, claim, process, now)
    requests = claim.requests
    if limits.requests_per_minute is not None:
        requests = max(0, min(requests, limits.requests_per_minute - used))
    if requests:
        usage.requests[second] = usage.requests.get(second, 0) + requests
    return Ledger(
        requests=requests,
        slots=slots,
        second=second,
        second_left_s=second + 1 - now,
        requests_used=used + requests,
        requests_free_in_s=_free_in_s(usage.requests, limits.requests_per_minute, now),
        requests_clear_in_s=_free_in_s(usage.requests, 1, now),
        tokens_used=tokens,
        tokens_free_in_s=_free_in_s(usage.tokens, limits.tokens_per_minute, now),
        tokens_clear_in_s=_free_in_s(usage.tokens, 1, now),
        budget_spent=usage.spent,
        budget_free_in_s=_budget_free_in_s(usage, limits, now),
    )


def name_period(budget_period: str, now: float) -> str:
    """Name the UTC day or month that a moment is in, for a budget's count; "" for a budget without end."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return {"day": at.strftime("%Y-%m-%d"), "month": at.strftime("%Y-%m")}.get(budget_period, "")


def _periods(now: float) -> set[str]:
    return {name_period(period, now) for period in ("total", "day", "month")}


def _count_unspent(usage: Usage, claim: Claim) -> None:
    for second, count in claim.unspent.items():
        if second in usage.requests:
            usage.requests[second] = max(0, usage.requests[second] - count)


def _recent(counts: Counts, second: int) -> Counts:
    return {at: count for at, count in counts.items() if at >= second - MINUTE_S and count}


def _give_slots(usage: Usage, claim: Claim, process: str, now: float) -> int:
    """Let the process hold as many slots as it wants and the others leave; those in use are always its own."""
    usage.slots = {
        name: held for name, held in usage.slots.items() if name != process and held[1] >= now - SLOT_LEASE_S
    }
    held = claim.slots_wanted
    if claim.limits.max_concurrent is not None:
        left = claim.limits.max_concurrent - sum(count for count, _ in usage.slots.values())
        held = max(claim.slots_used, min(claim.slots_wanted, left))
    if held:
        usage.slots[process] = (held, now)
    return held


def _free_in_s(counts: Counts, limit: int | None, now: float) -> float:
    """Say how long until fewer than `limit` count."""
    left = sum(counts.values())
    if limit is None or left < limit:
        return 0.0
    for second in sorted(counts):
        left -= counts[second]
        if left < limit:
            return max(0.0, second + MINUTE_S + 1 - now)
    return 0.0


def _budget_free_in_s(usage: Usage, limits: KeyLimits, now: float) -> float | None:
    if limits.token_budget is None or usage.spent < limits.token_budget:
        return 0.0
    if limits.budget_period not in ("day", "month"):
        return None
    at = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ends = at + datetime.timedelta(days=1)
    if limits.budget_period == "month":
        ends = (at.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return ends.timestamp() - now


def _select(keys: Sequence[str]) -> Select:
    return select(key_usage, UnixNow().label("now")).where(key_usage.c.key.in_(keys)).order_by(key_usage.c.key)


def _split(claim: Claim, found: Mapping[str, tuple[Usage, float]], now: float) -> tuple[Usage, Claim, str, float]:
    usage, at = found.get(claim.key, (Usage(), now))
    return usage, claim, "", at


def _decode(row: Mapping[str, Any]) -> Usage:
    return Usage(
        requests=dict(row["requests"]),
        tokens=dict(row["tokens"]),
        slots={process: (held, seen_at) for process, (held, seen_at) in row["slots"].items()},
        period=row["period"],
        spent=row["spent"],
    )


def _encode(usage: Usage) -> dict[str, Any]:
    return {
        "requests": [[second, count] for second, count in usage.requests.items()],
        "tokens": [[second, count] for second, count in usage.tokens.items()],
        "slots": {process: [held, seen_at] for process, (held, seen_at) in usage.slots.items()},
        "period": usage.period,
        "spent": usage.spent,
    }
