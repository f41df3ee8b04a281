"""A canary on two API processes, and the kills that it has to survive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from server.domain import AdapterStatus, CanaryPolicy
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.database import Database
from server.store.tasks import TaskStore
from tests.e2e.harness import ROOT, environment, wait_for
from tests.e2e.workers import WORKERS, Serve
from tests.fixtures.canaries import ask_about, look, make_trial, with_rooms
from tests.fixtures.server import with_database
from tests.fixtures.wire_engine import WireEngine, serve_wire_engine

pytestmark = pytest.mark.slow

POLICY = CanaryPolicy(share=0.4, widen=(0.8, 1.0), min_episodes=3, latency_ratio=None)


@pytest.fixture
def engine() -> Iterator[WireEngine]:
    with serve_wire_engine() as served:
        yield served


@pytest.fixture
def serve(tmp_path: Path, sqlite_url: str, engine: WireEngine) -> Iterator[Serve]:
    started = Serve(tmp_path / "data", sqlite_url, engine.url)
    try:
        yield started.wait_ready()
    finally:
        started.close()


def chat(serve: Serve, number: int, over=None) -> str:
    body = {"model": "tried", "messages": ask_about(number)}
    status, answer, _ = serve.ask("POST", "/v1/chat/completions", body, over=over)
    assert status == 200, answer
    said, adapter = answer["choices"][0]["message"]["content"], answer["mulligan"]["adapter"]
    assert said in (adapter, f"conversation {number}")  # it really answered, or its retry failed as scripted
    return adapter


def acknowledge(serve: Serve, generation: int) -> bool:
    return [one.acknowledged.get("tried") for one in serve.presences()] == [generation] * WORKERS


def begin(serve: Serve, engine: WireEngine, folder: Path, passes: str) -> None:
    from server.adapters import decisions  # noqa: PLC0415

    with_database(serve.database_url, lambda db: make_trial(db, folder, POLICY, task="tried", passes=passes))
    for name, canary in (("tried@1", False), ("tried@2", None)):
        how = {"actor": "test", "canary": canary}
        with_rooms(
            serve.database_url,
            engine.url,
            lambda rooms, name=name, how=how: decisions.promote_by_hand(name, "go", rooms, **how),
        )


def test_both_processes_pick_it_up_give_a_conversation_to_one_adapter_and_drop_it(
    serve: Serve, engine: WireEngine, tmp_path: Path
):
    begin(serve, engine, tmp_path, passes="tried@1")
    wait_for(partial(acknowledge, serve, 2), 10, "both acknowledge the canary")
    with serve.one_connection_each() as connections:
        drawn = [{number: chat(serve, number, over) for number in range(60)} for over in connections]
        assert drawn[0] == drawn[1]
        tried = sum(adapter == "tried@2" for adapter in drawn[0].values())
        assert 8 <= tried <= 41  # binomial, 60 of 0.4: beyond once in 10,000
        assert look(serve.database_url, engine.url) == 1  # it fails where the champion passes
        wait_for(partial(acknowledge, serve, 3), 10, "both acknowledge its end")
        for over in connections:
            assert {chat(serve, number, over) for number in range(20)} == {"tried@1"}
    assert list(engine.adapters) == ["tried@1"]


LOOKER = """
import sys
from tests.fixtures.canaries import look
print("looking", flush=True)
while True:
    look(sys.argv[1], sys.argv[2])
"""


def check_consistent(url: str) -> tuple[str, str]:
    """Whatever was killed when: one champion, and a canary only where there is one; return both."""

    async def read(database: Database):
        task = await TaskStore(database).get("tried")
        running = await CanaryStore(database).running()
        return task, running, {one.name: one.status for one in await AdapterStore(database).list("tried")}

    task, running, shelf = with_database(url, read)
    assert [name for name, status in shelf.items() if status is AdapterStatus.CHAMPION] == [task.champion]
    assert [name for name, status in shelf.items() if status is AdapterStatus.CANARY] == (
        [task.canary] if task.canary else []
    )
    assert [(one.adapter, one.generation, one.steps[-1].share) for one in running] == (
        [(task.canary, task.generation, task.canary_share)] if task.canary else []
    )
    return task.champion, task.canary


def test_a_worker_that_is_killed_again_and_again_leaves_one_champion_and_a_canary_that_ends(
    serve: Serve, engine: WireEngine, tmp_path: Path
):
    begin(serve, engine, tmp_path, passes="tried@2")
    engine.load_s = 0.05
    number, deadline = 0, time.monotonic() + 90
    check_consistent(serve.database_url)
    while check_consistent(serve.database_url)[1]:
        assert time.monotonic() < deadline
        looker = subprocess.Popen(
            [sys.executable, "-c", LOOKER, serve.database_url, engine.url],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert looker.stdout.readline() == b"looking\n"
            for _ in range(4):
                chat(serve, number)
                number += 1
            time.sleep(0.01 * (number % 7))
        finally:
            os.kill(looker.pid, signal.SIGKILL)
            looker.wait(10)
            looker.stdout.close()
    assert check_consistent(serve.database_url) == ("tried@2", "")
    assert chat(serve, number) == "tried@2"
