"""Judges answers for the kind `sql`: who does what.

An isolated worker parses, runs SQLite and compares (`verifiers.sql_job`); PostgreSQL is asked from here
(`verifiers.sql_postgres`) between the two. A reason that speaks of the right rows is never safe for the model; one that
speaks of the statement and of the schema, which the model was told, is.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from verifiers import policy
from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidVerifier, Request, Status, Verdict
from verifiers.isolation import Isolation, IsolationFailed
from verifiers.kind import Config
from verifiers.sql_limits import LENIENCY, MAX_ROWS, TIMEOUT_S
from verifiers.sql_postgres import Denied, Exceeded, Read, Rejected, Snapshot, Unfit, open_snapshot

MAX_ANSWER_CHARS = 100_000
BUILD_AND_PARSE_S = 15.0

_ISOLATION = Isolation(
    "verifiers.sql_job:judge",
    workers=3,
    memory_bytes=768 * 2**20,
    preload=("sqlglot.dialects.sqlite", "sqlglot.dialects.postgres"),
)


class SqlVerifier:
    """Compiled; `config` says its dialect.

    Raises: InvalidVerifier for a fixture that cannot be built, or a reference that does not run on it. Where a loop
    runs in this thread, which must not wait, that is left to the first verdict, which then abstains.
    """

    def __init__(self, config: Config) -> None:
        self._config = dict(config)
        self._timeout_s = float(config.get("timeout_s", TIMEOUT_S))
        self._isolated_s = BUILD_AND_PARSE_S + 3 * self._timeout_s
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._try_out()

    def _try_out(self) -> None:
        try:
            found = _ISOLATION.call_blocking({"step": "register", "config": self._config}, timeout_s=self._isolated_s)
        except IsolationFailed as error:
            raise InvalidVerifier(f"sql: it could not be tried: {error.reason}") from None
        if found["message"]:
            raise InvalidVerifier(f"sql: {found['message']}", found["where"])

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the SQL in the answer's text."""
        text = read_text(answer)
        if len(text) > MAX_ANSWER_CHARS:
            return Verdict.abstained(f"the answer is longer than {MAX_ANSWER_CHARS:,} characters", Cause.TOO_COSTLY)
        rows = args.get("rows")
        reference = None if rows is not None else args.get("reference", self._config.get("reference"))
        job = {"text": text, "rows": rows, "reference": reference}
        try:
            if "database" not in self._config:
                return _read_verdict(await self._call("judge", job))
            return await self._judge_by_database(job)
        except (IsolationFailed, Unfit) as error:
            # How long it takes comes of this answer: a model could stop the verifier by it.
            return Verdict.abstained(error.reason, Cause.TOO_COSTLY if error.cause is Cause.TIMEOUT else error.cause)

    async def _call(self, step: str, job: Mapping[str, Any]) -> dict[str, Any]:
        job = {"step": step, "config": self._config, **job}
        return await _ISOLATION.call(job, timeout_s=self._isolated_s, name=id(self))

    async def _judge_by_database(self, job: Mapping[str, Any]) -> Verdict:
        """Let a worker read the statements, PostgreSQL run them, and a worker compare what they return.

        Raises: Unfit, IsolationFailed.
        """
        url = _find_database(self._config["database"])
        told = await self._call("read", job)
        if told["status"]:
            return _read_verdict(told)
        most, path = self._config.get("max_rows", MAX_ROWS), self._config.get("search_path")
        want: Read | None = None
        async with open_snapshot(url, max_rows=most, search_path=path) as snapshot:
            if told["reference"]:
                want = await self._run_reference(snapshot, told)
            try:
                got = await self._run_answer(snapshot, told["sql"], compared=bool(want or job["rows"] is not None))
            except Exceeded as error:
                return self._blame(error, want, job["rows"])
            except Denied as error:
                if "schema" in self._config:  # the answer names only what the model was told of
                    raise Unfit(error.reason) from None
                return Verdict.failed(error.reason, safe_for_model=True)
            except Rejected as error:
                return Verdict.failed(error.reason, safe_for_model=error.safe)
        return await self._compare(got, want, told, job["rows"])

    async def _run_answer(self, snapshot: Snapshot, sql: str, *, compared: bool) -> Read:
        """Run the answer, or let it be planned where that is all that was asked for.

        Raises: Rejected, Exceeded, Unfit.
        """
        if compared or self._config.get("execute", True):
            return await snapshot.run(sql, self._timeout_s)
        await snapshot.explain(sql, self._timeout_s)
        return Read([], [])

    async def _run_reference(self, snapshot: Snapshot, told: dict[str, Any]) -> Read:
        """Run the reference with what it is ordered by, where that can be had.

        Raises: Unfit.
        """
        try:
            plain = await snapshot.run(told["reference"], LENIENCY * self._timeout_s)
        except (Rejected, Exceeded) as error:
            raise Unfit(f"the reference cannot be used: {error.reason}", Cause.BAD_ARGS) from None
        if all(key >= 0 for key in told["key_columns"]):
            return plain
        try:
            return await snapshot.run(told["keyed"], LENIENCY * self._timeout_s)
        except (Rejected, Exceeded):
            told["key_columns"] = []  # then its order has to be met exactly
            return plain

    async def _compare(self, got: Read, want: Read | None, told: Mapping[str, Any], rows: Any) -> Verdict:
        job: dict[str, Any] = {"columns": got.columns, "got": got.rows, "rows": rows}
        if want is None and rows is None:
            return Verdict.passed()
        if want is not None:
            right = {"reference_columns": want.columns, "want": want.rows}
            job |= {**right, "key_columns": told["key_columns"], "ordered": told["ordered"]}
        return _read_verdict(await self._call("compare", job))

    def _blame(self, error: Exceeded, want: Read | None, rows: Any) -> Verdict:
        """Blame the answer for wanting too much where it was said how much, or where it is wrong in any case."""
        right = rows if want is None else want.rows
        if error.rows and right is not None:
            return Verdict.failed(f"{error.reason}, and {len(right)} are right")
        if ("max_rows" if error.rows else "timeout_s") in self._config:
            return Verdict.failed(error.reason, safe_for_model=True)
        return Verdict.abstained(error.reason, Cause.TOO_COSTLY)


def _find_database(name: str) -> str:
    """Find the URL that the operator gave a database.

    Raises: Unfit.
    """
    url = policy.current().databases.get(name)
    if url is None:
        raise Unfit(f"there is no database called {name!r} here")
    return url


def _read_verdict(told: Mapping[str, Any]) -> Verdict:
    """Read what a worker says of an answer."""
    cause = Cause(told["cause"]) if told["cause"] else None
    status = Status(told["status"])
    score = 1.0 if status is Status.PASSED else 0.0
    return Verdict(status, score, told["reason"], safe_for_model=told["safe"], cause=cause)
