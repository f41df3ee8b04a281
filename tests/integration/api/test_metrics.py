"""`/metrics`: who may read it, and that what happens is in it. Over the wired application, and over its process."""

import asyncio
import http.client
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api import vital_signs
from server.app import create_app
from server.domain import Role, Scope
from server.settings import EngineSettings, Settings, TelemetrySettings
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.rounds import RoundStore
from server.store.trainers import TrainerStore
from server.telemetry.catalogue import CATALOGUE
from tests.fixtures.asgi import Answer, ask
from tests.fixtures.engines import ScriptedEngine
from tests.fixtures.server import ApiServer

TOKEN = "scrape-token-0123456789"
PATIENCE_S = 60.0


def read(text: str, name: str, **labels: str) -> float:
    """Add up the samples of a name that have these labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [one for one in samples if one.name == name and labels.items() <= one.labels.items()]
    return sum(one.value for one in found)


@dataclass
class Live:
    """The wired application in this process."""

    app: Any
    database: Database
    keys: dict[str, str]

    async def scrape(self, key: str | None = TOKEN, **headers: str) -> Answer:
        return await ask(self.app, "GET", "/metrics", key=self.keys.get(key or "", key), headers=headers)

    async def read(self, name: str, **labels: str) -> float:
        return read((await self.scrape()).body.decode(), name, **labels)

    async def ask(self, method: str, path: str, body: Any = None, key: str = "admin") -> Answer:
        return await ask(self.app, method, path, body, key=self.keys.get(key, key))

    async def chat(self, text: str, **fields: Any) -> Answer:
        body = {"model": "sums", "messages": [{"role": "user", "content": text}], **fields}
        return await self.ask("POST", "/v1/chat/completions", body, "client")

    async def wait_for(self, holds: Callable[[str], bool]) -> str:
        """Scrape until something holds."""
        deadline, text = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < deadline:
            text = (await self.scrape()).body.decode()
            if holds(text):
                return text
            await asyncio.sleep(0.05)
        raise AssertionError(f"it never held in {PATIENCE_S:g} s:\n{text}")


@asynccontextmanager
async def live(folder: Path, url: str, *script: Any, **telemetry: Any) -> AsyncIterator[Live]:
    settings = Settings(
        data_dir=folder, database_url=url,
        engine=EngineSettings(max_loaded_loras=1000), telemetry=TelemetrySettings(**telemetry),
    )  # fmt: skip
    database = Database(url)
    keys = {role.value: (await KeyStore(database).create(role, role))[0] for role in Role}
    keys["registrar"] = (await KeyStore(database).create("registrar", scopes=list(Scope)))[0]
    app = create_app(settings, open_engine=lambda _: ScriptedEngine([*script] or ["4"]))
    async with app.rest.router.lifespan_context(app.rest):
        running = Live(app, database, keys)
        verifier = {"name": "four", "kind": "regex", "config": {"pattern": "4"}}
        for path, body in (("/v1/verifiers", verifier), ("/v1/tasks", {"name": "sums", "verifiers": ["four"]})):
            assert (await running.ask("POST", path, body)).status == 201
        yield running
    await database.close()


async def test_only_the_token_and_those_who_read_everything_are_let_in(tmp_path, sqlite_url):
    async with live(tmp_path, sqlite_url, metrics_token=TOKEN) as server:
        who = (None, "wrong", "client", "registrar", "viewer", "approver", "admin", TOKEN)
        assert [(await server.scrape(key)).status for key in who] == [401, 401, 403, 403, 200, 200, 200, 200]
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/episodes"),
            ("POST", "/metrics"),
            ("GET", "/metrics/"),
        ):
            assert (await server.ask(method, path, key=TOKEN)).status == 401  # it opens that door alone
        assert (await server.ask("POST", "/metrics")).status == 405


async def test_no_token_is_no_way_in_and_open_is_open(tmp_path, sqlite_url):
    async with live(tmp_path / "none", sqlite_url) as server:
        for shown in ("", " ", TOKEN):
            answer = await server.scrape(None, authorization=f"Bearer {shown}")
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    async with live_again(tmp_path / "open", sqlite_url, metrics_open=True) as app:
        assert (await ask(app, "GET", "/metrics")).status == 200
        assert (await ask(app, "GET", "/v1/models")).status == 401
    async with live_again(tmp_path / "off", sqlite_url, metrics=False, metrics_open=True) as app:
        assert (await ask(app, "GET", "/metrics")).status == 404


@asynccontextmanager
async def live_again(folder: Path, url: str, **telemetry: Any) -> AsyncIterator[Any]:
    settings = Settings(data_dir=folder, database_url=url, telemetry=TelemetrySettings(**telemetry))
    app = create_app(settings, open_engine=lambda _: ScriptedEngine())
    async with app.rest.router.lifespan_context(app.rest):
        yield app


async def test_an_episode_is_counted_with_all_that_it_consists_of(tmp_path, sqlite_url):
    script = ["5", "it was one too many", "4", "4", "5", "again", "6"]
    async with live(tmp_path, sqlite_url, *script, metrics_token=TOKEN) as server:
        answers = [await server.chat("2+2?") for _ in range(3)]
        outcomes = [answer.json()["mulligan"]["outcome"] for answer in answers]
        assert outcomes == ["recovered", "passed", "exhausted"]
        text = (await server.scrape()).body.decode()
        expected = [
            (3, "mulligan_requests_total", {"surface": "chat", "status": "200"}),
            (3, "mulligan_request_duration_seconds_count", {"surface": "chat"}),
            *[(1, "mulligan_episodes_total", {"task": "sums", "outcome": outcome}) for outcome in outcomes],
            (2, "mulligan_attempts_total", {"part": "attempt", "status": "failed"}),
            (1, "mulligan_attempts_total", {"part": "retry", "status": "passed"}),
            (2, "mulligan_reflections_total", {"task": "sums"}),
            (2, "mulligan_verdicts_total", {"verifier": "four@1", "status": "passed", "mode": "enforce"}),
            (5, "mulligan_verdict_duration_seconds_count", {"verifier": "four@1"}),
            (20, "mulligan_tokens_total", {"task": "sums", "part": "reflection", "kind": "prompt"}),
            (2, "mulligan_engine_duration_seconds_count", {"part": "retry"}),
            (3, "mulligan_log_episodes_total", {"place": "database"}),
            (3, "mulligan_queue_duration_seconds_count", {}),
        ]
        assert [(read(text, name, **labels), name, labels) for _, name, labels in expected] == expected


async def test_what_clients_make_up_is_in_no_label(tmp_path, sqlite_url):
    async with live(tmp_path, sqlite_url, metrics_token=TOKEN) as server:
        for model, status in (("made-up-model", 404), ("made-up@99", 403)):
            body = {"model": model, "messages": [{"role": "user", "content": "made-up"}]}
            assert (await server.ask("POST", "/v1/chat/completions", body, "client")).status == status
        await server.ask("GET", "/made-up-path")
        await server.ask("MADE-UP", "/health")
        await server.chat("4", user="made-up-user", metadata={"made-up": "made-up"})
        text = (await server.scrape()).body.decode()
        assert await server.read("mulligan_requests_total", surface="chat", status="404") == 1
        assert "made-up" not in text.lower()
        assert not [secret for secret in (*server.keys.values(), TOKEN) if secret in text]


async def test_rounds_workers_disk_and_database_are_told_by_the_api_alone(tmp_path, sqlite_url, monkeypatch):
    monkeypatch.setattr(vital_signs, "READ_EVERY_S", 0.0)
    async with live(tmp_path, sqlite_url, metrics_token=TOKEN) as server:
        text = (await server.scrape()).body.decode()
        assert 'mulligan_trainers{pool="default"} 0.0' in text  # said, and not left out: an alert looks at it
        assert read(text, "mulligan_database_up") == 1
        free, size = (read(text, f"mulligan_disk_{what}_bytes", folder="data") for what in ("free", "size"))
        assert 0 < free <= size
        assert "mulligan_log_spool_bytes 0.0" in text
        rounds = RoundStore(server.database)
        made = await rounds.create("sums", {})
        text = (await server.scrape()).body.decode()
        assert read(text, "mulligan_rounds", state="queued") == 1
        assert 'mulligan_round_queued_seconds{pool="default",task="sums"}' in text
        await rounds.lease(made.id, "worker-1")
        await TrainerStore(server.database).report("worker-1", "default")
        text = (await server.scrape()).body.decode()
        assert (read(text, "mulligan_rounds", state="running"), read(text, "mulligan_trainers", pool="default")) == (
            1,
            1,
        )
        for what in ("running", "heartbeat_age", "progress_age"):
            assert f'mulligan_round_{what}_seconds{{pool="default",task="sums"}}' in text
        assert "mulligan_round_queued_seconds{" not in text
        assert 0 <= read(text, "mulligan_trainer_heartbeat_age_seconds", pool="default") < PATIENCE_S


async def test_a_database_that_is_away_is_told_and_so_is_what_waits_in_the_spool(tmp_path, sqlite_url, monkeypatch):
    monkeypatch.setattr(vital_signs, "READ_EVERY_S", 0.0)
    async with live(tmp_path, sqlite_url, metrics_token=TOKEN) as server:
        async with server.database.write() as connection:
            await connection.exec_driver_sql("ALTER TABLE attempts RENAME TO attempts_away")
            await connection.exec_driver_sql("ALTER TABLE rounds RENAME TO rounds_away")
        assert (await server.chat("4")).status == 200
        text = (await server.scrape()).body.decode()
        assert read(text, "mulligan_database_up") == 0
        assert read(text, "mulligan_log_spooling") == 1
        assert read(text, "mulligan_log_episodes_total", place="spool") == 1
        assert 0 < read(text, "mulligan_log_spool_bytes") < read(text, "mulligan_log_spool_limit_bytes")
        async with server.database.write() as connection:
            await connection.exec_driver_sql("ALTER TABLE attempts_away RENAME TO attempts")
            await connection.exec_driver_sql("ALTER TABLE rounds_away RENAME TO rounds")
        await server.wait_for(
            lambda text: "mulligan_log_spool_bytes 0.0" in text and "mulligan_database_up 1.0" in text
        )


@pytest.mark.postgres
async def test_postgresql_tells_the_same(tmp_path, postgres_url):
    async with live(tmp_path, postgres_url, metrics_token=TOKEN) as server:
        await RoundStore(server.database).create("sums", {})
        text = (await server.scrape()).body.decode()
        assert read(text, "mulligan_database_up") == 1
        assert read(text, "mulligan_rounds", state="queued") == 1


async def test_both_formats_can_be_read(tmp_path, sqlite_url):
    async with live(tmp_path, sqlite_url, metrics_token=TOKEN) as server:
        answer = await server.scrape()
        assert answer.headers["content-type"].startswith("text/plain")
        names = {family.name for family in text_string_to_metric_families(answer.body.decode())}
        assert names <= {metric.name for metric in CATALOGUE}
        answer = await server.scrape(accept="application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")


def test_the_process_as_users_run_it_can_be_scraped(api: ApiServer):
    def scrape() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        try:
            connection.request("GET", "/metrics", headers={"authorization": f"Bearer {api.keys['viewer']}"})
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()
        finally:
            connection.close()

    before = scrape()
    body = {"model": "sums", "messages": [{"role": "user", "content": "5 | one too many | 4"}]}
    status, answer, _ = api.ask("POST", "/v1/chat/completions", body, key="client")
    assert (status, answer["mulligan"]["outcome"]) == (200, "recovered")
    after = scrape()
    for name in ("mulligan_episodes_total", "mulligan_requests_total"):
        assert read(after, name) > read(before, name)
    assert read(after, "mulligan_process_resident_memory_bytes", worker="0") > 1e7
    assert read(after, "mulligan_engine_up", engine=api.settings.engine.url) == 1
