"""Runs one verdict's queries on a PostgreSQL database, all in one read-only snapshot. Called by the kind `sql`.

The statements were parsed and found to be reading before they come here, but nothing here relies on that: the
transaction is READ ONLY, a statement has to be one by PostgreSQL's own grammar (it is prepared first), and it runs as
a subquery, where nothing that writes may stand. Rows come as JSON texts of bounded length, so that no value can fill
this process's memory. What a role may read, and which functions it may call, is the operator's to say.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import asyncpg

from verifiers.base import Cause

CONNECT_S = 5
QUEUE_S = 10.0
GRACE_S = 5.0
MAX_CONNECTIONS = 8  # of one process at the same time
MAX_ROW_BYTES = 65_536
MAX_RESULT_BYTES = 524_288
_FETCHED = 16  # rows at a time: so many of the largest are all that can arrive beyond the limit

_INTERRUPTED = frozenset({"57014", "55P03"})
_UNFIT_CLASSES = frozenset({"08", "53", "57", "58", "XX", "28", "3D"})
_DENIED = "42501"
_READ_ONLY = "25006"

_turns: "WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]" = WeakKeyDictionary()


class Unfit(Exception):
    """The database cannot be asked: not the statement's fault."""

    def __init__(self, reason: str, cause: Cause = Cause.UNREACHABLE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause


class Rejected(Exception):
    """PostgreSQL rejects the statement. `safe`: the reason tells nothing but names."""

    def __init__(self, reason: str, *, safe: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.safe = safe


class Denied(Rejected):
    """The role that the URL names may not read something, or not call it."""

    def __init__(self) -> None:
        super().__init__("the database denies access to something that the statement names", safe=True)


class Exceeded(Exception):
    """The statement wants more than it may have. `rows`: it is the number of rows, or their size."""

    def __init__(self, reason: str, *, rows: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rows = rows


@dataclass(frozen=True)
class Read:
    """What a statement returned: the names of its columns, and each row as the text of a JSON object."""

    columns: list[str]
    rows: list[str]


class Snapshot:
    """An open transaction that only reads."""

    def __init__(self, connection: "asyncpg.Connection", max_rows: int) -> None:
        self._connection = connection
        self._max_rows = max_rows

    async def run(self, sql: str, timeout_s: float) -> Read:
        """Run one statement and read its rows.

        Raises: Rejected, Exceeded, Unfit.
        """
        async with self._limit(timeout_s):
            columns = await self._prepare(sql)
            return Read(columns, await self._fetch(_wrap(sql)))

    async def explain(self, sql: str, timeout_s: float) -> None:
        """Let PostgreSQL plan a statement without running it.

        Raises: Rejected, Exceeded, Unfit.
        """
        async with self._limit(timeout_s):
            await self._prepare(sql)
            await self._connection.fetch(f"EXPLAIN {sql}")

    async def _prepare(self, sql: str) -> list[str]:
        """Let PostgreSQL parse a statement; give the names of its columns."""
        try:
            prepared = await self._connection.prepare(sql)
        except asyncpg.PostgresError as error:
            raise _explain(error, safe=True) from None
        columns = [attribute.name for attribute in prepared.get_attributes()]
        if not columns or prepared.get_parameters():
            raise Rejected("the statement returns no columns, or has a placeholder in it", safe=True)
        return columns

    async def _fetch(self, sql: str) -> list[str]:
        prepared = await self._connection.prepare(sql)
        cursor = await prepared.cursor()
        rows: list[str] = []
        size = 0
        while fetched := await cursor.fetch(min(_FETCHED, self._max_rows + 1 - len(rows))):
            for (text,) in fetched:
                size += MAX_RESULT_BYTES if text is None else len(text)
                rows.append(text or "")
            if size >= MAX_RESULT_BYTES:
                raise Exceeded("the query returns too many bytes", rows=True)
            if len(rows) > self._max_rows:
                raise Exceeded(f"the query returns more than {self._max_rows:,} rows", rows=True)
        return rows

    @asynccontextmanager
    async def _limit(self, timeout_s: float) -> AsyncIterator[None]:
        """Limit the time of what is inside, there and here, and undo it if it fails."""
        try:
            async with asyncio.timeout(timeout_s + GRACE_S), self._connection.transaction():
                await self._connection.execute(f"SET LOCAL statement_timeout = {max(1, round(timeout_s * 1000))}")
                yield
        except asyncpg.PostgresError as error:
            raise _explain(error, safe=False) from None
        except TimeoutError:
            raise Unfit("the database does not answer", Cause.TIMEOUT) from None
        except (OSError, asyncpg.InterfaceError) as error:
            raise Unfit(f"the connection to the database broke: {type(error).__name__}") from None


@asynccontextmanager
async def open_snapshot(url: str, *, max_rows: int, search_path: list[str] | None = None) -> AsyncIterator[Snapshot]:
    """Connect and begin a read-only transaction.

    Raises: Unfit.
    """
    async with _take_turn():
        connection = await _connect(url)
        try:
            await _begin(connection, search_path)
            yield Snapshot(connection, max_rows)
            await connection.close(timeout=CONNECT_S)
        except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
            raise Unfit(f"the connection to the database broke: {type(error).__name__}") from None
        finally:
            connection.terminate()  # whatever it does: nothing is kept, and statement_timeout ends what runs there


async def _begin(connection: "asyncpg.Connection", search_path: list[str] | None) -> None:
    """Begin the transaction that every statement of this verdict runs in.

    Raises: Unfit.
    """
    path = ", ".join('"' + name.replace('"', '""') + '"' for name in search_path or ())
    try:
        await connection.transaction(isolation="repeatable_read", readonly=True).start()
        await connection.execute(
            "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL lock_timeout = '1s'"
            + (f"; SET LOCAL search_path = {path}" if path else "")
        )
    except asyncpg.PostgresError as error:
        raise Unfit(f"the database cannot be used: {type(error).__name__}") from None


async def _connect(url: str) -> "asyncpg.Connection":
    """Connect.

    Raises: Unfit. Its reason never holds the URL, which has a password in it.
    """
    try:
        return await asyncpg.connect(
            url.replace("postgresql+asyncpg://", "postgresql://", 1),
            timeout=CONNECT_S, statement_cache_size=0,
        )  # fmt: skip
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unfit(f"the database cannot be reached: {type(error).__name__}") from None


@asynccontextmanager
async def _take_turn() -> AsyncIterator[None]:
    """Wait until fewer than MAX_CONNECTIONS verdicts of this loop are at their databases.

    Raises: Unfit.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_CONNECTIONS))
    try:
        async with asyncio.timeout(QUEUE_S):
            await turns.acquire()
    except TimeoutError:
        raise Unfit("too many verdicts wait for their databases", Cause.BUSY) from None
    try:
        yield
    finally:
        turns.release()


def _wrap(sql: str) -> str:
    """Make every row one JSON text, or NULL where that is too long. A random name cannot be one of the answer's."""
    name = f"mulligan_{secrets.token_hex(8)}"
    texts = f"SELECT row_to_json({name})::text AS {name}_text FROM (\n{sql}\n) AS {name}"  # noqa: S608
    bounded = f"CASE WHEN octet_length({name}_text) <= {MAX_ROW_BYTES} THEN {name}_text END"
    return f"SELECT {bounded} FROM ({texts}) AS {name}_rows"  # noqa: S608 -- it was prepared alone before


def _explain(error: asyncpg.PostgresError, *, safe: bool) -> Exception:
    """Say whose fault an error of PostgreSQL is."""
    state = getattr(error, "sqlstate", None) or ""
    if state in _INTERRUPTED:
        return Exceeded("the query takes too long")
    if state == _READ_ONLY:
        return Rejected("the statement does not only read", safe=True)
    if state == _DENIED:
        return Denied()
    if state[:2] in _UNFIT_CLASSES:
        return Unfit(f"the database failed: {type(error).__name__}")
    said = str(error.args[0] if error.args else error).replace("\0", "\ufffd")[:300]
    return Rejected(f"PostgreSQL says: {said}", safe=safe)
