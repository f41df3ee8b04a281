"""Engines that can be killed and started again on the same port, and a server whose answers name their adapter."""

import asyncio
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.swaps.letters import letter_of, make_adapter, make_model
from bench.swaps.strategies import BODY, TOKENS
from server.adapters import hot_swap
from server.adapters.files import hash_file
from server.adapters.rooms import SwapRooms
from server.domain import Adapter, Task
from server.engine.launch import engine_command
from server.engine.replicas import open_replicas
from server.settings import EngineSettings
from server.store import migrations
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore

ROOT = Path(__file__).resolve().parents[3]
SGLANG_PYTHON = Path(os.environ.get("MULLIGAN_ENGINE__SGLANG_PYTHON", ROOT / ".venv-sglang/bin/python"))
TASK = "letters"
START_S = 400.0
GREEDY = {**BODY, "max_completion_tokens": TOKENS}
GREEDY.pop("max_tokens")


@dataclass
class EngineProcess:
    """An engine on a port of its own."""

    settings: EngineSettings
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command, environment = engine_command(self.settings, self.port)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=10) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the engine did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@contextmanager
def run_engine(kind: str, model: Path, folder: Path) -> Iterator[EngineProcess]:
    if kind == "sglang" and not SGLANG_PYTHON.exists():
        reason = f"no SGLang at {SGLANG_PYTHON}: run `make sglang-cpu` first"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    settings = EngineSettings.model_validate(
        {
            "kind": kind,
            "model": str(model),
            "device": "cpu",
            "threads": 1,
            "context_tokens": 256,
            "max_running_requests": 16,
            "sglang_python": str(SGLANG_PYTHON),
        }
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    engine = EngineProcess(settings, port, folder / f"engine-{port}.log")
    engine.start()
    try:
        engine.wait_ready()
        yield engine
    finally:
        engine.kill()


@pytest.fixture(scope="package")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The letters' model, and beside it the adapters `letters@1` to `letters@6`."""
    folder = tmp_path_factory.mktemp("letters")
    model = make_model(folder / "model")
    for number in range(1, 7):
        make_adapter(folder / f"{TASK}@{number}", model, letter_of(f"{TASK}@{number}"))
    return model


@pytest.fixture(scope="package", params=["local", pytest.param("sglang", marks=pytest.mark.sglang)])
def engine(request: pytest.FixtureRequest, letters: Path, tmp_path_factory) -> Iterator[EngineProcess]:
    with run_engine(request.param, letters, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@dataclass
class Shop:
    """A migrated database with the task and its adapters, and hands that promote them."""

    data_dir: Path
    database_url: str
    database: Database
    engines: EngineSettings
    seen: list[str] = field(default_factory=list)

    async def promote(self, name: str) -> Task:
        replicas = open_replicas(self.engines)
        try:
            return await hot_swap.promote(name, SwapRooms.open(self.database, replicas), actor="test")
        finally:
            await replicas.close()

    async def replicas_seen(self) -> list[dict[str, list[str]]]:
        """What each API process says of the engines that it asks."""
        live = await PresenceStore(self.database).live(60)
        return [{url: list(names) for url, names in process.replicas.items()} for process in live]


@pytest.fixture
async def open_shop(tmp_path: Path, letters: Path) -> AsyncIterator[Callable[..., Any]]:
    opened: list[Database] = []

    async def open_one(*urls: str) -> Shop:
        data_dir = tmp_path / "data"
        data_dir.mkdir()
        database_url = f"sqlite:///{data_dir / 'mulligan.db'}"
        await asyncio.to_thread(migrations.upgrade, database_url)
        database = Database(database_url)
        opened.append(database)
        await TaskStore(database).create(Task(TASK))
        for number in range(1, 7):
            path = letters.parent / f"{TASK}@{number}"
            files = {file.name: hash_file(file) for file in sorted(path.iterdir())}
            await AdapterStore(database).add(Adapter(f"{TASK}@{number}", TASK, str(path), files))
        return Shop(data_dir, database_url, database, EngineSettings(url=urls[0], urls=urls, model=str(letters)))

    yield open_one
    for database in opened:
        await database.close()
