"""The kind `sql` without its workers: what is read, what is refused, what runs on a fixture, how rows are compared."""

import pytest
import sqlglot

from verifiers import sql, sql_job
from verifiers.base import InvalidArgs, InvalidVerifier
from verifiers.sql_keys import add_keys
from verifiers.sql_rows import MAX_LEFT_OVER, Result, Rules, TooManyWays, explain_difference
from verifiers.sql_statement import bars, find_statement, read_statement

SHOP = """
PRAGMA foreign_keys = OFF;
BEGIN TRANSACTION;
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT);
INSERT INTO customers VALUES (1, 'Ann', 'France'), (2, 'Bob', 'Spain'), (3, 'Cleo', 'France'), (4, 'Dan', NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers (id), total REAL, placed TEXT);
INSERT INTO orders VALUES (1, 1, 0.1, '2024-01-05'), (2, 1, 0.2, '2024-02-01'), (3, 2, 7, '2024-02-03');
CREATE VIEW spenders AS SELECT DISTINCT customer_id FROM orders;
COMMIT;
"""
SCHEMA = {
    "customers": {"id": "integer", "name": "text", "country": "text"},
    "orders": {"id": "integer", "customer_id": "integer", "total": "real", "placed": "text"},
}


def ask(text, reference=None, rows=None, **config):
    config = {"dialect": "sqlite", **({} if "schema" in config else {"fixture": SHOP}), **config}
    told = sql_job.judge({"step": "judge", "config": config, "text": text, "reference": reference, "rows": rows})
    return told["status"], told["reason"], told["safe"], told["cause"]


def register(**config):
    return sql_job.judge({"step": "register", "config": {"dialect": "sqlite", **config}})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1", "SELECT 1"),
        ("Here:\n```sql\nSELECT 1\n```\nDone.", "SELECT 1"),
        ("```SQL\nSELECT 1\n```\nor rather\n```sql\nSELECT 2\n```", "SELECT 2"),
        ("```\nSELECT 1;\n```", "SELECT 1;"),
        ("```python\nprint()\n```\n```sqlite\nSELECT 1\n```", "SELECT 1"),
        ("~~~postgresql\nSELECT 1\n~~~", "SELECT 1"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("```sql\nSELECT 1\n```\n```json\n[]\n```", "SELECT 1"),
        ("```sql\n\n```", ""),
        ("", ""),
    ],
)
def test_the_statement_is_the_last_block_of_sql_or_the_whole_answer(text, found):
    assert find_statement(text, "sqlite") == found


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM customers",
        "select Name from Customers;",
        "-- all\nSELECT * FROM customers -- of them\n;",
        'SELECT name FROM customers WHERE country = "France"',
        "WITH f AS (SELECT * FROM customers WHERE country = 'France') SELECT name FROM f",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n",
        "SELECT c.name, sum(o.total) AS s FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY 1",
        "SELECT name FROM customers UNION SELECT placed FROM orders ORDER BY name",
        "SELECT name FROM customers c WHERE EXISTS (SELECT 1 FROM orders WHERE customer_id = c.id)",
        "SELECT total * 2 AS twice FROM orders WHERE twice > 1",
        "SELECT row_number() OVER (PARTITION BY customer_id ORDER BY total DESC), placed FROM orders",
        "SELECT main.orders.total FROM main.orders",
        "VALUES (1), (2)",
        "SELECT ';'",
        "SELECT value FROM json_each('[1, 2]')",
    ],
)
@pytest.mark.parametrize("config", [{}, {"schema": SCHEMA}, {"schema": SCHEMA, "fixture": SHOP}])
def test_what_reads_and_runs_passes(text, config):
    assert ask(text, **config) == ("passed", "", False, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no SQL in the answer"),
        ("-- nothing", "there is no SQL in the answer"),
        ("SELECT nam frm customers", "at line 1, column 16, near 'customers'"),
        ("SELECT 'a", "a quotation or a comment has no end"),
        ("I would join the two tables.", "it is not valid SQL (sqlite)"),
        ("SELECT 1; SELECT 2", "there is more than one statement"),
        ("SELECT 1; DROP TABLE customers", "there is more than one statement"),
        ("DROP TABLE customers", "only one SELECT is allowed"),
        ("INSERT INTO customers VALUES (9, 'x', 'y')", "only one SELECT is allowed"),
        ("UPDATE customers SET name = 'x'", "only one SELECT is allowed"),
        ("DELETE FROM customers RETURNING *", "only one SELECT is allowed"),
        ("REPLACE INTO customers VALUES (1, 'x', 'y')", "only one SELECT is allowed"),
        ("CREATE TABLE x AS SELECT 1", "only one SELECT is allowed"),
        ("PRAGMA table_info(customers)", "only one SELECT is allowed"),
        ("ATTACH '/tmp/x.db' AS x", "only one SELECT is allowed"),
        ("VACUUM INTO '/tmp/x.db'", "only one SELECT is allowed"),
        ("EXPLAIN SELECT 1", "only one SELECT is allowed"),
        ("BEGIN", "only one SELECT is allowed"),
        ("WITH d AS (DELETE FROM customers RETURNING *) SELECT * FROM d", "does not only read"),
        ("WITH d AS (INSERT INTO customers VALUES (9, 'x', 'y') RETURNING *) SELECT * FROM d", "does not only read"),
        ("SELECT * INTO x FROM customers", "does not only read"),
        ("SELECT * FROM customers FOR UPDATE", "the statement locks rows"),
        ("SELECT load_extension('/tmp/x.so')", "the function 'load_extension' is not allowed"),
        ("SELECT \"load_extension\"('x')", "the function 'load_extension' is not allowed"),
        ("SELECT writefile('/tmp/x', 'y')", "the function 'writefile' is not allowed"),
        ("SELECT ?", "a placeholder or a variable"),
        ("SELECT :name, @name", "a placeholder or a variable"),
    ],
)
@pytest.mark.parametrize("config", [{}, {"schema": SCHEMA}])
def test_what_does_not_only_read_one_thing_fails_and_the_model_may_hear_why(text, says, config):
    status, reason, safe, cause = ask(text, **config)
    assert (status, safe, cause) == ("failed", True, None)
    assert says in reason


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("COPY customers TO '/tmp/x'", "postgres"),
        ("COPY (SELECT 1) TO PROGRAM 'sh'", "postgres"),
        ("DO $$ BEGIN END $$", "postgres"),
        ("SET ROLE postgres", "postgres"),
        ("CALL f()", "postgres"),
        ("SELECT pg_sleep(9)", "postgres"),
        ("SELECT pg_catalog.pg_sleep(9)", "postgres"),
        ('SELECT "pg_sleep"(9)', "postgres"),
        ("SELECT * FROM pg_sleep(9)", "postgres"),
        ("SELECT * FROM ROWS FROM (pg_sleep(9))", "postgres"),
        ("SELECT pg_read_file('/etc/passwd')", "postgres"),
        ("SELECT lo_import('/etc/passwd')", "postgres"),
        ("SELECT * FROM dblink('host=x', 'SELECT 1') AS t (a int)", "postgres"),
        ("SELECT set_config('transaction_read_only', 'off', false)", "postgres"),
        ("SELECT nextval('s')", "postgres"),
        ("SELECT query_to_xml('DELETE FROM customers', true, true, '')", "postgres"),
        ("SELECT * FROM ts_stat('SELECT note FROM secrets')", "postgres"),
        ("SELECT ('/etc/passwd'::text).pg_read_file", "postgres"),
        ('SELECT ((array[9.0])[1])."pg_sleep"', "postgres"),
        ("SELECT 1 AS n ORDER BY (random()).pg_sleep", "postgres"),
        ("SELECT x.current_setting FROM unnest(array['data_directory']) x", "postgres"),
        ("SELECT x.pg_sleep FROM unnest(array[9.0]) AS x(n)", "postgres"),
        ("SELECT random.pg_sleep FROM random()", "postgres"),
        ("SELECT x.pg_sleep FROM random() x WHERE EXISTS (SELECT 1 FROM customers x)", "postgres"),
        ("WITH d AS (UPDATE customers SET name = 'x' RETURNING *) SELECT * FROM d", "postgres"),
        ("MERGE INTO customers USING orders ON true WHEN MATCHED THEN DELETE", "postgres"),
        ("SELECT * FROM customers FOR NO KEY UPDATE SKIP LOCKED", "postgres"),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", "mysql"),
        ("SELECT sleep(9)", "mysql"),
        ("SELECT load_file('/etc/passwd')", "mysql"),
        ("SELECT * FROM read_csv('/etc/passwd')", "duckdb"),
        ("EXEC xp_cmdshell 'dir'", "tsql"),
        ("SELECT * FROM OPENROWSET('x', 'y', 'z')", "tsql"),
    ],
)
def test_other_dialects_have_other_ways_to_do_harm(text, dialect):
    assert ask(text, dialect=dialect)[0] == "failed"
    assert ask(text, dialect=dialect, schema=SCHEMA)[0] == "failed"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT p.url FROM pages AS p",
        "SELECT s.pages.url FROM s.pages",
        "SELECT q.url FROM (SELECT url FROM pages) AS q",
        "WITH w AS (SELECT file FROM pages) SELECT w.file FROM w",
        "SELECT x.url FROM (VALUES ('a')) AS x(url)",
        "SELECT x.url FROM json_to_recordset('[]') AS x(url text)",
    ],
)
def test_a_column_may_be_called_as_a_function_that_is_barred(text):
    assert read_statement(text, "postgres").text == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT nam FROM customers", "there is no column 'nam'"),
        ("SELECT c.nam FROM customers c", "there is no column 'nam'"),
        ("SELECT x.name FROM customers c", "there is no column 'name' in 'x'"),
        ("SELECT x.* FROM customers c", "there is no table 'x' in this part of the statement"),
        ("SELECT name FROM clients", "there is no table 'clients'"),
        ("SELECT name FROM other.customers", "there is no table 'other.customers'"),
        ("SELECT id FROM customers, orders", "'id' is in none or in several of the tables there"),
        ("SELECT name FROM sqlite_master", "there is no table 'sqlite_master'"),
        ("SELECT name FROM customers WHERE id IN (SELECT customer FROM orders)", "there is no column 'customer'"),
        ("WITH f AS (SELECT id FROM customers) SELECT f.name FROM f", "the column 'name' is in none"),
        ("SELECT name FROM customers ORDER BY age", "there is no column 'age'"),
    ],
)
def test_names_that_a_given_schema_does_not_have_fail(text, says):
    for config in ({}, {"fixture": SHOP}):
        status, reason, safe, _ = ask(text, schema=SCHEMA, **config)
        assert (status, safe) == ("failed", True)
        assert says in reason


def test_a_schema_may_hide_what_a_fixture_has():
    shown = {"customers": {"id": "integer", "name": "text"}}
    assert ask("SELECT name FROM customers", schema=shown, fixture=SHOP)[0] == "passed"
    assert ask("SELECT country FROM customers", schema=shown, fixture=SHOP)[0] == "failed"
    assert ask("SELECT total FROM orders", schema=shown, fixture=SHOP)[0] == "failed"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('SELECT "Id" FROM "Orders"', "passed"),
        ("SELECT id FROM orders", "failed"),
        ("SELECT NAME FROM public.Customers", "passed"),
        ("SELECT name FROM secret.customers", "failed"),
    ],
)
def test_postgres_folds_names_unless_they_are_quoted(text, status):
    schema = {"customers": {"name": "text"}, "Orders": {"Id": "integer"}}
    assert ask(text, dialect="postgres", schema=schema)[0] == status


def test_sqlite_itself_looks_names_up_where_no_schema_is_given():
    assert ask("SELECT rowid, name FROM customers")[0] == "passed"
    assert ask("SELECT nam FROM customers") == ("failed", "SQLite says: no such column: nam", True, None)
    assert ask("SELECT * FROM nowhere") == ("failed", "SQLite says: no such table: nowhere", True, None)


def test_another_dialect_is_translated_for_the_fixture():
    config = {"dialect": "postgres", "fixture": SHOP}
    assert ask("SELECT name FROM customers WHERE name ILIKE 'a%'", rows=[["Ann"]], **config)[0] == "passed"
    assert ask("SELECT nam FROM customers", **config)[:2] == ("failed", "there is no column 'nam'")
    status, _, safe, cause = ask("SELECT to_tsvector(name) FROM customers", **config)
    assert (status, safe, cause) == ("abstained", False, "undecided")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("SELECT name FROM customers ORDER BY id DESC", "SELECT name FROM customers"),
        ("SELECT sum(total) FROM orders", "SELECT 7.3"),
        ("SELECT 0.1 + 0.2", "SELECT 0.3"),
        ("SELECT 7.0", "SELECT 7"),
        ("SELECT NULL", "SELECT country FROM customers WHERE id = 4"),
        ("SELECT country FROM customers", "SELECT country AS land FROM customers"),
        ("SELECT '2024-01-05T10:00:00'", "SELECT datetime('2024-01-05 10:00:00')"),
        ("SELECT name FROM customers WHERE 0", "SELECT name FROM customers WHERE id > 99"),
        ("SELECT name FROM customers ORDER BY country", "SELECT name FROM customers ORDER BY country"),
        ("SELECT name FROM customers ORDER BY country, id DESC", "SELECT name FROM customers ORDER BY country"),
        (
            "SELECT country, count(*) FROM customers GROUP BY 1 ORDER BY 2 DESC, 1 DESC",
            "SELECT country, count(*) AS n FROM customers GROUP BY country ORDER BY n DESC",
        ),
        (
            "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.id ORDER BY max(o.id)",
            "SELECT name FROM orders JOIN customers c ON c.id = customer_id GROUP BY name ORDER BY sum(total)",
        ),
    ],
)
def test_the_same_rows_pass(text, reference):
    assert ask(text, reference) == ("passed", "", False, None)


@pytest.mark.parametrize(
    ("text", "reference", "says"),
    [
        ("SELECT name FROM customers", "SELECT name, id FROM customers", "returns 1 columns, not 2"),
        ("SELECT name FROM customers LIMIT 3", "SELECT name FROM customers", "returns 3 rows, not 4"),
        ("SELECT name FROM customers WHERE 0", "SELECT name FROM customers", "returns no rows, not 4"),
        ("SELECT DISTINCT country FROM customers", "SELECT country FROM customers", "returns 3 rows, not 4"),
        ("SELECT 'Ann' FROM customers", "SELECT name FROM customers", "('Ann'), which is wrong or there too often"),
        ("SELECT '7'", "SELECT 7", "('7'), which is wrong"),
        ("SELECT ''", "SELECT NULL", "(''), which is wrong"),
        ("SELECT 0", "SELECT NULL", "(0), which is wrong"),
        ("SELECT 10000000001", "SELECT 10000000002", "(10000000001), which is wrong"),
        ("SELECT 0.30001", "SELECT 0.3", "(0.30001), which is wrong"),
        ("SELECT id, name FROM customers", "SELECT name, id FROM customers", "which is wrong"),
        ("SELECT name FROM customers ORDER BY name DESC", "SELECT name FROM customers ORDER BY name", "another order"),
        ("SELECT name FROM customers ORDER BY name", "SELECT name FROM customers ORDER BY country", "another order"),
        ("SELECT name FROM customers", "SELECT name FROM customers ORDER BY length(name), id DESC", "another order"),
    ],
)
def test_other_rows_fail_and_the_model_does_not_hear_why(text, reference, says):
    status, reason, safe, _ = ask(text, reference)
    assert (status, safe) == ("failed", False)
    assert says in reason


def test_how_rows_are_compared_is_configured():
    down, up = "SELECT name FROM customers ORDER BY name DESC", "SELECT name FROM customers ORDER BY name"
    assert ask(down, up, ordered=False)[0] == "passed"
    assert ask(down, "SELECT name FROM customers", ordered=True)[0] == "failed"
    assert ask("SELECT id, name FROM customers", "SELECT name, id FROM customers", columns="any")[0] == "passed"
    assert ask("SELECT id, id FROM customers", "SELECT name, id FROM customers", columns="any")[0] == "failed"
    assert ask("SELECT name AS x FROM customers", up, column_names=True)[1].startswith("its columns are called ('x')")
    assert ask("SELECT NAME FROM customers ORDER BY 1", up, column_names=True)[0] == "passed"
    assert ask("SELECT 3.141", "SELECT 3.14159", tolerance=0.001)[0] == "passed"


def test_rows_may_be_given_themselves():
    rows = [["Cleo", 3], ["Ann", 1.0], ["Bob", 2], ["Dan", 4]]
    assert ask("SELECT name, id FROM customers", rows=rows)[0] == "passed"
    assert ask("SELECT name, id FROM customers", rows=rows[:3])[1] == "it returns 4 rows, not 3"
    assert ask("SELECT name, id FROM customers", rows=rows, ordered=True)[0] == "failed"
    assert ask("SELECT country IS NULL FROM customers WHERE id = 4", rows=[[True]])[0] == "passed"
    assert ask("SELECT name FROM customers WHERE 0", rows=[])[0] == "passed"
    assert ask("SELECT name FROM customers", rows=[])[1] == "it returns 4 rows, not 0"


@pytest.mark.parametrize(
    "reference", ["SELECT nam FROM customers", "DROP TABLE customers", "SELECT", "SELECT 1; SELECT 2"]
)
def test_a_reference_that_cannot_be_used_is_nobodys_failure(reference):
    status, reason, _, cause = ask("SELECT name FROM customers", reference)
    assert (status, cause) == ("abstained", "bad_args")
    assert reason.startswith("the reference cannot be used: ")
    assert register(fixture=SHOP, reference=reference)["where"] == "/reference"


def test_limits_blame_the_answer_only_where_they_were_said():
    rows = "SELECT 1 FROM customers a, customers b, customers c, customers d, customers e"
    assert ask(rows)[0::3] == ("abstained", "too_costly")
    assert ask(rows, max_rows=10)[:3] == ("failed", "the query returns more than 10 rows", True)
    assert ask(rows, "SELECT 1")[:3] == ("failed", "the query returns more than 1,000 rows, and 1 are right", False)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    assert ask(endless, timeout_s=0.05)[:3] == ("failed", "the query takes too long", True)
    assert ask(endless, execute=False)[0] == "passed"
    assert ask("SELECT nam FROM customers", execute=False)[0] == "failed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT length(randomblob(1000000000))", "too big"),
        ("SELECT hex(zeroblob(190000))", "too big"),
        ("SELECT replace(hex(zeroblob(90000)), '0', hex(zeroblob(90000)))", "too big"),
        ("SELECT 'a' LIKE '" + "%a" * 200 + "'", "too complex"),
        ("SELECT * FROM pragma_table_info('customers')", "not authorized"),
        ("SELECT fts3_tokenizer('x')", "is not allowed"),
        ("SELECT " + " + ".join(["1"] * 600), "too large"),
        (" UNION ALL ".join(["SELECT 1"] * 300), "too many terms"),
        ("SELECT json_extract('[', '$')", "malformed JSON"),
    ],
)
def test_what_sqlite_refuses_fails(text, says):
    status, reason, safe, _ = ask(text)
    assert (status, safe) == ("failed", True)
    assert says in reason


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT " + "abs(" * 3000,
        "SELECT " + "NOT " * 4000 + "1",
        "SELECT '" + "x" * 30_000 + "'",
        "SELECT " + "CASE WHEN " * 1500,
    ],
)
def test_what_is_too_deep_or_too_long_is_not_judged(text):
    assert ask(text)[0::3] == ("abstained", "too_costly")


def test_a_fixture_is_only_read():
    for text in ("SELECT name FROM customers", "DELETE FROM customers", "WITH d AS (SELECT 1) DELETE FROM customers"):
        ask(text)
    assert ask("SELECT count(*) FROM customers", rows=[[4]])[0] == "passed"
    fixture = sql_job._open_fixture({"fixture": SHOP})
    for statement in (  # as if the parser had let them through
        "DELETE FROM customers", "DELETE FROM customers RETURNING *", "CREATE TEMP TABLE x (y)",
        "PRAGMA query_only = OFF", "ATTACH ':memory:' AS x", "VACUUM INTO '/nowhere/x.db'",
        "REPLACE INTO customers VALUES (1, 'x', 'y')",
        "BEGIN", "SELECT load_extension('x')", "SELECT 1; DELETE FROM customers",
    ):  # fmt: skip
        with pytest.raises(sql_job.Failed):
            fixture.run(statement, max_rows=10, timeout_s=1)
    assert fixture.run("SELECT count(*) FROM customers", max_rows=10, timeout_s=1).rows == [(4,)]


@pytest.mark.parametrize(
    ("fixture", "says"),
    [
        ("CREAT TABLE x (y)", 'near "CREAT": syntax error'),
        ("CREATE TABLE x (y); INSERT INTO x VALUES (1, 2)", "has 1 columns but 2 values"),
        ("ATTACH '/nowhere/x.db' AS x", "does what it may not"),
        ("VACUUM INTO '/nowhere/x.db'", "does what it may not"),
        ("SELECT load_extension('x')", "not authorized"),
        ("\0", "null character"),
    ],
)
def test_a_fixture_that_cannot_be_built_is_refused(fixture, says):
    flaw = register(fixture=fixture)
    assert flaw["where"] == "/fixture"
    assert says in flaw["message"]


def test_a_schema_has_to_be_the_fixtures():
    assert register(fixture=SHOP, schema=SCHEMA) == {"message": None, "where": None}
    flaw = register(fixture=SHOP, schema={"clients": {"id": "integer"}})
    assert flaw == {"message": "the fixture has no table 'clients'", "where": "/schema"}


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"fixture": SHOP, "database": "shop"}, "/database"),
        ({"database": "shop", "dialect": "mysql"}, "/dialect"),
        ({"fixture": SHOP, "search_path": ["x"]}, "/search_path"),
        ({"reference": "SELECT 1"}, "/reference"),
        ({"schema": {}}, "/schema"),
        ({"dialect": "klingon"}, "/dialect"),
        ({"fixture": ""}, "/fixture"),
        ({"timeout_s": 60}, "/timeout_s"),
        ({"url": "postgresql://x"}, "(root)"),
    ],
)
def test_a_configuration_without_sense_is_refused(config, where):
    with pytest.raises(InvalidVerifier) as refused:
        sql.KIND.compile_checked(config)
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("config", "args", "where"),
    [
        ({"fixture": SHOP}, {"reference": "SELECT 1", "rows": [[1]]}, "/rows"),
        ({"schema": SCHEMA}, {"reference": "SELECT 1"}, "/reference"),
        ({"schema": SCHEMA}, {"rows": []}, "/rows"),
        ({"fixture": SHOP}, {"rows": [[1], [1, 2]]}, "/rows/1"),
        ({"fixture": SHOP, "max_rows": 1}, {"rows": [[1], [2]]}, "/rows"),
        ({"fixture": SHOP}, {"rows": [[{}]]}, "/rows/0/0"),
        ({"fixture": SHOP}, {"dialect": "mysql"}, "(root)"),
    ],
)
def test_arguments_without_sense_are_refused(config, args, where):
    with pytest.raises(InvalidArgs) as refused:
        sql.KIND.check_args(config, args)
    assert refused.value.where == where


def test_naming_a_database_is_what_needs_a_scope():
    assert sql.KIND.find_needs({"database": "shop"}) == {"network"}
    assert sql.KIND.find_needs({"fixture": SHOP}) == frozenset()
    assert sql.KIND.find_needs(["database"]) == frozenset()


def test_every_dialect_is_one_of_sqlglots():
    assert set(sql.DIALECTS) <= {dialect.value for dialect in sqlglot.Dialects}


@pytest.mark.parametrize("name", ["sum", "glob", "pg_typeof", "strftime", "json_each", "lower", "filename", "logged"])
def test_harmless_functions_are_not_barred(name):
    assert not bars(name)


def test_rows_that_differ_a_little_are_matched_one_to_one():
    def compare(got, want, **rules):
        width = len(got[0])
        return explain_difference(Result(("",) * width, got), Result(("",) * width, want), Rules(**rules))

    third = 0.1 + 0.2
    assert not compare([(third, "b"), (0.3, "a")], [(0.3, "b"), (third, "a")])
    assert compare([(third, "b"), (third, "b")], [(0.3, "b"), (0.3, "a")])
    assert compare([(0.3,), (0.3,), (0.4,)], [(0.3,), (0.4,), (0.4,)])
    assert not compare([(float("inf"),)], [(float("inf"),)])
    assert compare([(10**400,)], [(1.0,)])
    many = [(number + 0.5,) for number in range(MAX_LEFT_OVER + 1)]
    with pytest.raises(TooManyWays):
        compare([(cell + 1e-12,) for (cell,) in many], many)
    even, odd = (0, 1) * 6, (1, 0) * 6
    assert not compare([even, odd], [odd, even], columns="any")
    with pytest.raises(TooManyWays):
        compare([(0,) * 12, (1,) * 12], [even, odd], columns="any")


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("SELECT a FROM t ORDER BY a", [0]),
        ("SELECT a, b FROM t ORDER BY 2, a", [1, 0]),
        ("SELECT a FROM t ORDER BY b, a, c", [-2, 0, -1]),
        ("SELECT * FROM t ORDER BY a", [-1]),
        ("SELECT a AS x FROM t ORDER BY x DESC", [0]),
        ("SELECT DISTINCT a FROM t ORDER BY a", [0]),
        ("SELECT DISTINCT a FROM t ORDER BY b", []),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY a", [0]),
        ("SELECT a FROM t", []),
    ],
)
def test_the_keys_of_an_order_are_found(query, keys):
    assert add_keys(read_statement(query, "sqlite"), "sqlite")[1] == keys
