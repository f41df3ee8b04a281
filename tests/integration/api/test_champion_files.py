"""A champion whose file is missing or altered makes a process unready, and is told by name to who may know."""

import asyncio
from pathlib import Path

import pytest

from server import app as application
from server.adapters.files import hash_file
from server.adapters.model_files import fingerprint_model
from server.api.champion_files import ChampionFiles
from server.api.watch import Readiness
from server.domain import Adapter, Task
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.tasks import TaskStore
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine


class Snapshot:
    """Stands for the roster's: the tasks that are served."""

    def __init__(self, *tasks: Task) -> None:
        self.snapshot = self
        self.tasks = {task.name: task for task in tasks}


@pytest.fixture
async def champion(sqlite_url: str, tmp_path: Path):
    database = Database(sqlite_url)
    folder = tmp_path / "sums@1"
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    adapters = AdapterStore(database)
    await TaskStore(database).create(Task("sums"))
    await adapters.add(Adapter("sums@1", "sums", str(folder), {weights.name: hash_file(weights)}))
    yield adapters, weights
    await database.close()


async def test_a_champions_file_that_is_altered_gone_or_back_is_seen(champion):
    adapters, weights = champion
    readiness = Readiness()
    files = ChampionFiles(Snapshot(Task("sums", champion="sums@1")), adapters, readiness)
    await files.look()
    assert readiness.broken == {}
    weights.write_bytes(b"weights of another")
    await files.look()
    assert "is not the one that was registered" in readiness.broken["sums@1"]
    weights.unlink()
    await files.look()
    assert "lacks its file 'adapter_model.safetensors'" in readiness.broken["sums@1"]
    weights.write_bytes(b"weights")
    await files.look()
    assert readiness.broken == {}


async def test_a_canarys_files_count_and_an_adapter_that_the_database_lost_is_told(champion):
    adapters, weights = champion
    readiness = Readiness()
    weights.unlink()
    tried = Snapshot(Task("sums", champion="sums@9", canary="sums@1", canary_share=0.1))
    await ChampionFiles(tried, adapters, readiness).look()
    assert set(readiness.broken) == {"sums@1", "sums@9"}
    assert "is not in the database" in readiness.broken["sums@9"]


def test_models_are_told_apart_by_their_bytes_wherever_they_lie(tmp_path):
    def make(name: str, weights: bytes) -> str | None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        return fingerprint_model(folder)

    body = bytes(range(256)) * 4096
    assert make("one", body) == make("copy", body)
    assert make("longer", body + b"\0") != make("tail", body[:-1] + b"\1") != make("again", body)
    assert fingerprint_model(tmp_path) is None


async def test_ready_fails_and_names_the_adapter_to_who_may_know(monkeypatch, champion, sqlite_url, tmp_path):
    monkeypatch.setattr(application, "FILES_INTERVAL_S", 0.05)
    _, weights = champion
    database = Database(sqlite_url)
    secret = (await KeyStore(database).create("k", "viewer"))[0]
    await TaskStore(database).flip_champion("sums", "sums@1", expected_generation=0)
    await database.close()
    engine = ScriptedEngine(adapters={"sums@1": str(weights.parent)})
    app = application.create_app(Settings(data_dir=tmp_path, database_url=sqlite_url), open_engine=lambda _: engine)

    async def wait_for(status: int) -> dict:
        for _ in range(200):
            ready = await ask(app, "GET", "/ready", key=secret)
            if ready.status == status:
                return ready.json()
            await asyncio.sleep(0.05)
        raise AssertionError(ready.json())

    async with app.rest.router.lifespan_context(app.rest):
        assert (await wait_for(200))["broken"] == {}
        weights.write_bytes(b"weights of another")
        said = await wait_for(503)
        assert said["missing"] == ["adapter files"]
        assert "is not the one that was registered" in said["broken"]["sums@1"]
        unknown = (await ask(app, "GET", "/ready")).json()
        assert unknown["missing"] == ["adapter files"]
        assert "broken" not in unknown
        weights.write_bytes(b"weights")
        await wait_for(200)
