"""Keeps the answers of requests that may be repeated: claimed while they run, recorded at their end, for a time.

Called by `server.api.replay`. A claim holds across processes and dies with its process: it expires unless renewed, by
the database's own clock. It must never give one API key what belongs to another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from server.errors import StoreUnavailable
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_row
from server.store.tables import replays

_TRIES = 5
_SWEPT_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's hold on an idempotency key: of which API key, for what request (a SHA-256), and who holds it."""

    key: str
    name: str
    request_sha256: str
    owner: str
    users: tuple[str, str] = ("", "")  # the hashes of whom the request names, so that it can be deleted by them


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer as it was given; `headers` are those that are worth repeating."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Replay:
    """What an idempotency key stands for. `answer` is None while the request runs, since `age_s` seconds."""

    request_sha256: str
    age_s: float
    answer: RecordedAnswer | None


class ReplayStore:
    """The recorded answers of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def claim(self, claim: Claim, lease_s: float) -> Replay | None:
        """Take an idempotency key for `lease_s` seconds and return None; else return what it stands for already.

        Raises: StoreUnavailable.
        """
        fresh: dict[str, Any] = {
            "request_sha256": claim.request_sha256,
            "owner": claim.owner,
            "claimed_at": UnixNow(),
            "expires_at": UnixNow() + lease_s,
            "status": None,
            "headers": None,
            "body": None,
            "user_hash": claim.users[0],
            "safety_hash": claim.users[1],
        }
        taking = self._insert(replays).values(key=claim.key, name=claim.name, **fresh)
        taking = taking.on_conflict_do_update(
            index_elements=["key", "name"], set_=fresh, where=replays.c.expires_at <= UnixNow()
        ).returning(replays.c.owner)
        age = (UnixNow() - replays.c.claimed_at).label("age_s")
        looking = select(replays, age).where(replays.c.key == claim.key, replays.c.name == claim.name)
        for _ in range(_TRIES):
            async with self._database.write() as connection:
                if await fetch_row(connection, taking) is not None:
                    return None
                if (row := await fetch_row(connection, looking)) is not None:
                    return _decode(row)
            # Between the two it was released: take it now.
        raise StoreUnavailable("The idempotency key could not be claimed: too many requests use it at once.")

    async def record(self, claim: Claim, answer: RecordedAnswer, keep_s: float) -> bool:
        """Record a claim's answer for `keep_s` seconds; False where the claim was lost. Raises: StoreUnavailable."""
        values = {
            "status": answer.status,
            "headers": [list(header) for header in answer.headers],
            "body": answer.body,
            "expires_at": UnixNow() + keep_s,
        }
        async with self._database.write() as connection:
            result = await connection.execute(update(replays).where(*_held(claim)).values(**values))
        return result.rowcount == 1

    async def release(self, claim: Claim) -> None:
        """Give an idempotency key back whose request left no answer to repeat. Raises: StoreUnavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(replays).where(*_held(claim)))

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> None:
        """Hold claims for another `lease_s` seconds; those that were lost stay lost. Raises: StoreUnavailable."""
        renewing = (
            update(replays)
            .where(
                replays.c.key == bindparam("of_key"),
                replays.c.name == bindparam("of_name"),
                replays.c.owner == bindparam("of_owner"),
                replays.c.status.is_(None),
            )
            .values(expires_at=UnixNow() + lease_s)
        )
        # In one order everywhere, so that no two processes wait for each other.
        ordered = sorted(claims, key=lambda claim: (claim.key, claim.name))
        rows = [{"of_key": claim.key, "of_name": claim.name, "of_owner": claim.owner} for claim in ordered]
        async with self._database.write() as connection:
            await connection.execute(renewing, rows)

    async def sweep(self) -> int:
        """Delete what has expired, a bounded number of rows; returns how many. Raises: StoreUnavailable."""
        is_over = replays.c.expires_at <= UnixNow()
        oldest = select(replays.c.key, replays.c.name).where(is_over).order_by(replays.c.expires_at)
        named = tuple_(replays.c.key, replays.c.name).in_(oldest.limit(_SWEPT_AT_ONCE))
        async with self._database.write() as connection:
            return (await connection.execute(delete(replays).where(named, is_over))).rowcount


def _held(claim: Claim) -> tuple[Any, ...]:
    return (
        replays.c.key == claim.key,
        replays.c.name == claim.name,
        replays.c.owner == claim.owner,
        replays.c.status.is_(None),
    )


def _decode(row: Mapping[str, Any]) -> Replay:
    answer = None
    if row["status"] is not None:
        headers = [(name, value) for name, value in row["headers"]]
        answer = RecordedAnswer(row["status"], headers, bytes(row["body"]))
    return Replay(row["request_sha256"], row["age_s"], answer)
