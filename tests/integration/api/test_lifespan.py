"""The application as the composition root wires it, in this process, on a real database: starts, outages, ends."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.engine import make_url

from server.app import create_app
from server.domain import Outcome
from server.settings import Settings
from server.store import migrations
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine
from tests.integration.store.proxy import Proxy

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


@asynccontextmanager
async def live(settings, engine):
    """Run the application's lifespan around the block."""
    app = create_app(settings, open_engine=lambda _: engine)
    async with app.rest.router.lifespan_context(app.rest):
        yield app


@pytest.fixture
async def settings(tmp_path, sqlite_url):
    return Settings(data_dir=tmp_path, database_url=sqlite_url)


@pytest.fixture
async def secret(settings):
    database = Database(settings.database_url)
    try:
        return (await KeyStore(database).create("k", "admin"))[0]
    finally:
        await database.close()


def chat(app, secret, **fields):
    body = {"model": "default", "messages": [{"role": "user", "content": "2+2?"}], **fields}
    return ask(app, "POST", "/v1/chat/completions", body, key=secret)


async def test_without_an_engine_it_is_live_but_not_ready(settings, secret):
    engine = ScriptedEngine(up=False)
    async with live(settings, engine) as app:
        assert (await ask(app, "GET", "/health")).status == 200
        ready = await ask(app, "GET", "/ready")
        assert (ready.status, ready.json()["missing"], ready.headers["retry-after"]) == (503, ["engine"], "1")
        refused = await chat(app, secret)
        assert (refused.status, refused.error["code"]) == (503, "engine_unavailable")


async def test_without_its_champions_it_is_not_ready(settings, secret):
    class Busy(ScriptedEngine):
        async def state(self):
            await asyncio.Event().wait()  # nobody knows yet what it holds

    async with live(settings, Busy()) as app:
        ready = await ask(app, "GET", "/ready")
        assert (ready.status, ready.json()["missing"]) == (503, ["adapters"])


async def test_the_default_task_is_always_there(settings, secret):
    async with live(settings, ScriptedEngine(["4"])) as app:
        answer = await chat(app, secret)
        assert (answer.status, answer.json()["model"]) == (200, "default")
        assert (await ask(app, "GET", "/v1/tasks/default", key=secret)).json()["created_at"] > 0


@pytest.mark.postgres
async def test_while_the_database_is_away_known_keys_are_served_and_nothing_is_lost(postgres_url, tmp_path):
    url = make_url(postgres_url)
    if not url.host:
        pytest.skip("needs PostgreSQL over TCP; this one listens on a socket file")
    proxy = Proxy(url.host, url.port or 5432)
    await proxy.open()
    settings = Settings(
        data_dir=tmp_path,
        database_url=url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False),
    )
    direct = Database(postgres_url)
    secret, _ = await KeyStore(direct).create("k", "admin")
    engine = ScriptedEngine(["5", "Hm.", "4"])
    async with live(settings, engine) as app:
        assert (await ask(app, "GET", "/v1/models", key=secret)).status == 200
        await proxy.close()
        assert "database" in (await ask(app, "GET", "/ready")).json()["missing"]
        await asyncio.sleep(0.6)  # longer than a key is known without asking
        answer = await chat(app, secret, verifiers=FOUR)
        assert (answer.status, answer.headers["x-mulligan-outcome"]) == (200, "recovered")
        assert (await ask(app, "GET", "/v1/models", key="mk-unknown")).status == 503
        await proxy.open()
        async with asyncio.timeout(20):
            while (found := await EpisodeStore(direct).get(answer.headers["x-mulligan-episode"])) is None:
                await asyncio.sleep(0.05)
            assert found.outcome is Outcome.RECOVERED
            while (await ask(app, "GET", "/v1/tasks", key=secret)).status != 200:
                await asyncio.sleep(0.05)
    await proxy.close()
    await direct.close()


async def test_a_start_without_a_database_serves_once_it_is_there(tmp_path):
    settings = Settings(data_dir=tmp_path)
    async with live(settings, ScriptedEngine(["4"])) as app:
        assert "database" not in (await ask(app, "GET", "/ready")).json()["missing"]  # a file is made, without tables
        assert (await ask(app, "GET", "/v1/models", key="mk-1")).status == 503
        migrations.upgrade(settings.database_url)
        database = Database(settings.database_url)
        secret, _ = await KeyStore(database).create("k", "admin")
        async with asyncio.timeout(20):
            while (await chat(app, secret)).status != 200:
                await asyncio.sleep(0.05)
            while (await ask(app, "GET", "/ready")).status != 200:
                await asyncio.sleep(0.05)
        await database.close()


async def test_the_process_leaves_when_it_ends(settings):
    database = Database(settings.database_url)
    async with live(settings, ScriptedEngine()):
        assert len(await PresenceStore(database).live(60.0)) == 1
    assert await PresenceStore(database).live(60.0) == []
    await database.close()
