"""The kind `sql` in its workers, on SQL that means harm: each case ends in a verdict, and the loop is never held up."""

import asyncio
import time

import pytest

from verifiers import isolation, sql
from verifiers.base import Cause, InvalidVerifier, Status

FIXTURE = "CREATE TABLE t (n INTEGER, s TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
JOINED = "FROM t " + " ".join(f"CROSS JOIN t AS t{number}" for number in range(40))

ENDED = (Status.FAILED, Status.ABSTAINED)
HOSTILE = {
    "endless recursion": f"{ENDLESS} SELECT max(i) FROM n",
    "endless rows": f"{ENDLESS} SELECT i FROM n",
    "endless sort": f"{ENDLESS} SELECT i FROM n ORDER BY -i",
    "endless text": f"{ENDLESS} SELECT group_concat(i) FROM n",
    "endless blobs": f"{ENDLESS} SELECT count(*) FROM (SELECT i, randomblob(9000) AS r FROM n ORDER BY r)",
    "endless distinct": f"{ENDLESS} SELECT count(DISTINCT i) FROM n",
    "doubling text": "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) SELECT length(s) FROM n",
    "catastrophic join": f"SELECT count(*) {JOINED}",
    "catastrophic sort": f"SELECT t.* {JOINED} ORDER BY random()",
    "windows": f"SELECT sum(t.n) OVER (ORDER BY t.n ROWS BETWEEN 9 PRECEDING AND 9 FOLLOWING) {JOINED}",
    "zeroblob": "SELECT zeroblob(2000000000)",
    "randomblob": "SELECT hex(randomblob(1000000000))",
    "replace bomb": "SELECT replace(replace(hex(zeroblob(9999)), '0', hex(zeroblob(9999))), '0', hex(zeroblob(9999)))",
    "slow matching": f"{ENDLESS} SELECT count(*) FROM n WHERE hex(zeroblob(90000 + i % 2)) LIKE '%{'0%' * 90}1'",
    "slow search": f"{ENDLESS} SELECT sum(instr(hex(zeroblob(90000)), hex(zeroblob(45000)) || '1')) FROM n",
    "parentheses": "SELECT " + "(" * 9000 + "1" + ")" * 9000,
    "subqueries": "SELECT " + "(SELECT " * 1200 + "1" + ")" * 1200,
    "nested tables": "SELECT * FROM " + "(SELECT * FROM " * 1000 + "t" + ")" * 1000,
    "functions": "SELECT " + "abs(" * 3000 + "1" + ")" * 3000,
    "cases": "SELECT " + "CASE WHEN 1 THEN " * 900 + "1" + " END" * 900,
    "brackets": "SELECT " + "[" * 19_000,
    "braces": "SELECT " + "{" * 19_000,
    "comments": "SELECT " + "/* " * 6000,
    "casts": "SELECT 1" + "::int" * 3900,
    "unions": " UNION ALL ".join(["SELECT 1"] * 900),
    "withs": "WITH " + ", ".join(f"c{n} AS (SELECT * FROM c{n - 1})" for n in range(1, 500)) + " SELECT * FROM c499",
    "wide withs": "WITH c0 AS (SELECT 1 AS x), "
    + ", ".join(f"c{n} AS (SELECT a.x FROM c{n - 1} AS a, c{n - 1} AS b)" for n in range(1, 40))
    + " SELECT count(*) FROM c39",
    "many columns": f"SELECT {', '.join(['t.*'] * 900)} FROM t",
    "many cases of case": "SELECT " + " OR ".join(["1 = 2"] * 2500),
    "long name": f"SELECT {'a' * 19_000} FROM t",
    "long text": f"SELECT '{'a' * 60_000}' FROM nowhere",
    "NUL": "SELECT 'a\0b' FROM nowhere",
    "lone surrogates": "SELECT '\ud800' FROM nowhere",
    "foreign letters": "\u0405\u0415LECT 1",
    "right to left": "\u202e1 TCELES",
    "attach": "ATTACH DATABASE '/tmp/x' AS x",
    "smuggled write": "SELECT 1; DELETE FROM t",
    "write in a comment": "SELECT 1 /* ; */; DELETE FROM t --",
}


@pytest.fixture(scope="module")
def verifier():
    yield sql.KIND.compile_checked({"fixture": FIXTURE, "timeout_s": 0.3})
    isolation.close_all()


async def watch_loop(worst):
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        worst[0] = max(worst[0], time.perf_counter() - before - 0.01)


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_sql_ends_in_a_verdict(name, verifier):
    verdict = await verifier.verify({}, {"content": HOSTILE[name]}, {})
    assert verdict.status in ENDED, verdict
    assert verdict.reason
    assert len(verdict.reason) <= 1100
    right = await verifier.verify({}, {"content": "SELECT n FROM t"}, {"rows": [[1], [2], [3]]})
    assert right.status is Status.PASSED, "what came before may not be felt by the next"


async def test_the_loop_goes_on_while_hostile_sql_is_judged():
    verifier = sql.KIND.compile_checked({"fixture": FIXTURE, "timeout_s": 2})
    worst = [0.0]
    watching = asyncio.create_task(watch_loop(worst))
    hostile = [HOSTILE[name] for name in ("catastrophic join", "parentheses", "nested tables", "long text")]
    await asyncio.gather(*(verifier.verify({}, {"content": text}, {}) for text in hostile))
    watching.cancel()
    assert worst[0] < 1  # seconds: the join alone would hold it for two


@pytest.mark.hostile
@pytest.mark.parametrize("fixture", [f"CREATE TABLE t AS {ENDLESS} SELECT i FROM n", f"{ENDLESS} SELECT max(i) FROM n"])
def test_a_fixture_without_end_is_refused(fixture):
    with pytest.raises(InvalidVerifier) as refused:
        sql.KIND.compile_checked({"fixture": fixture})
    assert refused.value.where == "/fixture"


def test_a_bad_fixture_and_a_bad_reference_are_refused_with_their_place():
    for config, where in (
        ({"fixture": "CREATE"}, "/fixture"),
        ({"fixture": FIXTURE, "reference": "SELECT x FROM t"}, "/reference"),
        ({"fixture": FIXTURE, "schema": {"u": {}}}, "/schema"),
    ):
        with pytest.raises(InvalidVerifier) as refused:
            sql.KIND.compile_checked(config)
        assert refused.value.where == where


async def test_inside_of_a_loop_compiling_waits_for_nothing_and_the_verdict_abstains():
    verifier = sql.KIND.compile_checked({"fixture": "CREATE"})
    verdict = await verifier.verify({}, {"content": "SELECT 1"}, {})
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.BROKE)
    assert "syntax error" in verdict.reason or "incomplete input" in verdict.reason


async def test_fixtures_of_several_verifiers_are_apart():
    verifiers = [sql.KIND.compile_checked({"fixture": f"CREATE TABLE t AS SELECT {n} AS n"}) for n in range(12)]
    for _ in range(2):
        for number, verifier in enumerate(verifiers):
            verdict = await verifier.verify({}, {"content": "SELECT n FROM t"}, {"rows": [[number]]})
            assert verdict.status is Status.PASSED
