"""The kind `sql` on PostgreSQL: it only reads, within limits, and what the database does wrong is nobody's failure."""

import asyncio
import re
import secrets

import asyncpg
import pytest

from tests.fixtures.databases import _throw_away, execute, name_database
from verifiers import isolation, policy, sql
from verifiers.base import Cause, Status
from verifiers.sql_postgres import MAX_CONNECTIONS, Exceeded, Rejected, Unfit, open_snapshot

pytestmark = pytest.mark.postgres

SHOP = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, country text, mood mood DEFAULT 'glad');
INSERT INTO customers VALUES (1, 'Ann', 'France'), (2, 'Bob', 'Spain'), (3, 'Cleo', 'France'), (4, 'Dan', NULL);
CREATE TABLE orders (
    id int PRIMARY KEY, customer_id int, total numeric(10, 2), placed date, at timestamptz, tags text[], note jsonb
);
INSERT INTO orders VALUES
    (1, 1, 0.1, '2024-01-05', '2024-01-05 10:00+02', '{a,b}', '{"x": 1}'),
    (2, 1, 0.2, '2024-02-01', '2024-02-01 00:00+00', '{}', NULL),
    (3, 2, 7, '2024-02-03', NULL, NULL, 'null');
CREATE SCHEMA archive;
CREATE TABLE archive.orders (id int, total numeric);
INSERT INTO archive.orders VALUES (9, 99);
CREATE SEQUENCE numbers;
CREATE FUNCTION write_one() RETURNS int LANGUAGE sql AS $$
    INSERT INTO customers (id, name) VALUES (99, 'x') RETURNING id
$$;
CREATE FUNCTION nap() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN 1; END $$;
"""
SCHEMA = {"customers": {"id": "int", "name": "text", "country": "text"}, "orders": {"id": "int", "total": "numeric"}}


@pytest.fixture(scope="module")
def shop_url(postgres_server):
    with _throw_away(postgres_server) as url:
        execute(url, SHOP)
        yield url


@pytest.fixture(autouse=True)
def allowed(shop_url):
    before = policy.current()
    policy.configure(policy.Policy(databases={"shop": shop_url, "gone": name_database(shop_url, "mulligan_nowhere")}))
    yield
    policy.configure(before)


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    isolation.close_all()


async def judge(text, args=None, **config):
    config = {"database": "shop", **config}
    verifier = sql.KIND.compile_checked(config)
    sql.KIND.check_args(config, args or {})
    return await verifier.verify({}, {"content": text}, args or {})


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("SELECT name FROM customers", {}),
        ("```sql\nSELECT DISTINCT ON (country) name FROM customers ORDER BY country, id;\n```", {}),
        ("SELECT * FROM customers c JOIN orders o ON o.customer_id = c.id -- two columns are called id", {}),
        ("SELECT name FROM customers -- all of them", {"reference": "SELECT name FROM customers ORDER BY name DESC"}),
        ("SELECT sum(total) FROM orders", {"reference": "SELECT 7.3"}),
        ("SELECT count(*) FROM orders", {"rows": [[3]]}),
        ("SELECT placed FROM orders WHERE id = 1", {"rows": [["2024-01-05"]]}),
        ("SELECT at FROM orders WHERE id = 1", {"rows": [["2024-01-05T08:00:00+00:00"]]}),
        ("SELECT mood FROM customers WHERE id = 1", {"rows": [["glad"]]}),
        ("SELECT country FROM customers WHERE id = 4", {"rows": [[None]]}),
        ("SELECT tags, note FROM orders", {"reference": "SELECT tags, note FROM public.orders"}),
        ("SELECT 'NaN'::float8, 'infinity'::float8", {"reference": "SELECT 'NaN'::numeric, 'infinity'::float8"}),
        ("SELECT true, false", {"rows": [[True, False]]}),
        ("SELECT name FROM customers WHERE false", {"rows": []}),
        ("SELECT name FROM customers WHERE name = 'a;b'", {}),
    ],
)
async def test_right_answers_pass(text, args):
    verdict = await judge(text, args, ordered=False)  # else the one reference that orders its rows asks for that order
    assert (verdict.status, verdict.reason) == (Status.PASSED, "")


@pytest.mark.parametrize(
    ("text", "reference", "says"),
    [
        ("SELECT name FROM customers LIMIT 3", "SELECT name FROM customers", "it returns 3 rows, not 4"),
        ("SELECT name FROM customers ORDER BY id", "SELECT name FROM customers ORDER BY id DESC", "in another order"),
        ("SELECT 7.31", "SELECT sum(total) FROM orders", "the row (7.31)"),
        ("SELECT name, id FROM customers", "SELECT id, name FROM customers", "which is wrong"),
    ],
)
async def test_other_rows_fail_and_the_model_does_not_hear_why(text, reference, says):
    verdict = await judge(text, {"reference": reference})
    assert (verdict.status, verdict.safe_for_model) == (Status.FAILED, False)
    assert says in verdict.reason


async def test_rows_that_are_ordered_by_equal_keys_may_change_places():
    by_country = "SELECT name FROM customers ORDER BY country, id"
    assert (await judge(by_country, {"reference": "SELECT name FROM customers ORDER BY country"})).status == "passed"
    totals = "SELECT name FROM customers LEFT JOIN orders o ON customer_id = customers.id GROUP BY name"
    right = {"reference": f"{totals} ORDER BY count(o.id) DESC"}
    assert (await judge(f"{totals} ORDER BY count(o.id) DESC, name DESC", right)).status == "passed"
    assert (await judge(f"{totals} ORDER BY count(o.id)", right)).status == "failed"


@pytest.mark.parametrize(
    ("text", "says", "safe"),
    [
        ("SELECT nam FROM customers", 'column "nam" does not exist', True),
        ("SELECT name FROM nowhere", 'relation "nowhere" does not exist', True),
        ("SELECT name FROM customers GROUP BY country", "must appear in the GROUP BY clause", True),
        ("SELECT name + 1 FROM customers", "operator does not exist", True),
        ("SELECT 1 / (id - id) FROM customers", "division by zero", False),
        ("SELECT name::int FROM customers", "invalid input syntax", False),
        ("SELECT 1; SELECT 2", "there is more than one statement", True),
        ("SELECT 1; DROP TABLE customers", "there is more than one statement", True),
        ("DELETE FROM customers", "only one SELECT is allowed", True),
        ("SELECT $1", "a placeholder", True),
        ("SELECT usename FROM pg_user", "is the database's own", True),
        ("SELECT table_name FROM information_schema.tables", "is the database's own", True),
        ("SELECT rolname FROM pg_catalog.pg_authid", "is the database's own", True),
        ("SELECT pg_sleep(60)", "the function 'pg_sleep' is not allowed", True),
        ("SELECT write_one()", "does not only read", True),
        ("SELECT * FROM customers FOR UPDATE", "locks rows", True),
    ],
)
async def test_what_does_not_run_or_not_only_read_fails(text, says, safe):
    verdict = await judge(text)
    assert (verdict.status, verdict.safe_for_model) == (Status.FAILED, safe)
    assert says in verdict.reason


@pytest.mark.hostile
@pytest.mark.parametrize(
    "smuggled",
    [
        "DELETE FROM customers",
        "DELETE FROM customers RETURNING id",
        "WITH d AS (DELETE FROM customers RETURNING id) SELECT * FROM d",
        "SELECT 1; DELETE FROM customers",
        "SELECT 1) AS x; DELETE FROM customers; SELECT * FROM (SELECT 1",
        "SELECT write_one()",
        "SELECT nextval('numbers')",
        "SELECT * FROM customers FOR UPDATE",
        "SELECT id INTO copied FROM customers",
        "COPY customers TO PROGRAM 'true'",
        "COMMIT",
        "SET TRANSACTION READ WRITE",
        "SELECT set_config('transaction_read_only', 'off', true), write_one()",
        "CREATE TABLE x (y int)",
        "DO $$ BEGIN DELETE FROM customers; END $$",
        "/* SELECT */ TRUNCATE customers",
    ],
)
async def test_what_is_smuggled_past_the_parser_still_writes_nothing(smuggled, shop_url):
    async with open_snapshot(shop_url, max_rows=10) as snapshot:
        with pytest.raises((Rejected, Unfit)):
            await snapshot.run(smuggled, 5)
        assert (await snapshot.run("SELECT count(*) FROM customers", 5)).rows == ['{"count":4}']
    connection = await asyncpg.connect(shop_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM customers") == 4
        assert await connection.fetchval("SELECT count(*) FROM pg_class WHERE relname IN ('x', 'copied')") == 0
        assert await connection.fetchval("SELECT is_called FROM numbers") is False
    finally:
        await connection.close()


async def test_a_given_schema_bounds_what_an_answer_names():
    assert (await judge("SELECT name FROM customers", schema=SCHEMA)).status is Status.PASSED
    for text in ("SELECT mood FROM customers", "SELECT id FROM archive.orders", "SELECT 1 FROM numbers"):
        assert (await judge(text, schema=SCHEMA)).status is Status.FAILED


async def test_a_search_path_says_where_tables_are_looked_up():
    assert (await judge("SELECT id FROM orders", {"rows": [[9]]}, search_path=["archive"])).status is Status.PASSED
    assert (await judge("SELECT id FROM orders", {"rows": [[9]]})).status is Status.FAILED
    assert (await judge("SELECT name FROM customers", search_path=["archive"])).status is Status.FAILED


async def test_a_slow_query_is_stopped_and_blamed_only_where_the_limit_was_said():
    said = await judge("SELECT nap()", timeout_s=0.2)
    assert (said.status, said.reason, said.safe_for_model) == (Status.FAILED, "the query takes too long", True)
    async with open_snapshot(policy.current().databases["shop"], max_rows=1) as snapshot:
        with pytest.raises(Exceeded):
            await snapshot.run("SELECT nap()", 0.2)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
    unsaid = await judge(endless)
    assert (unsaid.status, unsaid.cause) == (Status.ABSTAINED, Cause.TOO_COSTLY)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    [
        "SELECT generate_series(1, 100000000)",
        "SELECT repeat('x', 3000000)",
        "SELECT repeat('x', 60000) FROM generate_series(1, 100000)",
        "SELECT array_agg(i) FROM generate_series(1, 1000000) i",
    ],
)
async def test_results_are_bounded_in_rows_and_bytes(text):
    verdict = await judge(text)
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.TOO_COSTLY), verdict
    assert (await judge(text, {"rows": [[1]]})).status is Status.FAILED
    said = await judge(text, max_rows=100)
    assert (said.status, said.safe_for_model) == (Status.FAILED, True)


async def test_planning_alone_runs_nothing():
    assert (await judge("SELECT nap()", execute=False)).status is Status.PASSED
    assert (await judge("SELECT nam FROM customers", execute=False)).status is Status.FAILED


@pytest.mark.parametrize(
    "reference", ["SELECT nam FROM customers", "DELETE FROM customers", "SELECT 1 / 0", "SELECT nap()"]
)
async def test_a_reference_that_does_not_run_is_nobodys_failure(reference):
    verdict = await judge("SELECT 1", {"reference": reference}, timeout_s=0.2)
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.BAD_ARGS)
    assert verdict.reason.startswith("the reference cannot be used: ")


async def test_a_database_that_cannot_be_reached_is_nobodys_failure():
    for name, says in (("nowhere", "there is no database called 'nowhere' here"), ("gone", "cannot be reached")):
        verdict = await judge("SELECT 1", database=name)
        assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.UNREACHABLE)
        assert says in verdict.reason
    refused = policy.Policy(databases={"shop": "postgresql://somebody:secret@127.0.0.1:1/x"})
    policy.configure(refused)
    verdict = await judge("SELECT 1")
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.UNREACHABLE)
    assert "secret" not in verdict.reason


async def test_what_the_role_may_not_read_is_the_answers_fault_only_where_no_schema_was_given(
    postgres_server, shop_url
):
    role = f"mulligan_reader_{secrets.token_hex(6)}"
    execute(shop_url, f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"GRANT SELECT ON customers TO {role}")
    try:
        policy.configure(policy.Policy(databases={"shop": re.sub("//[^@/]*@", f"//{role}:x@", shop_url)}))
        assert (await judge("SELECT name FROM customers")).status is Status.PASSED
        assert (await judge("SELECT id FROM orders")).status is Status.FAILED
        unfit = await judge("SELECT id FROM orders", schema=SCHEMA)
        assert (unfit.status, unfit.cause) == (Status.ABSTAINED, Cause.UNREACHABLE)
    finally:
        execute(shop_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_no_connection_is_left_and_no_more_than_so_many_are_open(shop_url):
    async def count(watcher):
        return await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    watcher = await asyncpg.connect(shop_url)
    try:
        verdicts = [asyncio.create_task(judge("SELECT 1")) for _ in range(3 * MAX_CONNECTIONS)]
        most = 0
        while not all(verdict.done() for verdict in verdicts):
            most = max(most, await count(watcher))
        assert [verdict.result().status for verdict in verdicts] == [Status.PASSED] * len(verdicts)
        assert most <= MAX_CONNECTIONS + 4  # some are still being closed
        cancelled = asyncio.create_task(judge("SELECT nap()", timeout_s=10))
        while not await count(watcher):
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        async with asyncio.timeout(60):
            while await count(watcher):
                await asyncio.sleep(0.01)
    finally:
        await watcher.close()
