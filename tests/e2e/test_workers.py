"""`--workers 2` as a user runs it: two API processes on one port, with the guarantees of one."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.adapters import hot_swap
from server.adapters.hot_swap import hash_file
from server.domain import Adapter, Task
from server.engine.sglang import SGLangEngine
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.presence import Presence, PresenceStore
from server.store.tasks import TaskStore
from tests.e2e.harness import ROOT, Up, environment, is_gone, wait_for
from tests.fixtures.server import make_keys, with_database
from tests.fixtures.wire_engine import WireEngine, serve_wire_engine

pytestmark = pytest.mark.slow

WORKERS = 2
LIVE_S = 5.0


class Serve:
    """A `mulligan serve --workers 2` on a migrated database."""

    def __init__(self, data_dir: Path, database_url: str, engine_url: str) -> None:
        self.database_url = database_url
        self.keys = make_keys(database_url)
        self.log_path = data_dir / "serve.log"
        data_dir.mkdir(parents=True, exist_ok=True)
        options = ["--data-dir", str(data_dir), "--database-url", database_url, "--engine-url", engine_url]
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", "--workers", str(WORKERS), "--port", "0", *options],
                cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.seen: dict[int, psutil.Process] = {}

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def port(self) -> int:
        return int(re.search(r"api_listens .*url=http://127\.0\.0\.1:(\d+)", self.log)[1])

    def wait_ready(self) -> "Serve":
        def all_report() -> bool:
            assert self.popen.poll() is None, self.log
            return len(self.presences()) == WORKERS and self.ask("GET", "/ready", key=None)[0] == 200

        wait_for(all_report, 60, "both are ready")
        self.workers()
        return self

    def workers(self) -> list[psutil.Process]:
        """The workers that run now, by number."""
        found = {}
        for process in psutil.Process(self.popen.pid).children():
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if "server.cli.serving" in words:
                found[int(words[words.index("server.cli.serving") + 1])] = process
                self.seen[process.pid] = process
        return [process for _, process in sorted(found.items())]

    def presences(self) -> list[Presence]:
        return with_database(self.database_url, lambda db: PresenceStore(db).live(LIVE_S))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = "client",
        over: http.client.HTTPConnection | None = None,
    ) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
        """Make one request, over a connection that is kept or a fresh one."""
        connection = over or self.connect()
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {self.keys.get(key, key)}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
        finally:
            if over is None:
                connection.close()

    def chat(self, text: str, *, model: str = "default", **more: Any) -> tuple[int, Any, dict[str, str]]:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return self.ask("POST", "/v1/chat/completions", body, **more)

    def server_of(self, connection: http.client.HTTPConnection) -> int | None:
        """The worker's pid at the other end of a connection."""
        ours = connection.sock.getsockname()
        for worker in self.workers():
            if any(tuple(one.raddr) == ours for one in worker.net_connections("tcp") if one.raddr):
                return worker.pid
        return None

    @contextmanager
    def one_connection_each(self) -> Iterator[list[http.client.HTTPConnection]]:
        """Open connections until there is one to each worker; those are kept."""
        found: dict[int, http.client.HTTPConnection] = {}
        with ExitStack() as stack:

            def every_worker_has_one() -> bool:
                connection = self.connect()
                stack.callback(connection.close)
                assert self.ask("GET", "/health", key=None, over=connection)[0] == 200
                pid = self.server_of(connection)
                if pid is not None:
                    found.setdefault(pid, connection)
                return len(found) == WORKERS

            wait_for(every_worker_has_one, 20, "both workers accept connections")
            yield list(found.values())

    def episodes(self) -> list[Any]:
        async def read(database: Database) -> list[Any]:
            return [episode async for episode in EpisodeStore(database).iterate()]

        return with_database(self.database_url, read)

    def close(self) -> None:
        """End whatever is left."""
        if self.popen.poll() is None:
            self.workers()
            self.popen.kill()
        self.popen.wait(10)
        for process in self.seen.values():
            if not is_gone(process):
                process.kill()


@pytest.fixture
def engine() -> Iterator[WireEngine]:
    with serve_wire_engine() as served:
        yield served


@pytest.fixture
def serve(tmp_path: Path, database_url: str, engine: WireEngine) -> Iterator[Serve]:
    started = Serve(tmp_path / "data", database_url, engine.url)
    try:
        yield started.wait_ready()
    finally:
        started.close()


@dataclass
class Load:
    """Clients that ask without a pause, each time over a new connection and with another text."""

    serve: Serve
    ask: Callable[[Serve, str], tuple[int, Any, dict[str, str]]] = Serve.chat
    answered: dict[str, tuple[float, Any]] = field(default_factory=dict)  # text -> when asked, the answer
    refused: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, clients: int) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask_until_stopped, args=(one,)) for one in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(70)

    def wait_for_answers(self, count: int = 20) -> None:
        """Wait until so many of the requests that begin from now on are answered."""
        began = time.monotonic()

        def enough() -> bool:
            return sum(asked_at > began for asked_at, _ in list(self.answered.values())) >= count

        wait_for(enough, 60, f"{count} more answers; refused: {self.refused[:3]}, cut: {self.cut[:3]}")

    def _ask_until_stopped(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            text, asked_at = f"client {client} asks {number}", time.monotonic()
            try:
                status, answer, _ = self.ask(self.serve, text)
            except ConnectionRefusedError as error:
                self.refused.append(repr(error))
            except (OSError, http.client.HTTPException) as error:
                self.cut.append(repr(error))
            else:
                if status == 200:
                    self.answered[text] = (asked_at, answer)
                else:
                    self.refused.append(f"{status}: {answer}")


def both_are_busy(serve: Serve) -> bool:
    return sum(any(one.in_flight.values()) for one in serve.presences()) == WORKERS


def assert_logged_once(serve: Serve, answered: Sequence[str]) -> None:
    logged = [episode.request["messages"][0]["content"] for episode in serve.episodes() if episode.attempts]
    assert len(set(logged)) == len(logged)
    assert set(answered) <= set(logged)


def test_both_serve_and_each_says_which_it_is(serve: Serve, engine: WireEngine):
    assert len(serve.workers()) == WORKERS
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(serve.chat, f"sleep {2 + number / 1000:.3f}") for number in range(8)]

        wait_for(partial(both_are_busy, serve), 30, "both report episodes in flight")
        assert [one.result()[0] for one in asked] == [200] * 8
    with serve.one_connection_each() as connections:
        for connection in connections:
            assert serve.ask("GET", "/health", key=None, over=connection)[0] == 200
            assert serve.ask("GET", "/ready", key=None, over=connection)[0] == 200
            assert serve.chat("hello", over=connection)[0] == 200
    for number in range(1, WORKERS + 1):
        assert re.search(rf"worker_serves .*worker={number}", serve.log)
        assert f"worker={number} INFO uvicorn.error: Application startup complete." in serve.log


def test_one_that_is_killed_comes_back_and_nothing_answered_is_lost(serve: Serve):
    clients = 8
    with Load(serve).running(clients) as load:
        load.wait_for_answers()
        victim, other = serve.workers()
        victim.kill()
        load.wait_for_answers()  # the other goes on
        wait_for(lambda: "worker_back" in serve.log, 60, "it is back")
        load.wait_for_answers()
    replaced, kept = serve.workers()
    assert kept.pid == other.pid
    assert replaced.pid != victim.pid
    assert "worker_died" in serve.log
    assert load.refused == []
    assert len(load.cut) <= clients  # what the victim was answering
    assert_logged_once(serve, list(load.answered))
    with serve.one_connection_each() as connections:
        assert {serve.server_of(one) for one in connections} == {replaced.pid, kept.pid}


def test_one_that_is_told_to_stop_makes_room_without_an_error(serve: Serve):
    with Load(serve).running(4) as load:
        load.wait_for_answers()
        first, _ = serve.workers()
        with ThreadPoolExecutor(4) as pool:
            slow = [pool.submit(serve.chat, f"sleep {2 + number / 1000:.3f}") for number in range(4)]
            wait_for(partial(both_are_busy, serve), 30, "both report episodes in flight")
            first.terminate()
            assert [one.result()[0] for one in slow] == [200] * 4
        wait_for(lambda: "worker_back" in serve.log, 60, "it is back")
        load.wait_for_answers()
    assert load.refused == []
    assert_logged_once(serve, list(load.answered))


def test_a_revoked_key_is_refused_by_both_within_a_second(serve: Serve):
    secret, key = with_database(serve.database_url, lambda db: KeyStore(db).create("gone"))
    with serve.one_connection_each() as connections:
        for connection in connections:
            assert serve.ask("GET", "/v1/models", key=secret, over=connection)[0] == 200
        with_database(serve.database_url, lambda db: KeyStore(db).revoke(key.id))  # as another process would
        time.sleep(1.0)
        for connection in connections:
            assert serve.ask("GET", "/v1/models", key=secret, over=connection)[0] == 401


def test_a_hot_swap_flips_on_both_and_drops_nothing(serve: Serve, engine: WireEngine, tmp_path: Path):
    make_adapters(serve.database_url, tmp_path)
    swaps = ["letters@1", "letters@2", "", "letters@2"]
    with Load(serve, ask_who).running(8) as load:
        for expected in swaps:
            load.wait_for_answers()
            generation = swap(serve.database_url, engine.url, expected)
            wait_for(partial(all_acknowledge, serve, generation), 10, "both acknowledge the flip")
            flipped_at = time.monotonic()
            load.wait_for_answers()
            late = [answer for asked_at, answer in list(load.answered.values()) if asked_at > flipped_at]
            assert {answer["mulligan"]["adapter"] for answer in late} == {expected}
            with serve.one_connection_each() as connections:
                for connection in connections:
                    answer = serve.chat("who are you?", model="letters", over=connection)[1]
                    assert answer["choices"][0]["message"]["content"] == (expected or "base")
    assert load.refused == []
    assert load.cut == []
    named = {
        (answer["mulligan"]["adapter"] or "base", answer["choices"][0]["message"]["content"])
        for _, answer in load.answered.values()
    }
    assert named == {("base", "base"), ("letters@1", "letters@1"), ("letters@2", "letters@2")}
    assert list(engine.adapters) == ["letters@2"]
    events = with_database(serve.database_url, lambda db: EventStore(db).list())
    assert not [event for event in events if event.kind == "adapter.left_loaded"]

    engine.load_s = 0.5  # so that both try at once
    engine.adapters.clear()  # the engine was started anew
    wait_for(lambda: "letters@2" in engine.adapters, 30, "the champion is loaded again")
    with serve.one_connection_each() as connections:
        for connection in connections:
            wait_for(lambda over=connection: serve.ask("GET", "/ready", key=None, over=over)[0] == 200, 30, "ready")
    assert "champions_refused" not in serve.log


def all_acknowledge(serve: Serve, generation: int) -> bool:
    return [one.acknowledged.get("letters") for one in serve.presences()] == [generation] * WORKERS


def ask_who(serve: Serve, text: str) -> tuple[int, Any, dict[str, str]]:
    return serve.chat("who are you?", model="letters")


def make_adapters(database_url: str, folder: Path) -> None:
    async def make(database: Database) -> None:
        await TaskStore(database).create(Task("letters"))
        for name, parent in (("letters@1", ""), ("letters@2", "")):
            path = folder / name
            path.mkdir()
            (path / "adapter_model.safetensors").write_text(name)
            files = {"adapter_model.safetensors": hash_file(path / "adapter_model.safetensors")}
            await AdapterStore(database).add(Adapter(name, "letters", str(path), files, parent=parent))

    with_database(database_url, make)


def swap(database_url: str, engine_url: str, champion: str) -> int:
    """Promote an adapter, or roll back to the base model; return the generation."""

    async def work(database: Database) -> int:
        engine = SGLangEngine(engine_url, model_name="base", timeout_s=30)
        rooms = {
            "engine": engine, "tasks": TaskStore(database), "adapters": AdapterStore(database),
            "presence": PresenceStore(database), "events": EventStore(database), "actor": "test",
            "drain_timeout_s": 60.0,
        }  # fmt: skip
        try:
            if champion:
                return (await hot_swap.promote(champion, **rooms)).generation
            return (await hot_swap.rollback("letters", **rooms)).generation
        finally:
            await engine.close()

    return with_database(database_url, work)


def test_sigterm_lets_requests_end_and_logs_what_it_cut(serve: Serve, engine: WireEngine):
    family = serve.workers()
    with ThreadPoolExecutor(8) as pool:
        short = [pool.submit(serve.chat, f"sleep {2 + number / 1000:.3f}") for number in range(6)]
        endless = [pool.submit(try_chat, serve, f"sleep {30 + number}") for number in range(2)]
        wait_for(lambda: len(engine.requests) == 8, 30, "all are under way")
        wait_for(partial(both_are_busy, serve), 30, "both report episodes in flight")
        serve.popen.terminate()
        assert [one.result()[0] for one in short] == [200] * 6
        assert serve.popen.wait(30) == 0
        assert all(one.result() != 200 for one in endless)
    assert all(is_gone(process) for process in family)
    outcomes = {episode.request["messages"][0]["content"]: episode.outcome for episode in serve.episodes()}
    assert {outcomes[f"sleep {30 + number}"] for number in range(2)} == {"cancelled"}
    assert len(outcomes) == 8
    assert serve.presences() == []
    with pytest.raises(ConnectionRefusedError):
        serve.connect().connect()


def try_chat(serve: Serve, text: str) -> int:
    try:
        return serve.chat(text)[0]
    except (OSError, ValueError, http.client.HTTPException):  # cut off, or the plain text of a broken answer
        return 0


def test_kill_9_of_the_parent_leaves_no_orphan(serve: Serve):
    family = serve.workers()
    port = serve.port
    serve.popen.send_signal(signal.SIGKILL)
    serve.popen.wait(10)
    wait_for(lambda: all(is_gone(process) for process in family), 20, "the workers go with their parent")
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()


@pytest.fixture
def up(tmp_path: Path, engine: WireEngine) -> Iterator[Up]:
    started = Up(tmp_path / "data", "--workers", str(WORKERS), "--engine-url", engine.url)
    try:
        yield started.wait_ready()
    finally:
        started.close()


def test_up_has_two_workers_and_kill_9_of_it_leaves_none(up: Up):
    url = f"sqlite:///{up.data_dir / 'mulligan.db'}"

    def both_report() -> bool:
        return len(with_database(url, lambda db: PresenceStore(db).live(LIVE_S))) == WORKERS

    wait_for(both_report, 30, "both report")
    family = up.family()
    assert sum("server.cli.serving" in process.cmdline() for process in family) == WORKERS
    logged = (up.data_dir / "logs" / "api.log").read_text()
    assert re.search(r"worker_serves .*worker=1", logged)
    assert len(with_database(url, lambda db: KeyStore(db).list())) == 1
    up.kill()
    wait_for(lambda: all(is_gone(process) for process in family), 20, "nothing is left")
