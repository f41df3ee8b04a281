"""Backups: everything comes back, on the same dialect and on the other, and what is damaged is refused by name."""

import asyncio
import hashlib
import json
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import insert, select
from typer.testing import CliRunner

from server.cli import app
from server.domain import Adapter, AdapterStatus, Event, Feedback, Outcome, Task, TaskVerifier
from server.settings import LogSettings
from server.store import migrations
from server.store.adapters import AdapterStore
from server.store.backup import LIVING
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.events import EventStore
from server.store.feedback import FeedbackStore
from server.store.presence import PresenceStore
from server.store.tables import metadata, tasks
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from tests.fixtures.episodes import make_episode
from tests.fixtures.server import make_keys, serve_api, with_database
from tests.fixtures.wire_engine import serve_wire_engine

CHAMPION = "sums@1"
WEIGHTS = b"weights" * 1000
runner = CliRunner()


def run(*words: str, fails: str = "") -> str:
    result = runner.invoke(app, words)
    if fails:
        assert result.exit_code == 1
        assert fails in str(result.exception), result.exception
        return ""
    if result.exception:
        raise result.exception
    return result.stdout


def fill(url: str, folder: Path) -> dict[str, str]:
    """Make a server that has one of most things; returns its keys."""
    path = folder / "adapters" / "sums" / CHAMPION
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (path / "adapter_config.json").write_text("{}")
    files = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in path.iterdir()}

    async def work(database: Database) -> None:
        await VerifierStore(database).add("four", "regex", {"pattern": "4"})
        await TaskStore(database).create(Task("default"))
        await TaskStore(database).create(Task("sums", (TaskVerifier("four", 1),)))
        await AdapterStore(database).add(Adapter(CHAMPION, "sums", str(path), files, AdapterStatus.CHAMPION))
        async with database.write() as connection:
            await connection.execute(
                tasks.update().where(tasks.c.name == "sums").values(champion=CHAMPION, generation=7)
            )
        log = EpisodeLog(database, LogSettings(), folder / "spool")
        await log.start()
        made = [make_episode(), make_episode(Outcome.EXHAUSTED, store=False), make_episode(question="\N{SNOWMAN}")]
        await asyncio.gather(*map(log.record, made))
        await log.stop()
        await FeedbackStore(database).give(Feedback(made[0].id, "nightly", "k", passed=True, score=0.25))
        await FeedbackStore(database).give(Feedback(made[0].id, "nightly", "k", passed=False), overwrite=True)
        await PresenceStore(database).report("api_gone", {}, {})
        async with database.write() as connection:
            await connection.execute(metadata.tables["presence"].update().values(seen_at=0.0))

    with_database(url, work)
    return make_keys(url)


def dump(url: str) -> dict[str, list]:
    """Read every row of every table that a backup has, but for where adapters lie."""

    async def work(database: Database) -> dict[str, list]:
        found = {}
        async with database.read() as connection:
            for table in metadata.sorted_tables:
                if table.name not in LIVING:
                    columns = [column for column in table.columns if (table.name, column.name) != ("adapters", "path")]
                    rows = await connection.execute(select(*columns).order_by(*table.primary_key.columns))
                    found[table.name] = [tuple(row) for row in rows]
        return found

    return with_database(url, work)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def source(request, tmp_path: Path) -> tuple[str, Path, dict[str, str]]:
    url, folder = request.getfixturevalue(f"{request.param}_url"), tmp_path / "source"
    folder.mkdir()
    return url, folder, fill(url, folder)


def restore(archive: Path, url: str, folder: Path, *more: str, fails: str = "") -> str:
    return run("restore", str(archive), "--data-dir", str(folder), "--database-url", url, *more, fails=fails)


def back_up(source, archive: Path) -> dict:
    url, folder, _ = source
    return json.loads(run("backup", str(archive), "--data-dir", str(folder), "--database-url", url, "--json"))


def test_everything_comes_back_on_either_dialect_and_serves(source, empty_database_url: str, tmp_path: Path):
    url, _, keys = source
    archive, folder = tmp_path / "b.zip", tmp_path / "target"
    said = back_up(source, archive)
    assert (said["schema"], said["adapters"], said["files"]) == (migrations.newest(), 1, 2)
    assert archive.stat().st_mode & 0o077 == 0
    restore(archive, empty_database_url, folder)
    before, after = dump(url), dump(empty_database_url)
    assert after == before
    assert sum(map(len, after.values())) > 15
    path = folder / "adapters" / "sums" / CHAMPION
    assert (path / "adapter_model.safetensors").read_bytes() == WEIGHTS

    async def add_event(database: Database) -> int:
        await EventStore(database).add(Event("after", "x"))
        return len(await EventStore(database).list())

    assert with_database(empty_database_url, add_event) == len(before["events"]) + 1  # numbers go on

    if url.partition(":")[0] == empty_database_url.partition(":")[0]:
        return  # the other two pairs serve, one on each dialect: a server takes seconds to start
    with serve_wire_engine() as engine, serve_api(folder, empty_database_url, engine.url, keys=keys) as server:
        body = {"model": "sums", "messages": [{"role": "user", "content": "2+2?"}]}
        status, answer, headers = server.ask("POST", "/v1/chat/completions", body, key="client")
        assert (status, headers.get("x-mulligan-adapter")) == (200, CHAMPION), answer
        assert engine.adapters[CHAMPION] == str(path)


def test_what_is_there_is_not_overwritten(source, empty_database_url: str, tmp_path: Path):
    archive, folder = tmp_path / "b.zip", tmp_path / "target"
    back_up(source, archive)
    content = archive.read_bytes()
    url, place, _ = source
    run("backup", str(archive), "--data-dir", str(place), "--database-url", url, fails="is there already")
    assert archive.read_bytes() == content
    restore(archive, empty_database_url, folder)
    restore(archive, empty_database_url, folder, fails="the database is not empty")
    restore(archive, f"sqlite:///{tmp_path / 'other.db'}", folder, fails="is not empty")
    (folder / "adapters" / "sums" / "stray").write_text("x")
    (folder / "adapters" / "elsewhere").symlink_to(place)
    with_database(empty_database_url, lambda database: TaskStore(database).create(Task("new")))
    restore(archive, empty_database_url, folder, "--replace")
    assert dump(empty_database_url) == dump(url)
    assert not (folder / "adapters" / "sums" / "stray").exists()
    assert not (folder / "adapters" / "elsewhere").is_symlink()
    assert (place / "adapters").is_dir()  # what a link leads to is none of ours


def test_a_server_that_runs_is_not_restored_over(source, sqlite_url: str, tmp_path: Path):
    archive = tmp_path / "b.zip"
    back_up(source, archive)
    with_database(sqlite_url, lambda database: PresenceStore(database).report("api_1", {}, {}))
    before = dump(sqlite_url)
    restore(archive, sqlite_url, tmp_path / "target", "--replace", fails="API processes run on this database")
    assert dump(sqlite_url) == before
    assert list((tmp_path / "target").rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    "what", ["tables/episodes.jsonl", f"adapters/sums/{CHAMPION}/adapter_config.json", "cut", "none"]
)
def test_what_is_damaged_is_named_and_nothing_is_changed(sqlite_url: str, tmp_path: Path, what: str):
    folder = tmp_path / "source"
    fill(sqlite_url, folder)
    archive, broken = tmp_path / "b.zip", tmp_path / "broken.zip"
    back_up((sqlite_url, folder, {}), archive)
    target = f"sqlite:///{tmp_path / 'new.db'}"
    if what == "cut":
        broken.write_bytes(archive.read_bytes()[:-100])
        restore(broken, target, tmp_path / "target", fails="cut off")
    elif what == "none":
        with zipfile.ZipFile(broken, "w") as file:
            file.writestr("a", "b")
        restore(broken, target, tmp_path / "target", fails="manifest.json")
    else:
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(broken, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name) + (b"\n" if name == what else b""))
        restore(broken, target, tmp_path / "target", fails=f"{what} (altered)")
        content = bytearray(archive.read_bytes())
        with zipfile.ZipFile(archive) as old:
            info = old.getinfo(what)
        names = struct.unpack_from("<HH", content, info.header_offset + 26)  # how long name and extra are
        content[info.header_offset + 30 + sum(names)] ^= 0xFF
        broken.write_bytes(content)
        restore(broken, target, tmp_path / "target", fails=what)
    assert not (tmp_path / "new.db").exists()
    assert not (tmp_path / "target" / "adapters").exists()


def forge(archive: Path, forged: Path, how: str) -> None:
    """Write an archive whose hashes are right and whose content is not."""
    with zipfile.ZipFile(archive) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(entries.pop("manifest.json"))

    def alter(table: str, change) -> None:
        lines = [json.loads(line) for line in entries[f"tables/{table}.jsonl"].splitlines()]
        content = b"".join(json.dumps(one).encode() + b"\n" for one in change(lines))
        entries[f"tables/{table}.jsonl"] = content
        manifest["tables"][table]["sha256"] = hashlib.sha256(content).hexdigest()

    place = list(manifest["tables"]["adapters"]["columns"]).index
    if how.endswith("evil"):
        entries[how] = b"evil"
        digest = hashlib.sha256(b"evil").hexdigest()
        manifest["files"][how] = {"adapter": "sums@1", "name": "evil", "bytes": 4, "sha256": digest}
    elif how == "schema":
        entries["tables/alembic_version.jsonl"] = b""
        empty = hashlib.sha256(b"").hexdigest()
        manifest["tables"]["alembic_version"] = {"columns": {"version_num": "plain"}, "rows": 0, "sha256": empty}
    elif how == "path":
        outside = f"{manifest['adapters_dir']}/../../../evil"
        alter("adapters", lambda rows: [[*row[: place("path")], outside, *row[place("path") + 1 :]] for row in rows])
    elif how == "name":
        alter("adapters", lambda rows: [["../../evil", *row[1:]] for row in rows])
        alter("adapters", lambda rows: [[*row[: place("path")], "/evil", *row[place("path") + 1 :]] for row in rows])
    elif how == "row":
        alter("tasks", lambda rows: [row[1:] for row in rows])
    else:
        alter("tasks", lambda rows: rows[1:])
    entries["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(forged, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)


FORGED = [
    ("adapters/../../evil", "leads out"), ("/tmp/evil", "leads out"), ("tables/evil", "leads out"),
    ("path", "adapters.jsonl (its rows"), ("name", "adapters.jsonl (its rows"), ("row", "tasks.jsonl (its rows"),
    ("rows", "tasks.jsonl (1 rows, not 2"), ("schema", "alembic_version"),
]  # fmt: skip


def test_a_forged_archive_is_refused_before_anything_is_replaced(sqlite_url: str, tmp_path: Path, monkeypatch):
    folder = tmp_path / "source"
    fill(sqlite_url, folder)
    back_up((sqlite_url, folder, {}), tmp_path / "b.zip")
    before, files = dump(sqlite_url), sorted(folder.rglob("*"))
    for how, says in FORGED:
        forge(tmp_path / "b.zip", tmp_path / "forged.zip", how)
        restore(tmp_path / "forged.zip", sqlite_url, folder, "--replace", fails=says)
        assert dump(sqlite_url) == before
        assert sorted(folder.rglob("*")) == files
        assert not list(tmp_path.rglob("evil"))
    # A disk that is full is found out as early.
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=100))
    restore(tmp_path / "b.zip", f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "new", fails="has room for 100")
    assert not (tmp_path / "new.db").exists()


def test_what_was_thrown_away_is_not_missed(sqlite_url: str, tmp_path: Path):
    folder = tmp_path / "source"
    fill(sqlite_url, folder)
    files = {"adapter_model.safetensors": "0" * 64}
    for name, path in (("sums@2", ""), ("sums@3", str(folder / "adapters" / "sums" / "sums@3"))):
        adapter = Adapter(name, "sums", path, files, AdapterStatus.REJECTED)
        with_database(sqlite_url, lambda database, adapter=adapter: AdapterStore(database).add(adapter))
    assert back_up((sqlite_url, folder, {}), tmp_path / "b.zip")["missing"] == []
    target = f"sqlite:///{tmp_path / 'new.db'}"
    restore(tmp_path / "b.zip", target, tmp_path / "new")
    back = with_database(target, lambda database: AdapterStore(database).get("sums@2"))
    assert back.path == ""


def test_a_damaged_champion_is_not_backed_up_silently(sqlite_url: str, tmp_path: Path):
    folder = tmp_path / "source"
    fill(sqlite_url, folder)
    weights = folder / "adapters" / "sums" / CHAMPION / "adapter_model.safetensors"
    weights.write_bytes(b"other")
    words = ("backup", str(tmp_path / "b.zip"), "--data-dir", str(folder), "--database-url", sqlite_url)
    run(*words, fails=f"the champion {CHAMPION} is damaged")
    assert list(tmp_path.glob("*b.zip*")) == []  # neither it nor a part of it

    async def retire(database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(tasks.update().values(champion=""))

    with_database(sqlite_url, retire)
    assert json.loads(run(*words, "--json"))["missing"] == [str(weights)]


def test_a_backup_of_an_earlier_schema_is_brought_up_to_date(empty_database_url: str, tmp_path: Path):
    url, archive = f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "b.zip"
    migrations.upgrade(url, "0005")

    async def add(database: Database) -> None:
        known = {"name", "verifiers", "verify", "retry", "training", "prompts", "unknown_fields", "champion"}
        blank = dict.fromkeys(known, "") | {"name": "old", "verifiers": [], "generation": 3, "created_at": 1.0}
        blank |= {"verify": "off"} | {name: {} for name in ("retry", "training", "prompts")}
        async with database.write() as connection:
            await connection.execute(insert(tasks).values(**blank))

    with_database(url, add)
    run("backup", str(archive), "--data-dir", str(tmp_path / "source"), "--database-url", url)
    restore(archive, empty_database_url, tmp_path / "target")
    assert migrations.current(empty_database_url) == migrations.newest()
    (found,) = with_database(empty_database_url, lambda database: TaskStore(database).list())
    assert (found.name, found.generation) == ("old", 3)


def test_a_backup_of_a_later_release_is_refused(sqlite_url: str, tmp_path: Path):
    folder, archive, later = tmp_path / "source", tmp_path / "b.zip", tmp_path / "later.zip"
    fill(sqlite_url, folder)
    back_up((sqlite_url, folder, {}), archive)
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(later, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b'"00', b'"99') if name == "manifest.json" else content)
    restore(later, f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "target", fails="does not know")
    assert migrations.current(f"sqlite:///{tmp_path / 'new.db'}") is None
    assert list((tmp_path / "target").rglob("*.safetensors")) == []
