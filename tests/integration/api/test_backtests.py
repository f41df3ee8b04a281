"""Backtests as they are asked for: judged in the background, shown to whom they belong, taken over after a kill."""

import asyncio
import http.client
import json
import time
from concurrent import futures
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import update

from server.app import create_app
from server.domain import Role, Scope
from server.settings import Settings
from server.store.backtests import BacktestStore
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.tables import backtests
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine, reply
from tests.fixtures.server import serve_api, with_database

PATIENCE_S = 60.0
FOUR, FIVE = {"pattern": "4"}, {"pattern": "[45]"}


@dataclass
class Api:
    """An API in this process, and keys of it."""

    app: Any
    keys: dict[str, str]

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "admin"):
        answer = await ask(self.app, method, path, body, key=self.keys[key])
        return answer.status, answer.json()

    async def chat(self, text: str, *, key: str = "registrar", model: str = "sums", **fields: Any):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        status, answer = await self.ask("POST", "/v1/chat/completions", body, key=key)
        assert status == 200, answer
        return answer

    async def backtest(self, name: str = "four", *, key: str = "admin", **body: Any):
        status, made = await self.ask("POST", f"/v1/verifiers/{name}/backtest", body, key=key)
        assert status == 202, made
        assert made["id"].startswith("bt_")
        return await self.ended(made["id"], key=key)

    async def ended(self, backtest_id: str, *, key: str = "admin"):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status, found = await self.ask("GET", f"/v1/backtests/{backtest_id}", key=key)
            assert status == 200
            if found["state"] != "running":
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def live(settings, engine):
    app = create_app(settings, open_engine=lambda _: engine)
    async with app.rest.router.lifespan_context(app.rest):
        yield app


def say_last_word(body, _adapter):
    """Answer with the last word of what was asked."""
    return reply(body["messages"][-1]["content"].split()[-1])


@pytest.fixture
async def api(tmp_path, sqlite_url):
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url)
    database = Database(sqlite_url)
    try:
        keys = KeyStore(database)
        made = {role.value: (await keys.create(role, role))[0] for role in Role}
        for name in ("registrar", "other"):
            made[name] = (await keys.create(name, scopes=list(Scope)))[0]
    finally:
        await database.close()
    async with live(settings, ScriptedEngine([say_last_word])) as app:
        api = Api(app, made)
        for config in (FOUR, FIVE):
            assert (await api.ask("POST", "/v1/verifiers", {"name": "four", "kind": "regex", "config": config}))[
                0
            ] == 201
        task = {"name": "sums", "verifiers": ["four@1"], "retry": {"max_retries": 0}}
        assert (await api.ask("POST", "/v1/tasks", task))[0] == 201
        yield api


async def test_a_version_is_compared_with_what_was_said_then(api):
    said = [await api.chat(f"say {word}") for word in ("4", "5", "6", "4", "5")]
    done = await api.backtest(version=2, task="sums")
    report = done["report"]
    assert (done["state"], done["verifier"], done["version"], done["done"], done["total"]) == ("done", "four", 2, 5, 5)
    assert (report["n"], report["attempts"], report["sampled"], report["verifier"]) == (5, 5, 5, "four@2")
    assert (report["agreement"]["compared"], report["agreement"]["agreed"]) == (5, 3)
    assert (report["flips"]["count"], report["flips"]["failed_to_passed"]) == (2, 2)
    assert [flip["episode_id"] for flip in report["flips"]["newest"]] == [
        said[number]["mulligan"]["episode_id"] for number in (4, 1)
    ]
    flip = report["flips"]["newest"][0]
    assert (flip["old"]["verifier"], flip["old"]["status"], flip["new"]["status"]) == ("four@1", "failed", "passed")
    assert (await api.ask("GET", flip["url"]))[0] == 200
    assert report["flakes"]["count"] == 0
    assert 0 < report["p50_ms"] <= report["p99_ms"]


async def test_the_same_version_agrees_with_itself(api):
    for word in ("4", "5"):
        await api.chat(f"say {word}")
    report = (await api.backtest(version=1))["report"]
    assert (report["agreement"]["share"], report["flips"]["count"]) == (1.0, 0)


async def test_what_cannot_be_judged_is_passed_over_and_counted(api):
    await api.chat("say 4")
    await api.chat("say 5", store=False)
    countdown = {"name": "count", "kind": "countdown"}
    assert (await api.ask("POST", "/v1/verifiers", countdown))[0] == 201
    report = (await api.backtest("count"))["report"]
    assert report["passed_over"] in ({"no_content": 1, "no_args": 1}, {"no_content": 1})
    assert report["n"] + sum(report["passed_over"].values()) == 2


async def test_a_new_verifier_is_given_the_arguments_of_what_it_is_compared_with(api):
    for name in ("count", "fresh"):
        assert (await api.ask("POST", "/v1/verifiers", {"name": name, "kind": "countdown"}))[0] == 201
    args = {"numbers": [2, 2], "target": 4}
    await api.chat("say 2+2", verifiers=[{"name": "count", "args": args}], retry={"max_retries": 0})
    report = (await api.backtest("fresh", against="count@1"))["report"]
    assert (report["verdicts"]["passed"], report["agreement"]["agreed"]) == (1, 1)


async def test_a_sample_is_as_large_as_asked_and_the_same_for_the_same_seed(api):
    for number in range(12):
        await api.chat(f"say {number}")
    reports = [(await api.backtest(version=2, sample=5, seed=seed))["report"] for seed in (1, 1, 2)]
    assert [(one["n"], one["attempts"]) for one in reports] == [(5, 12)] * 3
    assert reports[0]["flips"] == reports[1]["flips"]


async def test_a_verifier_that_flakes_and_breaks_is_found_out(api):
    code = "def verify(request, answer, args):\n    return {'passed': True}[answer['content']]"
    assert (await api.ask("POST", "/v1/verifiers", {"name": "odd", "kind": "python", "config": {"code": code}}))[
        0
    ] == 201
    await api.chat("say 4")
    report = (await api.backtest("odd"))["report"]
    assert (report["verdicts"]["abstained"], report["abstentions"]["causes"]) == (1, {"broke": 1})
    assert report["not_compared"] == {"no_old_verdict": 1}


async def test_a_backtest_counts_nowhere(api):
    await api.chat("say 4")
    await api.backtest(version=2)
    deadline = time.monotonic() + PATIENCE_S
    while (stats := (await api.ask("GET", "/v1/verifiers/four/stats"))[1])["verdicts"] < 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (stats["verdicts"], set(stats["versions"])) == (1, {"four@1"})


async def test_a_client_backtests_on_its_own_episodes_alone_and_shows_them_to_nobody(api):
    await api.chat("say 4", key="registrar")
    await api.chat("say 5", key="other")
    mine = await api.backtest(version=2, key="registrar")
    assert (mine["report"]["n"], mine["options"]["key"] is not None) == (1, True)
    path = f"/v1/backtests/{mine['id']}"
    assert (await api.ask("GET", path, key="other"))[0] == 404
    assert (await api.ask("DELETE", path, key="other"))[0] == 404
    assert (await api.ask("DELETE", path, key="viewer"))[0] == 403
    assert (await api.ask("GET", path, key="viewer"))[0] == 200
    assert (await api.ask("GET", "/v1/backtests", key="other"))[1]["data"] == []
    assert [one["id"] for one in (await api.ask("GET", "/v1/backtests?verifier=four", key="registrar"))[1]["data"]] == [
        mine["id"]
    ]
    assert (await api.backtest(version=2))["report"]["n"] == 2


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "code"),
    [
        ("four", {}, "client", 403, "insufficient_scope"),
        ("four", {}, "viewer", 403, "insufficient_scope"),
        ("none", {}, "admin", 404, "verifier_not_found"),
        ("four", {"version": 9}, "admin", 404, "verifier_not_found"),
        ("four", {"until": float("inf")}, "admin", 400, None),
        ("four", {"task": "nothing"}, "admin", 404, "task_not_found"),
        ("four", {"against": "four"}, "admin", 400, None),
        ("four", {"sample": 10_001}, "admin", 400, None),
        ("four", {"sample": 0}, "admin", 400, None),
        ("four", {"outcome": "fine"}, "admin", 400, None),
        ("four", {"smaple": 5}, "admin", 400, "unknown_field"),
    ],
)
async def test_what_cannot_be_backtested_is_refused(api, path, body, key, status, code):
    answer = await api.ask("POST", f"/v1/verifiers/{path}/backtest", body, key=key)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)


async def test_traffic_goes_first_and_a_cancelled_backtest_ends(api):
    for number in range(3):
        await api.chat(f"say {number}")
    traffic = api.app.rest.state.context.traffic
    traffic._queue.append(object())  # somebody waits for room, for ever
    try:
        _, made = await api.ask("POST", "/v1/verifiers/four/backtest", {})
        store = BacktestStore(api.app.rest.state.context.database)
        deadline = time.monotonic() + PATIENCE_S
        while (await store.get(made["id"])).owner == "":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert (await api.ask("GET", f"/v1/backtests/{made['id']}"))[1]["done"] == 0
        status, cancelled = await api.ask("DELETE", f"/v1/backtests/{made['id']}")
        assert (status, cancelled["state"]) == (200, "cancelled")
    finally:
        traffic._queue.clear()
    assert (await api.ended(made["id"]))["report"] == {}
    assert (await api.backtest())["state"] == "done"


async def test_a_stop_in_good_order_puts_it_back_and_the_next_start_ends_it(tmp_path, sqlite_url):
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url)
    secret, _ = await with_key(sqlite_url)
    async with live(settings, ScriptedEngine([say_last_word])) as app:
        api = Api(app, {"admin": secret})
        await api.ask("POST", "/v1/verifiers", {"name": "four", "kind": "regex", "config": FOUR})
        await api.chat("say 4", key="admin", model="default")
        app.rest.state.context.traffic._queue.append(object())
        _, made = await api.ask("POST", "/v1/verifiers/four/backtest", {})
        store, deadline = BacktestStore(app.rest.state.context.database), time.monotonic() + PATIENCE_S
        while (await store.get(made["id"])).owner == "":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    async with live(settings, ScriptedEngine()) as app:
        ended = await Api(app, {"admin": secret}).ended(made["id"])
    assert (ended["state"], ended["report"]["n"]) == ("done", 1)
    assert ended["owner"].endswith("/1")  # no lease was lost


async def with_key(url):
    database = Database(url)
    try:
        return await KeyStore(database).create("k", "admin")
    finally:
        await database.close()


def test_another_process_takes_over_where_one_is_killed(database_url, tmp_path, wire_engine):
    def find(backtest_id):
        return with_database(database_url, lambda database: BacktestStore(database).get(backtest_id))

    async def silence(database):
        async with database.write() as connection:
            await connection.execute(update(backtests).values(heartbeat_at=UnixNow() - 3600))

    def chat(api, text):
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=600)
        body = {"model": "default", "messages": [{"role": "user", "content": text}], "verify": "off"}
        headers = {"authorization": f"Bearer {api.keys['client']}"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            return connection.getresponse().status
        except OSError:
            return None  # its process was killed
        finally:
            connection.close()

    def wait(look):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := look()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    limits = {"max_concurrent": 1, "max_queued": 1, "queue_timeout_s": 600}
    with (
        futures.ThreadPoolExecutor(4) as pool,
        serve_api(tmp_path / "a", database_url, wire_engine.url, limits=limits) as first,
    ):
        first.ask("POST", "/v1/verifiers", {"name": "four", "kind": "regex", "config": FOUR})
        assert [chat(first, text) for text in ("4", "5", "6")] == [200] * 3
        asked = {pool.submit(chat, first, "sleep 600") for _ in range(3)}
        refused, waiting = futures.wait(asked, return_when=futures.FIRST_COMPLETED)
        assert [one.result() for one in refused] == [429]  # one runs, one waits: backtests rest
        made = first.ask("POST", "/v1/verifiers/four/backtest", {})[1]
        lost = wait(lambda: find(made["id"]).owner)
        first.kill()
        assert [one.result() for one in waiting] == [None, None]
        assert find(made["id"]).state == "running"
        with_database(database_url, silence)
        with serve_api(tmp_path / "b", database_url, wire_engine.url, keys=first.keys):
            wait(lambda: find(made["id"]).state != "running")
        ended = find(made["id"])
        assert (ended.state, ended.report["n"]) == ("done", 3)
        assert ended.owner.endswith("/2")
        assert ended.owner.split("/")[0] != lost.split("/")[0]
