"""`mulligan episodes delete` as a person runs it: it says what it did, survives kill -9, and leaves nothing behind."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from server.cli import app
from server.domain import Adapter, RoundState, Task
from server.settings import LogSettings
from server.store.adapters import AdapterStore
from server.store.backlog import _encoder
from server.store.database import Database
from server.store.episode_insert import set_aside
from server.store.episode_log import EpisodeLog
from server.store.episode_rows import COLUMNS, encode_episode
from server.store.lineage import LineageStore
from server.store.rounds import RoundStore
from server.store.spool import SpoolFile
from server.store.tables import episodes
from server.store.tasks import TaskStore
from tests.fixtures.episodes import make_episode
from tests.fixtures.server import with_database

SECRET = "the-heron-flies-at-dawn"
runner = CliRunner()


def mine(user: str = "ann"):
    return make_episode(request={"messages": [{"role": "user", "content": SECRET * 40}], "user": user})


def fill(url: str, folder: Path, count: int = 30) -> str:
    """Fill database, spool and rounds' folder with what holds the secret; returns the id of a round that used it."""

    async def work(database: Database) -> str:
        log = EpisodeLog(database, LogSettings(), folder / "spool")
        await log.start()
        made = [mine() for _ in range(count)]
        await asyncio.gather(*map(log.record, [*made, make_episode()]))
        await log.stop()
        await TaskStore(database).create(Task("countdown"))
        rounds = RoundStore(database)
        leased = await rounds.lease((await rounds.create("countdown", {})).id, "w")
        assert leased
        await LineageStore(database).record((leased.id, leased.epoch), 1, [made[0].id])
        weights = folder / "adapters" / "countdown" / "countdown@1"
        weights.mkdir(parents=True)
        await AdapterStore(database).add(Adapter("countdown@1", "countdown", str(weights), {}, round_id=leased.id))
        await rounds.update(leased.id, leased.epoch, adapter="countdown@1")
        await rounds.finish(leased.id, leased.epoch, RoundState.INCONCLUSIVE, "")
        checkpoint = folder / "rounds" / leased.id / "checkpoint"
        checkpoint.mkdir(parents=True)
        (checkpoint / "rollouts.json").write_text(SECRET)
        return leased.id

    round_id = with_database(url, work)
    dead = SpoolFile.create(folder / "spool", _encoder.encode(COLUMNS), max_bytes=10**6)
    dead.append([_encoder.encode(encode_episode(mine())) for _ in range(3)])
    dead.release()
    set_aside(folder / "spool", encode_episode(mine()), ValueError("refused"))
    return round_id


def count(url: str) -> int:
    async def ask(database: Database) -> int:
        async with database.read() as connection:
            return (await connection.execute(select(func.count()).select_from(episodes))).scalar_one()

    return with_database(url, ask)


def find_on_disk(folder: Path, *words: bytes) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and any(w in path.read_bytes() for w in words)]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request, tmp_path: Path) -> str:
    return request.getfixturevalue(f"{request.param}_url")


def test_nothing_is_left_anywhere(url: str, tmp_path: Path):
    place = ["--data-dir", str(tmp_path), "--database-url", url]
    round_id = fill(url, tmp_path)
    assert find_on_disk(tmp_path, SECRET.encode())
    planned = json.loads(
        runner.invoke(app, ["episodes", "delete", "--user", "ann", "--dry-run", "--json", *place]).stdout
    )
    assert (planned["episodes"], planned["rounds"]) == (30, [round_id])
    assert count(url) == 31
    refused = runner.invoke(app, ["episodes", "delete", "--user", "ann", *place])
    assert "give --yes" in str(refused.exception)

    result = runner.invoke(app, ["episodes", "delete", "--user", "ann", "--yes", *place])

    assert result.exit_code == 0, result.output
    assert "countdown@1 (candidate): mulligan adapters retire countdown@1" in result.stdout
    assert count(url) == 1
    assert find_on_disk(tmp_path, SECRET.encode()) == []
    if "postgres" in url and (dump := shutil.which("pg_dump")):
        dumped = subprocess.run([dump, url], capture_output=True, check=False)
        if dumped.returncode == 0:  # a client that is older than the server refuses
            assert SECRET.encode() not in dumped.stdout
            assert b"deletions" in dumped.stdout
    done = runner.invoke(app, ["adapters", "retire", "countdown@1", *place])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "adapters" / "countdown" / "countdown@1").exists()
    again = json.loads(runner.invoke(app, ["episodes", "delete", "--user", "ann", "-y", "--json", *place]).stdout)
    assert [(one["status"], one["deleted"]["episodes"]) for one in again] == [("done", 0)]
    listed = runner.invoke(app, ["episodes", "deletions", *place])
    assert listed.stdout.count("done") == 2
    assert "ann" not in listed.stdout


KILLED = """
import os, signal, sys
from server.store import deletions
deletions.BATCH = 2
kept = deletions.DeletionStore.__init__
deletions.DeletionStore.__init__ = lambda self, database: kept(self, database, batch=2)
from server.cli import main
main()
"""


def test_kill_9_at_any_moment_and_the_same_command_again(url: str, tmp_path: Path):
    fill(url, tmp_path, count=40)
    words = ["episodes", "delete", "--user", "ann", "--yes", "--data-dir", str(tmp_path), "--database-url", url]
    killed = subprocess.Popen([sys.executable, "-c", KILLED, *words])
    deadline = time.monotonic() + 60
    while count(url) > 35 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(20)
    again = [sys.executable, "-m", "server.cli", *words, "--json"]
    result = subprocess.run(again, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    done = json.loads(result.stdout)
    assert all(one["status"] == "done" for one in done)
    assert sum(one["deleted"]["episodes"] for one in done) >= 40
    assert count(url) == 1
    assert find_on_disk(tmp_path, SECRET.encode()) == []
