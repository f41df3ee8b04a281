"""Who leaves stops what runs for him, and room is given in order: over a real API process."""

import http.client
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from server.engine.launch import engine_command
from server.settings import EngineSettings
from server.store import migrations
from server.store.presence import PresenceStore
from tests.fixtures.server import make_keys, serve_api, with_database
from tests.fixtures.wire_engine import serve_wire_engine

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
SHAPES = {
    "whole": (1, {}),
    "verified": (1, {"verifiers": FOUR}),
    "live": (1, {"stream": True}),
    "held": (1, {"stream": True, "verifiers": FOUR}),
    "several": (3, {"n": 3}),
    "several held": (3, {"n": 3, "stream": True, "verifiers": FOUR}),
    "several live": (3, {"n": 3, "stream": True}),
}
CANCELLED_WITHIN_S = 5.0
"""The promise is one second; a machine may be busy."""


class Client:
    """A connection with one request on its way, which can be cut."""

    def __init__(self, api, text, headers=None, **fields):
        body = {"model": "default", "messages": [{"role": "user", "content": text}], **fields}
        given = {"authorization": f"Bearer {api.keys['client']}", **(headers or {})}
        self.connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), given)

    def leave(self):
        self.connection.close()

    def read(self):
        with self.connection.getresponse() as response:
            answer = response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
        self.connection.close()
        return answer


def wait_for(look, timeout_s=CANCELLED_WITHIN_S):
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def list_episodes(api):
    return api.ask("GET", "/v1/episodes?limit=200")[1]["data"]


def list_new(api, before):
    return [one for one in list_episodes(api) if one["id"] not in before]


def count_in_flight(api):
    live = with_database(api.settings.database_url, lambda db: PresenceStore(db).live(60.0))
    return sum(sum(one.in_flight.values()) for one in live)


@pytest.mark.parametrize("shape", SHAPES)
def test_who_leaves_stops_the_engine_and_is_logged_as_cancelled(api, wire_engine, shape):
    count, fields = SHAPES[shape]
    before = {one["id"] for one in list_episodes(api)}
    asked, cut_off, aborted = len(wire_engine.requests), wire_engine.cut_off, len(wire_engine.aborted)
    client = Client(api, "sleep 60", **fields)
    wait_for(lambda: len(wire_engine.requests) == asked + count)
    client.leave()
    wait_for(lambda: wire_engine.cut_off == cut_off + count)
    wait_for(lambda: len(wire_engine.aborted) == aborted + count)
    logged = wait_for(lambda: list_new(api, before))
    assert [one["outcome"] for one in logged] == ["cancelled"] * count
    wait_for(lambda: not count_in_flight(api))


@pytest.mark.parametrize("stage", ["5 | sleep 60", "5 | Hm. | sleep 60"])
def test_who_leaves_in_a_reflection_or_a_retry_stops_that_and_leaves_the_attempt_in_the_log(api, wire_engine, stage):
    before = {one["id"] for one in list_episodes(api)}
    asked, cut_off = len(wire_engine.requests), wire_engine.cut_off
    client = Client(api, stage, verifiers=FOUR)
    wait_for(lambda: len(wire_engine.requests) == asked + stage.count("|") + 1)
    client.leave()
    wait_for(lambda: wire_engine.cut_off == cut_off + 1)
    (logged,) = wait_for(lambda: list_new(api, before))
    assert logged["outcome"] == "cancelled"
    episode = api.ask("GET", f"/v1/episodes/{logged['id']}")[1]
    assert [attempt["status"] for attempt in episode["attempts"]] == ["failed"]
    assert len(episode["reflections"]) == stage.count("|") - 1


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, api_database):
    """A process with room for one episode, and one more that waits for at most half a minute."""
    with serve_wire_engine() as engine:
        limits = {"max_concurrent": 1, "max_queued": 1, "queue_timeout_s": 30}
        folder, keys = tmp_path_factory.mktemp("narrow"), make_keys(api_database)
        with serve_api(folder, api_database, engine.url, keys=keys, limits=limits) as api:
            yield api, engine


def test_past_the_queue_it_is_429_and_who_waited_is_served(narrow):
    api, engine = narrow
    asked = len(engine.requests)
    first = Client(api, "sleep 2")
    wait_for(lambda: len(engine.requests) == asked + 1)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(Client(api, f"4 {number}").read) for number in range(3)]
        answers = [one.result() for one in waiting]
    assert first.read()[0] == 200
    assert sorted(status for status, _, _ in answers) == [200, 429, 429]
    for status, body, headers in answers:
        if status == 429:
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
            assert int(headers["retry-after"]) >= 1
    assert len(engine.requests) == asked + 2


def test_who_leaves_the_queue_is_never_run(narrow):
    api, engine = narrow
    asked = len(engine.requests)
    first = Client(api, "sleep 60")
    wait_for(lambda: len(engine.requests) == asked + 1)
    queued = Client(api, "4")
    time.sleep(1)  # it stands in the queue now: another one is refused
    assert Client(api, "4").read()[0] == 429
    queued.leave()
    wait_for(lambda: _is_queued(api))  # its place is free again
    first.leave()
    wait_for(lambda: engine.cut_off)
    assert Client(api, "4").read()[0] == 200
    assert "4" not in [request["messages"][0]["content"] for request in engine.requests[asked + 1 : -1]]


def _is_queued(api):
    """Try whether there is a place in the queue, without waiting for room: the wait ends at this client's deadline."""
    status, body, _ = Client(api, "4", headers={"x-stainless-read-timeout": "0.1"}).read()
    assert status == 429
    return "No room within" in json.loads(body)["error"]["message"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A process over the real local engine, which would write for a minute if nobody stopped it; and that engine."""
    from tests.fixtures.models import END, make_model, make_tokenizer  # noqa: PLC0415 -- imports torch, which takes seconds

    folder = tmp_path_factory.mktemp("local")
    make_model(folder / "model", layers=8, hidden=256, context=8192)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = EngineSettings(model=str(folder / "model"), context_tokens=8192, threads=1, max_running_requests=4)
    argv, environment = engine_command(settings, port)
    engine = subprocess.Popen(argv, env=environment)
    try:
        url = f"sqlite:///{folder / 'mulligan.db'}"
        migrations.upgrade(url)
        with serve_api(folder, url, f"http://127.0.0.1:{port}") as api:
            endless = {"logit_bias": {str(make_tokenizer().convert_tokens_to_ids(END)): -100}}
            yield api, psutil.Process(engine.pid), {**endless, "max_completion_tokens": 8000}
    finally:
        engine.terminate()
        engine.wait(20)


def is_idle(process):
    """Say whether a process computed next to nothing within half a second."""
    before = process.cpu_times()
    time.sleep(0.5)
    after = process.cpu_times()
    return after.user - before.user < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["whole", "live", "held", "several"])
def test_who_leaves_stops_the_local_engine(local, shape):
    api, engine, endless = local
    count, fields = SHAPES[shape]
    before = {one["id"] for one in list_episodes(api)}
    wait_for(lambda: is_idle(engine), 60)
    client = Client(api, "Write.", **fields, **endless)
    wait_for(lambda: not is_idle(engine))
    client.leave()
    wait_for(lambda: is_idle(engine))
    logged = wait_for(lambda: list_new(api, before))
    assert [one["outcome"] for one in logged] == ["cancelled"] * count
