"""Verdicts are counted as they are logged; a verifier that keeps breaking is stopped, and everybody is told."""

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from server.api.verdict_counts import VerdictBook
from server.app import create_app
from server.domain import Binding, Role
from server.errors import StoreUnavailable
from server.orchestration import verification
from server.orchestration.verdict_watch import VerdictWatch
from server.settings import Settings
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.verdict_counts import VerdictCountStore
from tests.fixtures.asgi import Connection, ask
from tests.fixtures.engines import ScriptedEngine
from tests.fixtures.server import make_keys as server_keys
from tests.fixtures.server import serve_api, with_database
from tests.unit.orchestration.stubs import bound, expects
from verifiers.base import Verdict

PATIENCE_S = 60.0
BREAKS = "def verify(request, answer, args):\n    return {'4': True, '5': False}[answer['content']]"


async def until(look):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := await look()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def live(settings, engine):
    app = create_app(settings, open_engine=lambda _: engine)
    async with app.rest.router.lifespan_context(app.rest):
        yield app


async def make_keys(url):
    database = Database(url)
    try:
        return {role.value: (await KeyStore(database).create(role, role))[0] for role in Role}
    finally:
        await database.close()


def chat(app, key, **fields):
    body = {"model": "sums", "messages": [{"role": "user", "content": "2+2?"}], **fields}
    return ask(app, "POST", "/v1/chat/completions", body, key=key)


def test_counts_equal_the_log_after_two_processes_ended(database_url, tmp_path, wire_engine):
    words = ["4 | hm | 4", "5 | hm | 4", "six | hm | 4", "5 | hm | 5"]

    def send(number):
        api = apis[number % 2]
        verifiers = [{"name": "picky"}, {"name": "four", "when": {"answer": "tool_call"}}] if number % 3 else ["picky"]
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": words[number % 4]}],
            "verifiers": verifiers,
        }
        return api.ask("POST", "/v1/chat/completions", body, key="client")[0]

    async def read(database):
        logged, counted = Counter(), Counter()
        async for episode in EpisodeStore(database).iterate():
            for attempt in episode.attempts:
                logged.update((one.verifier, str(one.status), str(one.cause)) for one in attempt.verdicts)
        for name in ("picky", "four"):
            for one in await VerdictCountStore(database).list(name):
                counted[one.verifier, one.status, one.cause] += one.count
        return logged, counted

    lenient = {"stop_share": 1.0, "stop_after": 1000}
    keys = server_keys(database_url)
    with (
        serve_api(tmp_path / "a", database_url, wire_engine.url, verifiers=lenient, keys=keys) as first,
        serve_api(tmp_path / "b", database_url, wire_engine.url, verifiers=lenient, keys=keys) as second,
    ):
        apis = (first, second)
        first.ask("POST", "/v1/verifiers", {"name": "picky", "kind": "python", "config": {"code": BREAKS}})
        first.ask("POST", "/v1/verifiers", {"name": "four", "kind": "regex", "config": {"pattern": "4"}})
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, range(120))) == {200}
    logged, counted = with_database(database_url, read)
    assert counted == logged
    assert {status for _, status, _ in logged} == {"passed", "failed", "abstained", "skipped"}
    assert {cause for _, status, cause in logged if status == "abstained"} == {"broke"}


async def test_a_verifier_that_keeps_breaking_is_stopped_and_everybody_is_told(tmp_path, sqlite_url):
    keys = await make_keys(sqlite_url)
    rule = {"stop_share": 0.5, "stop_after": 4, "stop_s": 3600.0}
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url, verifiers=rule)
    async with live(settings, ScriptedEngine(["six"])) as app:
        picky = {"name": "picky", "kind": "python", "config": {"code": BREAKS}}
        assert (await ask(app, "POST", "/v1/verifiers", picky, key=keys["admin"])).status == 201
        task = {"name": "sums", "verifiers": ["picky"]}
        assert (await ask(app, "POST", "/v1/tasks", task, key=keys["admin"])).status == 201
        assert (await ask(app, "GET", "/ready")).json()["degraded"] == []
        answers = [await chat(app, keys["client"], messages=[{"role": "user", "content": str(n)}]) for n in range(6)]
        assert {one.headers["x-mulligan-outcome"] for one in answers} == {"unverified"}
        context = app.rest.state.context
        episode = await until(lambda: context.episodes.get(answers[-1].json()["mulligan"]["episode_id"]))
        (verdict,) = episode.attempts[0].verdicts
        assert verdict.cause == "stopped"
        assert verdict.reason.startswith("the verifier is stopped until ")
        assert "4 of its latest 4 verdicts broke, most often by broke" in verdict.reason

        public = await ask(app, "GET", "/ready")
        assert (public.status, public.json()["status"], public.json()["degraded"]) == (200, "ready", ["verifiers"])
        for key in (None, keys["client"], "mk-nobody"):
            assert "stopped" not in (await ask(app, "GET", "/ready", key=key)).json()
        (stopped,) = (await ask(app, "GET", "/ready", key=keys["viewer"])).json()["stopped"]
        assert (stopped["verifier"], stopped["cause"]) == ("picky@1", "broke")
        assert stopped["until"] > time.time()

        async def find_event():
            return [one for one in await context.events.list() if one.kind == "verifier.stopped"]

        (event,) = await until(find_event)
        assert (event.subject, event.details["cause"]) == ("picky@1", "broke")

        async def find_stats():
            stats = (await ask(app, "GET", "/v1/verifiers/picky/stats", key=keys["viewer"])).json()
            return stats if stats["verdicts"] == 6 else None

        stats = await until(find_stats)
        assert [one["verifier"] for one in stats["stopped"]] == ["picky@1"]
        assert (stats["abstained"], stats["skipped"], stats["abstention_rate"]) == (6, 0, 1.0)
        assert stats["causes"] == {"broke": 4, "stopped": 2}
        assert stats["mean_ms"] <= stats["slowest_ms"]
        logged = await context.episodes.list(task="sums")
        assert "training" in {one.split for one in logged}
        assert await context.episodes.failures("sums", limit=10) == []  # nothing to learn from
        refused = await chat(app, keys["client"], retry={"on_abstain": "error"})
        assert (refused.status, refused.error["code"]) == (422, "verification_abstained")


async def test_stats_are_for_who_owns_the_name_or_reads_everything(tmp_path, sqlite_url):
    keys = await make_keys(sqlite_url)
    async with live(Settings(data_dir=tmp_path, database_url=sqlite_url), ScriptedEngine(["4"])) as app:
        four = {"name": "four", "kind": "regex", "config": {"pattern": "4"}}
        await ask(app, "POST", "/v1/verifiers", four, key=keys["admin"])
        path = "/v1/verifiers/four/stats"
        statuses = {name: (await ask(app, "GET", path, key=secret)).status for name, secret in keys.items()}
        assert statuses == {"client": 403, "viewer": 200, "approver": 200, "admin": 200}
        empty = (await ask(app, "GET", f"{path}?hours=1&version=1", key=keys["admin"])).json()
        assert (empty["verdicts"], empty["abstention_rate"], empty["mean_ms"], empty["series"]) == (0, None, None, [])
        assert (await ask(app, "GET", "/v1/verifiers/none/stats", key=keys["admin"])).status == 404
        assert (await ask(app, "GET", f"{path}?hours=0", key=keys["admin"])).status == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_while_an_answer_is_judged_leaves_no_work_behind(tmp_path, sqlite_url, monkeypatch, stream):
    begun, ended = asyncio.Event(), []

    class Hangs:
        async def verify(self, request, answer, args):
            begun.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return Verdict.passed()

    monkeypatch.setattr(verification, "_compile", lambda kind, config: Hangs())
    keys = await make_keys(sqlite_url)
    async with live(Settings(data_dir=tmp_path, database_url=sqlite_url), ScriptedEngine(["4"])) as app:
        two = [{"kind": "regex", "config": {"pattern": pattern}} for pattern in "45"]
        body = {"model": "default", "messages": [{"role": "user", "content": "?"}], "verifiers": two, "stream": stream}
        connection = Connection(app, "POST", "/v1/chat/completions", body, key=keys["client"])
        running = asyncio.create_task(connection.run())
        await begun.wait()
        connection.leave()
        await asyncio.wait([running])
        context = app.rest.state.context
        (episode,) = await until(context.episodes.list)
        assert (episode.outcome, ended) == ("cancelled", ["cancelled"] * 2)
        assert context.watch.stops() == []
        assert context.traffic.running == 0


async def test_what_the_database_could_not_take_is_counted_once_it_is_back(tmp_path, sqlite_url):
    database = Database(sqlite_url)
    now = [472_222 * 3600.0]
    watch = VerdictWatch(now=lambda: now[0])
    counts, events = VerdictCountStore(database), EventStore(database)

    class Away(VerdictCountStore):
        away = True

        async def add(self, counts):
            if self.away:
                raise StoreUnavailable("away")
            await super().add(counts)

    store = Away(database)
    book = VerdictBook(watch, store, events, "api_1")
    verify = bound(expects("4")).watched(watch)
    for _ in range(3):
        await verify.judge({"messages": []}, {"content": "4"})
        with pytest.raises(StoreUnavailable):
            await book.write()
        now[0] += 3600
    store.away = False
    await verify.judge({"messages": []}, {"content": "4"})
    await book.close()
    found = [(one.hour, one.count) for one in await counts.list("v0")]
    assert found == [(472_222, 1), (472_223, 1), (472_224, 1), (472_225, 1)]
    await database.close()


async def test_a_write_that_is_cancelled_counts_once(sqlite_url):
    database = Database(sqlite_url)
    watch = VerdictWatch()
    entered, leave = asyncio.Event(), asyncio.Event()

    class Slow(VerdictCountStore):
        async def add(self, counts):
            entered.set()
            await leave.wait()
            await super().add(counts)

    store = Slow(database)
    book = VerdictBook(watch, store, EventStore(database), "api_1")
    watched = watch.over(Binding("regex", {}, "v", 1))
    watched.count(await bound(expects("4")).bound[0].judge({"messages": []}, {"content": "4"}, 1.0))
    writing = asyncio.create_task(book.write())
    await entered.wait()
    writing.cancel()
    await asyncio.wait([writing])
    closing = asyncio.create_task(book.close())
    leave.set()
    await closing
    assert [one.count for one in await store.list("v")] == [1]
    await database.close()
