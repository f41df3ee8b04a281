"""Starts Mulligan as its users do, on a new database: `mulligan db upgrade`, `keys create`, `serve`.

Afterwards the log is counted: every answer has to be in it. Called by `bench.gateway.rows`.
"""

import asyncio
import json
import os
import re
import secrets
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import asyncpg

from bench.gateway.script import SCHEMA
from bench.gateway.setting import Setting, Start
from bench.gateway.start import Cores, NotMeasured, Started, find_port, start_gateway

CHECKED_TASK = "bench-checked"


class LogIncomplete(Exception):
    """Says that an answer which was given is not in the log."""


def mulligan(database: str, *, workers: int = 1, all_cores: bool = False) -> Start:
    """Mulligan on a new database, with authentication, the durable episode log and one task that verifies.

    `all_cores` lets it have every core of the machine, where `workers` are compared.
    """

    @contextmanager
    def start(setting: Setting) -> Iterator[Started]:
        if all_cores:
            everything = setting.cores.gateway | setting.cores.rest
            setting = replace(setting, cores=Cores(everything, everything))
        name = f"mulligan {database} {workers}{' all' * all_cores}"
        folder = setting.folder / name.replace(" ", "-")
        folder.mkdir()
        with open_database(database, folder, setting.postgres) as url:
            with serve(setting, name, folder, url, workers) as api:
                api.find_beside = partial(find_backends, url) if database == "postgres" else None
                yield api
            _check_log(url, api)

    return start


@contextmanager
def serve(setting: Setting, name: str, folder: Path, url: str, workers: int) -> Iterator[Started]:
    """Run `mulligan serve` on a database that is brought up to date first."""
    where = ["--data-dir", str(folder), "--database-url", url]
    port = find_port()
    run_mulligan(setting, "db", "upgrade", *where)
    made = run_mulligan(setting, "keys", "create", "bench", "--role", "admin", "--json", *where)
    several = ["--workers", str(workers)] if workers > 1 else []
    arguments = ["serve", "--port", str(port), "--engine-url", setting.engine.url, *where, *several]
    with start_gateway(
        name,
        setting.run_module("server.cli", *arguments),
        port=port,
        cores=setting.cores.gateway,
        folder=setting.folder,
        env=mulligan_environment(),
        cwd=setting.checkout,
        ready_path="/ready",
        headers={"authorization": f"Bearer {json.loads(made)['secret']}"},
    ) as api:
        _register_task(api)
        yield api


def mulligan_environment() -> dict[str, str]:
    """Make the environment of Mulligan's commands: the user's own settings must not leak in."""
    ours = {name: "" for name in os.environ if name.upper().startswith("MULLIGAN_")}
    return {name: value for name, value in os.environ.items() if name not in ours} | {"MULLIGAN_LOG_LEVEL": "warning"}


def run_mulligan(setting: Setting, *arguments: str) -> str:
    """Run one command of `mulligan`. Raises: NotMeasured with what it said."""
    command = [setting.python, "-m", "server.cli", *arguments]
    done = subprocess.run(
        command,
        env=mulligan_environment(),
        cwd=setting.checkout,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise NotMeasured(f"mulligan {' '.join(arguments[:2])}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _register_task(api: Started) -> None:
    verifier = {"name": "bench-order", "kind": "json_schema", "config": {"schema": SCHEMA}}
    task = {"name": CHECKED_TASK, "verifiers": ["bench-order@1"], "verify": "enforce"}
    for path, body in (("/v1/verifiers", verifier), ("/v1/tasks", task)):
        status, said = api.ask("POST", path, json.dumps(body).encode())
        if status != 201:
            raise NotMeasured(f"{api.name}: POST {path} gave {status}: {said[:300]!r}")


@contextmanager
def open_database(kind: str, folder: Path, postgres: str) -> Iterator[str]:
    """Make an empty database, and drop it afterwards. Raises: NotMeasured where no server answers."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'mulligan.db'}"
        return
    name = f"mulligan_bench_{secrets.token_hex(6)}"
    try:
        asyncio.run(_execute(postgres, f"CREATE DATABASE {name}"))
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise NotMeasured(f"no PostgreSQL at {hide_password(postgres)} ({error}): name one with --postgres") from error
    try:
        base, _, query = postgres.partition("?")
        yield base.rsplit("/", 1)[0] + "/" + name + (f"?{query}" if query else "")
    finally:
        asyncio.run(_execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


def find_backends(url: str) -> list[int]:
    """Find PostgreSQL's processes that serve this database; none where it runs on another machine."""
    statement = """
        SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    there = asyncio.run(_execute(url, statement))
    return [pid for pid in there if _is_postgres(pid)] if isinstance(there, list) else []


def _is_postgres(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
    except OSError:
        return False


async def _execute(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def _check_log(url: str, api: Started) -> None:
    """Check that every answer is in the log. Raises: LogIncomplete."""
    if (logged := count_episodes(url)) != api.answered:
        raise LogIncomplete(f"{api.name}: {api.answered} answers were given, and {logged} episodes are in the log")


def hide_password(url: str) -> str:
    """Leave the password out of a URL."""
    return re.sub(r"//([^:/@]+):[^@]*@", r"//\1:***@", url)


def count_episodes(url: str) -> int:
    """Count the episodes in the log."""
    statement = "SELECT count(*) FROM episodes"
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30) as connection:
            return connection.execute(statement).fetchone()[0]
    return int(str(asyncio.run(_execute(url, statement))))
