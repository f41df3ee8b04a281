"""The migrations, on both dialects."""

import asyncio
import json
import multiprocessing
import sys
from pathlib import Path

import alembic.config
import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, inspect
from sqlalchemy.exc import IntegrityError

from server.domain import KeyLimits, Task
from server.store import migrations
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.partitions import include_on, is_partition
from server.store.tables import metadata
from server.store.tasks import TaskStore

HEAD = "0013"


async def inspect_database(url: str, work):
    database = Database(url)
    try:
        async with database.engine.connect() as connection:
            return await connection.run_sync(work)
    finally:
        await database.close()


def list_tables(connection: Connection) -> set[str]:
    return {name for name in inspect(connection).get_table_names() if not is_partition(name)} - {"alembic_version"}


def compare(target: MetaData):
    def work(connection: Connection) -> list[object]:
        opts = {"compare_type": True, "include_object": include_on(connection.dialect.name)}
        return compare_metadata(MigrationContext.configure(connection, opts=opts), target)

    return work


async def test_up_down_up(empty_database_url: str) -> None:
    url = empty_database_url
    assert migrations.current(url) is None
    migrations.upgrade(url)
    assert migrations.current(url) == HEAD
    assert await inspect_database(url, list_tables) == set(metadata.tables)
    migrations.upgrade(url)
    migrations.downgrade(url)
    assert migrations.current(url) is None
    assert await inspect_database(url, list_tables) == set()
    migrations.upgrade(url)
    assert await inspect_database(url, list_tables) == set(metadata.tables)


async def run_sql(url: str, *statements: str) -> list[list[tuple]]:
    database = Database(url)
    try:
        async with database.engine.begin() as connection:
            results = [await connection.exec_driver_sql(statement) for statement in statements]
            return [[tuple(row) for row in result] if result.returns_rows else [] for result in results]
    finally:
        await database.close()


def load(value):
    return json.loads(value) if isinstance(value, str) else value


async def test_old_scopes_become_roles_and_go_back(empty_database_url: str) -> None:
    url = empty_database_url
    migrations.upgrade(url, "0001")
    olds = {
        "a": ["inference"],
        "b": ["verifiers"],
        "c": ["inference", "admin"],
        "d": ["inference", "verifiers"],
        "e": [],
    }
    await run_sql(
        url,
        *(
            "INSERT INTO api_keys (id, name, sha256, scopes, created_at) "
            f"VALUES ('{name}', 'n', '{name}', '{json.dumps(scopes)}', 1)"
            for name, scopes in olds.items()
        ),
        "INSERT INTO tasks VALUES ('sql', '[]', 'off', '{}', '{}', '{}', '', 0, 1)",
    )
    migrations.upgrade(url)
    registers = ["inline_verifiers", "register_verifiers", "register_code"]
    found, tasks = await run_sql(
        url,
        "SELECT id, role, scopes, revoked_at IS NULL FROM api_keys ORDER BY id",
        "SELECT unknown_fields FROM tasks",
    )
    assert [(name, role, load(scopes), bool(live)) for name, role, scopes, live in found] == [
        ("a", "client", ["inline_verifiers"], True),
        ("b", "client", registers, True),
        ("c", "admin", [], True),
        ("d", "client", registers, True),
        ("e", "client", [], False),
    ]
    assert tasks == [("refuse",)]
    migrations.downgrade(url, "0001")
    (found,) = await run_sql(url, "SELECT id, scopes, revoked_at IS NULL FROM api_keys ORDER BY id")
    assert [(name, load(scopes), bool(live)) for name, scopes, live in found] == [
        ("a", ["inference"], True),
        ("b", ["inference", "verifiers"], True),
        ("c", ["admin"], True),
        ("d", ["inference", "verifiers"], True),
        ("e", ["inference"], False),
    ]


async def test_a_key_that_the_old_schema_could_not_hold_back_ends_with_it(empty_database_url: str) -> None:
    migrations.upgrade(empty_database_url)
    database = Database(empty_database_url)
    keys = KeyStore(database)
    await TaskStore(database).create(Task("sql"))
    made = {
        "free": {},
        "tasks": {"tasks": ["sql"]},
        "limits": {"limits": KeyLimits(max_concurrent=1)},
        "expires": {"expires_at": 4e9},
        "private": {"trains": False},
        "bare": {"scopes": []},
        "viewer": {"role": "viewer"},
        "admin": {"role": "admin"},
    }
    for name, fields in made.items():
        await keys.create(name, **fields)
    await database.close()
    migrations.downgrade(empty_database_url, "0001")
    (found,) = await run_sql(empty_database_url, "SELECT name FROM api_keys WHERE revoked_at IS NULL")
    assert {name for (name,) in found} == {"free", "viewer", "admin"}
    (found,) = await run_sql(empty_database_url, "SELECT scopes FROM api_keys WHERE name = 'viewer'")
    assert load(found[0][0]) == []


async def test_the_migrations_build_what_the_tables_say(database_url: str) -> None:
    assert await inspect_database(database_url, compare(metadata)) == []


async def test_that_comparison_would_notice(database_url: str) -> None:
    changed = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        table.to_metadata(changed)
    changed.tables["episodes"].append_column(Column("extra", Integer))
    changed.tables["rounds"].indexes.clear()
    changed.tables["tasks"].c.generation.nullable = True
    kinds = {
        difference[0] if isinstance(difference, tuple) else difference[0][0]
        for difference in await inspect_database(database_url, compare(changed))
    }
    assert kinds >= {"add_column", "remove_index", "modify_nullable"}


async def test_an_open_round_is_unique_in_the_database_itself(database: Database) -> None:
    insert = metadata.tables["rounds"].insert()
    blank = dict.fromkeys(("phase", "reason", "adapter", "parent", "owner"), "")
    blank |= dict.fromkeys(("epoch", "leases", "heartbeat_at", "steps_done", "steps_total"), 0)
    blank |= dict.fromkeys(("created_at", "started_at", "ended_at"), 0)
    blank |= {"task": "sql", "cancel_requested": False, "options": {}, "report": {}}
    async with database.write() as connection:
        await connection.execute(insert.values(id="a", number=1, state="queued", **blank))
        await connection.execute(insert.values(id="b", number=2, state="promoted", **blank))
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(insert.values(id="c", number=3, state="running", **blank))


async def test_processes_that_upgrade_at_once_do_not_break(empty_database_url: str) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.integration.store.children"])
    children = [processes.Process(target=migrations.upgrade, args=(empty_database_url,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0
        child.close()
    assert migrations.current(empty_database_url) == HEAD
    assert await inspect_database(empty_database_url, list_tables) == set(metadata.tables)


@pytest.mark.postgres
async def test_an_upgrade_waits_for_the_one_before(empty_postgres_url: str) -> None:
    """While one process holds the lock another one waits, and does nothing; then it goes on by itself."""
    command = [sys.executable, "-m", "server.cli", "db", "upgrade", "--database-url", empty_postgres_url]
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (" \
            "SELECT oid FROM pg_database WHERE datname = current_database())"  # fmt: skip
    holder = await asyncpg.connect(empty_postgres_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock($1)", migrations.ADVISORY_LOCK)
            waiter = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            async with asyncio.timeout(60):
                while not await holder.fetchval(locks):
                    assert waiter.returncode is None
                    await asyncio.sleep(0.05)
            assert await holder.fetchval("SELECT to_regclass('tasks')") is None
        async with asyncio.timeout(120):
            _, said = await waiter.communicate()
    finally:
        await holder.close()
    assert waiter.returncode == 0
    assert b"waiting for it" in said
    assert migrations.current(empty_postgres_url) == migrations.newest()


@pytest.mark.postgres
async def test_whoever_asks_for_the_revision_waits_for_nobody(postgres_url: str) -> None:
    holder = await asyncpg.connect(postgres_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock($1)", migrations.ADVISORY_LOCK)
            assert await asyncio.wait_for(asyncio.to_thread(migrations.current, postgres_url), 30) == HEAD
    finally:
        await holder.close()


def test_whoever_asks_for_the_revision_makes_no_database(tmp_path: Path) -> None:
    assert migrations.current(f"sqlite:///{tmp_path / 'none' / 'mulligan.db'}") is None
    assert list(tmp_path.iterdir()) == []


async def test_upgrading_works_under_a_running_loop_and_from_any_folder(
    empty_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    migrations.upgrade(empty_sqlite_url)
    assert migrations.current(empty_sqlite_url) == HEAD


def test_the_alembic_command_works_with_the_settings(empty_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULLIGAN_DATABASE_URL", empty_sqlite_url)
    for arguments in (["upgrade", "head"], ["check"]):  # `check` exits where it finds a difference
        alembic.config.main(["-c", str(migrations.REPOSITORY / "alembic.ini"), *arguments])
    assert migrations.current(empty_sqlite_url) == HEAD


def test_the_migrations_folder_is_no_package() -> None:
    """With an `__init__.py` it would hide the library of the same name."""
    assert not (migrations.REPOSITORY / "alembic" / "__init__.py").exists()
