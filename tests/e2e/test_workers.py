"""`--workers 2` as a user runs it: two API processes on one port, with the guarantees of one."""

import http.client
import re
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from server.adapters import hot_swap
from server.adapters.files import hash_file
from server.adapters.rooms import SwapRooms
from server.domain import Adapter, Task
from server.engine.sglang import SGLangEngine
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from server.store.tasks import TaskStore
from tests.e2e.harness import Up, is_gone, wait_for
from tests.e2e.workers import LIVE_S, WORKERS, Load, Serve
from tests.fixtures.server import with_database
from tests.fixtures.wire_engine import WireEngine, serve_wire_engine

pytestmark = pytest.mark.slow


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


def both_are_busy(serve: Serve) -> bool:
    return sum(any(one.in_flight.values()) for one in serve.presences()) == WORKERS


def assert_logged_once(serve: Serve, answered: Sequence[str]) -> None:
    logged = [episode.request["messages"][0]["content"] for episode in serve.episodes() if episode.attempts]
    assert len(set(logged)) == len(logged)
    assert set(answered) <= set(logged)


def count_answered(serve: Serve) -> set[str]:
    """The numbers of the workers of which one scrape says that they answered chats."""
    request = Request(
        f"http://127.0.0.1:{serve.port}/metrics", headers={"authorization": f"Bearer {serve.keys['viewer']}"}
    )
    with urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
    return set(re.findall(r'mulligan_requests_total\{status="200",surface="chat",worker="(\d)"\}', text))


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
    # One scrape of the one port tells of both: of one as it is, of the other as it was a second ago.
    wait_for(lambda: count_answered(serve) == {"1", "2"}, 60, "a scrape tells of both")
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
        serve.wait_back()
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


def test_what_a_killed_one_left_in_its_spool_is_brought_home(tmp_path: Path, sqlite_url: str, engine: WireEngine):
    serve = Serve(tmp_path / "data", sqlite_url, engine.url)
    try:
        serve.wait_ready()
        with serve.one_connection_each() as connections:
            for number, connection in enumerate(connections):
                assert serve.chat(f"before {number}", over=connection)[0] == 200
            with sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None) as holder:
                holder.execute("BEGIN IMMEDIATE")  # nobody else can write: the log takes the database for away
                with ThreadPoolExecutor(WORKERS) as pool:
                    asked = [pool.submit(serve.chat, f"away {i}", over=one) for i, one in enumerate(connections)]
                    assert [one.result()[0] for one in asked] == [200] * WORKERS
                assert len(list((tmp_path / "data" / "spool").glob("*.spool"))) == WORKERS
                serve.workers()[0].kill()
                holder.execute("ROLLBACK")
            holder.close()
        wait_for(partial(is_all_home, serve), 60, "all spooled episodes are in the database")
        assert_logged_once(serve, [f"away {number}" for number in range(WORKERS)])
    finally:
        serve.close()


def is_all_home(serve: Serve) -> bool:
    return len(serve.episodes()) == 2 * WORKERS


def test_one_that_is_told_to_stop_makes_room_without_an_error(serve: Serve):
    with Load(serve).running(4) as load:
        load.wait_for_answers()
        first, _ = serve.workers()
        with ThreadPoolExecutor(4) as pool:
            slow = [pool.submit(serve.chat, f"sleep {2 + number / 1000:.3f}") for number in range(4)]
            wait_for(partial(both_are_busy, serve), 30, "both report episodes in flight")
            first.terminate()
            assert [one.result()[0] for one in slow] == [200] * 4
        serve.wait_back()
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
        rooms, how = SwapRooms.open(database, engine), {"actor": "test", "drain_timeout_s": 60.0}
        try:
            if champion:
                return (await hot_swap.promote(champion, rooms, **how)).generation
            return (await hot_swap.rollback("letters", rooms, **how)).generation
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
