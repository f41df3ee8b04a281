"""A tiny model on a real local engine, a real SQLite store with failures of its own making, and a real worker.

Torch runs on one thread: two threads on shared cores are ten times slower. No telemetry from the hub's library.
"""

import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import asyncio
import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
import torch

from server.domain import (
    Binding,
    Episode,
    Outcome,
    RetryPolicy,
    Round,
    RoundState,
    Task,
    TrainingPolicy,
    VerifyMode,
    new_id,
)
from server.engine.launch import engine_command
from server.engine.sglang import SGLangEngine
from server.orchestration.episode import run
from server.orchestration.verification import bind
from server.settings import EngineSettings, Settings
from server.store import migrations
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from tests.fixtures.models import make_model
from trainer.desk import Stores

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[3]
SGLANG_PYTHON = Path(os.environ.get("MULLIGAN_ENGINE__SGLANG_PYTHON", ROOT / ".venv-sglang/bin/python"))
REDIS = os.environ.get("MULLIGAN_TEST_REDIS", "redis://127.0.0.1:6379")
CHECK = Binding("regex", {"pattern": "[a-m]"}, "early", 1)  # random letters pass it now and then
OPTIONS = {
    "steps": 2, "min_failures": 4, "step_failures": 6, "group_size": 4, "minibatch_sequences": 16,
    "microbatch_sequences": 16, "learning_rate": 1e-2, "lora_rank": 4, "lora_alpha": 8, "threads": 1,
    "gate_problems": 6, "gate_min_problems": 2, "bootstrap_draws": 200, "drain_timeout_s": 2.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), arch="llama", hidden=32, heads=2, scripted=False)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_engine(kind: str, model_path: Path, folder: Path) -> Iterator[str]:
    """Serve an engine by the command line that the supervisor uses; give its URL."""
    settings = EngineSettings(
        kind=kind, model=str(model_path), device="cpu", threads=1, sglang_python=str(SGLANG_PYTHON)
    )
    port = find_port()
    argv, environment = engine_command(settings, port)
    log = folder / "engine.log"
    with log.open("w") as file:
        engine = subprocess.Popen(argv, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        asyncio.run(_wait_for_engine(f"http://127.0.0.1:{port}", engine, log))
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait(20)


@pytest.fixture(scope="session")
def engine_url(model_path, tmp_path_factory) -> Iterator[str]:
    yield from serve_engine("local", model_path, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def sglang_url(model_path, tmp_path_factory) -> Iterator[str]:
    if not SGLANG_PYTHON.exists():
        reason = f"no SGLang at {SGLANG_PYTHON}: run `make sglang-cpu` first"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield from serve_engine("sglang", model_path, tmp_path_factory.mktemp("sglang"))


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Redis database of our own choice, swept of what this test leaves."""
    url = f"{REDIS}/{secrets.choice(range(1, 8))}"
    client = redis.Redis.from_url(url, socket_connect_timeout=2)
    try:
        client.ping()
    except redis.ConnectionError as error:
        client.close()
        if os.environ.get("CI") == "true":
            pytest.fail(f"Redis is missing in CI: {error}")
        pytest.skip(f"no Redis at {REDIS}: {error}")
    before = set(client.keys())
    yield url
    if left := set(client.keys()) - before:
        client.delete(*left)
    client.close()


async def _wait_for_engine(url: str, engine: subprocess.Popen, log: Path) -> None:
    client = SGLangEngine(url)
    try:
        for _ in range(1500):
            if await client.ready():
                return
            assert engine.poll() is None, log.read_text()
            await asyncio.sleep(0.2)
        raise AssertionError(log.read_text())
    finally:
        await client.close()


EMBEDDED = "embedded"
SERVICES = pytest.param("services", marks=[pytest.mark.postgres, pytest.mark.redis])
SGLANG = pytest.param("sglang", marks=[pytest.mark.sglang, pytest.mark.slow])


@pytest.fixture(params=[EMBEDDED])
def settings(request, tmp_path, model_path) -> Settings:
    """The embedded shape; tests may ask for PostgreSQL with Redis (`SERVICES`), or the real SGLang (`SGLANG`)."""
    urls = {}
    if request.param == "services":
        urls = {
            "database_url": request.getfixturevalue("postgres_url"),
            "broker_url": request.getfixturevalue("redis_url"),
        }
    engine_url = request.getfixturevalue("sglang_url" if request.param == "sglang" else "engine_url")
    made = Settings(
        data_dir=tmp_path / "data",
        engine=EngineSettings(url=engine_url, model=str(model_path)),
        worker_heartbeat_s=0.3,
        worker_lost_after_s=3.0,
        beat_interval_s=1.0,
        **urls,
    )
    made.data_dir.mkdir()
    migrations.upgrade(made.database_url)
    return made


@pytest.fixture
async def stores(settings) -> AsyncIterator[Stores]:
    database = Database(settings.database_url)
    yield Stores.open(database)
    await database.close()


@pytest.fixture
async def engine(settings) -> AsyncIterator[SGLangEngine]:
    client = SGLangEngine(settings.engine.url)
    yield client
    await client.close()


@pytest.fixture
async def task(settings, stores, engine) -> Task:
    """A task with logged failures, some of them recovered, and held-out problems."""
    database = Database(settings.database_url)
    log = EpisodeLog(database, settings.log, settings.spool_dir)
    await log.start()
    policy = RetryPolicy(reflection_max_tokens=6)
    await stores.verifiers.add(CHECK.name, CHECK.kind, CHECK.config)
    made = await stores.tasks.create(Task("letters", retry=policy, training=TrainingPolicy(options=OPTIONS)))

    async def ask(number: int) -> None:
        messages = [{"role": "user", "content": f"Say {number}."}]
        episode = Episode(
            new_id("ep"), "letters", "letters", "base", "", "key", {"messages": messages}, (CHECK,),
            VerifyMode.ENFORCE, policy, created_at=time.time(), split="held_out" if number % 3 == 0 else "training",
        )  # fmt: skip
        body = {"messages": messages, "temperature": 1.0, "max_completion_tokens": 3}
        await log.record(await run(episode, engine=engine, verify=bind(episode.bindings), body=body))

    await asyncio.gather(*(ask(number) for number in range(48)))
    await log.stop()
    await database.close()
    assert await stores.episodes.count_failures("letters") >= 8
    assert await stores.episodes.count(task="letters", outcome=Outcome.RECOVERED) > 0
    return made


class Worker:
    """A Celery worker as a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.log = settings.data_dir / f"worker-{time.time_ns()}.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "celery", "--app", "trainer.worker:app", "--quiet", "worker",
                    "--pool", "solo", "--loglevel", "info",
                     "--without-gossip", "--without-mingle", "--without-heartbeat",
                ],
                stdout=file, stderr=file, env=settings.environment(), start_new_session=True,
            )  # fmt: skip

    def trainers(self) -> list[psutil.Process]:
        """Find its trainer and whatever that started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def start_worker(settings) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def start() -> Worker:
        workers.append(Worker(settings))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


async def wait_for_round(
    stores: Stores, round_id: str, wanted: Callable[[Round], bool], *, within_s: float = 120.0
) -> Round:
    """Wait until a round is as wanted; a round that failed on the way is said at once."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        row = await stores.rounds.get(round_id)
        assert row is not None
        if wanted(row):
            return row
        assert row.state is not RoundState.FAILED, row.reason
        await asyncio.sleep(0.1)
    raise AssertionError(f"{round_id} is {row.state} in {row.phase!r} after {within_s} s")
