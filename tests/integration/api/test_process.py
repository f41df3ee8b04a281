"""What an API process owes: nothing answered is lost, nothing goes on for who left, no key works once revoked."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.store.episodes import EpisodeStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from tests.fixtures.server import make_keys, serve_api, with_database

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


def chat(api, text, **fields):
    body = {"model": "default", "messages": [{"role": "user", "content": text}], **fields}
    return api.ask("POST", "/v1/chat/completions", body, key="client")


def read_stream(api, text):
    """Read a stream to its end; return the episode's id."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    body = {"model": "default", "messages": [{"role": "user", "content": text}], "stream": True}
    headers = {"authorization": f"Bearer {api.keys['client']}"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.read().endswith(b"data: [DONE]\n\n")
        return response.headers["x-mulligan-episode"]
    finally:
        connection.close()


def wait_for(look, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def find_episode(api, episode_id):
    return with_database(api.settings.database_url, lambda db: EpisodeStore(db).get(episode_id))


def test_what_was_answered_survives_kill_9(database_url, tmp_path, wire_engine):
    with serve_api(tmp_path, database_url, wire_engine.url) as api:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: chat(api, f"5 | Hm. | 4 {number}", verifiers=FOUR), range(24)))
        streamed = read_stream(api, "one two")
        last = chat(api, "4", verifiers=FOUR)
        api.kill()
        assert {status for status, _, _ in [*answers, last]} == {200}
        for _, answer, headers in [*answers, last]:
            episode = find_episode(api, headers["x-mulligan-episode"])
            assert episode.outcome == answer["mulligan"]["outcome"]
            assert episode.attempts[-1].answer["content"] == answer["choices"][0]["message"]["content"]
        assert find_episode(api, streamed).attempts[0].answer["content"] == "one two"


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_stops_the_engine_and_is_logged(api, wire_engine, stream):
    cut_off, aborted = wire_engine.cut_off, len(wire_engine.aborted)
    before = {one["id"] for one in api.ask("GET", "/v1/episodes?limit=200")[1]["data"]}
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    body = {"model": "sums", "messages": [{"role": "user", "content": "sleep 20"}], "stream": stream}
    headers = {"authorization": f"Bearer {api.keys['client']}"}
    asked = len(wire_engine.requests)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    wait_for(lambda: len(wire_engine.requests) > asked)
    connection.close()
    wait_for(lambda: wire_engine.cut_off > cut_off or len(wire_engine.aborted) > aborted)

    def find_new():
        listed = api.ask("GET", "/v1/episodes?limit=200")[1]["data"]
        return [one for one in listed if one["id"] not in before]

    (episode,) = wait_for(find_new)
    assert episode["outcome"] == "cancelled"


def test_a_revoked_key_is_refused_within_a_second_by_every_process(api):
    secret, key = with_database(api.settings.database_url, lambda db: KeyStore(db).create("gone"))
    api.keys["gone"] = secret
    assert api.ask("GET", "/v1/models", key="gone")[0] == 200
    with_database(api.settings.database_url, lambda db: KeyStore(db).revoke(key.id))  # as another process would
    revoked_at = time.monotonic()
    while (status := api.ask("GET", "/v1/models", key="gone")[0]) == 200:
        assert time.monotonic() - revoked_at < 1.0
        time.sleep(0.02)
    assert status == 401


def test_a_stop_in_good_order_lets_requests_end_and_leaves_no_trace(api_database, folder, wire_engine):
    keys = make_keys(api_database)
    with serve_api(folder / "second", api_database, wire_engine.url, keys=keys) as second:
        with ThreadPoolExecutor(1) as pool:
            asked = len(wire_engine.requests)
            running = pool.submit(chat, second, "sleep 0.5")
            wait_for(lambda: len(wire_engine.requests) > asked)
            second.process.terminate()
            assert running.result()[0] == 200
        assert second.process.wait(20) in (0, -15)
    live = with_database(api_database, lambda db: PresenceStore(db).live(60.0))
    assert len(live) <= 1  # the shared process, if it was started
