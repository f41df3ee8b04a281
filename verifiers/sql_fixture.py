"""A small SQLite database in memory, built from SQL once and only read afterwards. Called by `verifiers.sql_job`.

Four fences: an authorizer that lets a query read and nothing else, `query_only`, limits on every length that SQLite
knows, and a count of processor seconds. The worker that this runs in has its own, and may be killed.
"""

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from verifiers.sql_rows import Result, Row, read_cell
from verifiers.sql_statement import bars, clip

HEAP_BYTES = 192 * 2**20  # of all fixtures of one worker together
MAX_RESULT_BYTES = 4 * 2**20
MAX_VALUE_BYTES = 200_000  # that a query may make: what SQLite does with one value is not interrupted
BUILD_S = 3.0
_OPCODES_BETWEEN_LOOKS = 200
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 200,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 250_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_REACHES = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})


class Failed(Exception):
    """SQLite refuses the SQL, or it fails while it runs."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooMuch(Exception):
    """The query wants more than it may have. `rows`: it is the number of rows, or their size."""

    def __init__(self, reason: str, *, rows: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rows = rows


class Fixture:
    """The database.

    Raises: Failed where the script does not build one; TooMuch.
    """

    def __init__(self, script: str) -> None:
        self._until_s = 0.0
        self._connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        try:
            self._build(script)
        except BaseException:
            self._connection.close()
            raise

    def _build(self, script: str) -> None:
        connection = self._connection
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_progress_handler(self._is_late, _OPCODES_BETWEEN_LOOKS)
        connection.set_authorizer(_authorize_building)
        self._begin(BUILD_S)
        try:
            connection.executescript(script)
            if connection.in_transaction:
                connection.execute("COMMIT")
        except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError) as error:
            raise self._translate(error) from None
        connection.set_authorizer(None)
        connection.execute(
            "SELECT * FROM json_each('[]'), json_tree('[]')"
        ).fetchall()  # they make tables when first used
        connection.execute("PRAGMA query_only = ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.set_authorizer(_authorize_reading)

    def close(self) -> None:
        """Forget everything in it."""
        self._connection.close()

    def read_schema(self) -> dict[str, dict[str, str]]:
        """List the tables and views with their columns and types."""
        connection = self._connection
        connection.set_authorizer(None)
        try:
            names = [
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
                )
            ]
            columns = "SELECT name, type FROM pragma_table_xinfo(?)"
            return {name: dict(connection.execute(columns, (name,)).fetchall()) for name in names}
        finally:
            connection.set_authorizer(_authorize_reading)

    def explain(self, sql: str) -> None:
        """Let SQLite plan a query without running it.

        Raises: Failed, TooMuch.
        """
        self.run(f"EXPLAIN {sql}", max_rows=1_000_000, timeout_s=BUILD_S)

    def run(self, sql: str, *, max_rows: int, timeout_s: float) -> Result:
        """Run one query, for `timeout_s` seconds of processor time at most.

        Raises: Failed, TooMuch.
        """
        self._begin(timeout_s)
        rows: list[Row] = []
        size = 0
        try:
            with closing(self._connection.execute(sql)) as cursor:
                columns = tuple(column[0] for column in cursor.description or ())
                for row in cursor:
                    if len(rows) == max_rows:
                        raise TooMuch(f"the query returns more than {max_rows:,} rows", rows=True)
                    size += sum(len(cell) if isinstance(cell, str | bytes) else 16 for cell in row)
                    if size > MAX_RESULT_BYTES:
                        raise TooMuch(f"the query returns more than {MAX_RESULT_BYTES:,} bytes", rows=True)
                    rows.append(tuple(map(read_cell, row)))
        except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError) as error:
            raise self._translate(error) from None
        if not columns:
            raise Failed("the statement returns no columns")
        return Result(columns, rows)

    def _begin(self, timeout_s: float) -> None:
        self._until_s = time.process_time() + timeout_s

    def _is_late(self) -> bool:
        return time.process_time() > self._until_s

    def _translate(self, error: Exception) -> Failed | TooMuch:
        if isinstance(error, MemoryError):
            return TooMuch("the query needs too much memory")
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_INTERRUPT:
            return TooMuch("the query takes too long")
        if code == sqlite3.SQLITE_AUTH:
            return Failed("the statement does what it may not")
        return Failed(clip(f"SQLite says: {error}", 300))


def _authorize_building(action: int, first: str | None, second: str | None, *_more: Any) -> int:
    if action == sqlite3.SQLITE_PRAGMA:
        return sqlite3.SQLITE_IGNORE  # dumps set some
    if action in _REACHES or (action == sqlite3.SQLITE_FUNCTION and bars(second or "")):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _authorize_reading(action: int, first: str | None, second: str | None, *_more: Any) -> int:
    if action in _READS or (action == sqlite3.SQLITE_FUNCTION and not bars(second or "")):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def missing_tables(fixture: Fixture, schema: Mapping[str, Mapping[str, str]]) -> list[str]:
    """List the tables of a schema that a fixture does not have."""
    there = {name.lower() for name in fixture.read_schema()}
    return [name for name in schema if name.lower() not in there]
