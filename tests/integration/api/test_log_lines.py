"""What an API process logs: lines of JSON that say which episode, and nothing that was said in it."""

import json
import sqlite3
import time
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest

from server.logs import describe_error
from server.settings import TelemetrySettings
from server.store import migrations
from server.store.outages import first_line
from tests.fixtures.leaky_app import ANSWER, APP, REFLECTION, WANTS
from tests.fixtures.server import ApiServer, serve_api

PROMPT = "canary-prompt-heron"
FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


def say_everything(server: ApiServer) -> None:
    """Have everything said and broken that a request can meet."""

    def ask(text: str, **fields: object) -> None:
        body = {"model": "default", "messages": [{"role": "user", "content": text}], "verifiers": FOUR, **fields}
        try:
            server.ask("POST", "/v1/chat/completions", body, key="client", headers={"idempotency-key": text})
        except (json.JSONDecodeError, OSError, HTTPException):
            assert fields.get("stream")

    for want in WANTS:
        ask(f"{want}: {PROMPT}")
        ask(f"{want}: {PROMPT} streamed", stream=True, store=True)
    ask(f"a cut: {PROMPT}", stream=True, verifiers=[])
    server.ask("POST", "/v1/responses", {"model": "default", "input": f"nothing: {PROMPT}"}, key="client")
    server.ask("POST", "/v1/chat/completions", {"model": "default", "messages": PROMPT, PROMPT: 1}, key="client")
    server.ask("POST", "/v1/chat/completions", {"model": PROMPT, "messages": []}, key="client")
    server.ask("GET", "/v1/models", key=f"mk-{PROMPT}")
    database = server.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("ALTER TABLE attempts RENAME TO attempts_away")
        connection.commit()
    ask(f"nothing: {PROMPT} to the spool")


def read_lines(path: Path, wanted: set[str]) -> list[dict]:
    """Read the log once these events are in it."""
    deadline = time.monotonic() + 60
    while True:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if wanted <= {line["event"] for line in lines} or time.monotonic() > deadline:
            return lines
        time.sleep(0.2)


def test_nothing_that_was_said_is_in_the_log_of_any_episode_and_each_line_says_which(tmp_path, capfd):
    url = f"sqlite:///{tmp_path / 'mulligan.db'}"
    migrations.upgrade(url)
    telemetry = TelemetrySettings(episode_lines=True)
    with serve_api(tmp_path, url, "http://127.0.0.1:9", app=APP, log_json=True, telemetry=telemetry) as server:
        capfd.readouterr()
        say_everything(server)
        keys = server.keys
    path = tmp_path / "stderr"
    path.write_text(capfd.readouterr().err)
    lines = read_lines(path, set())
    text = path.read_text()
    for canary in (PROMPT, ANSWER, REFLECTION, *keys.values()):
        assert canary not in text, [line for line in text.splitlines() if canary in line][:3]
    events = {line["event"] for line in lines}
    broken = {"retry_given_up", "verifier_broke", "request_broke", "The database is away; episodes go to the spool"}
    assert broken | {"episode", "Task exception was never retrieved"} <= events
    assert all({"level", "timestamp"} <= line.keys() for line in lines)
    about = [line for line in lines if line["event"] in ("retry_given_up", "verifier_broke")]
    assert {line["error"] for line in about} == {"EngineRefused", "KeyError", "ValueError"}
    assert all(line["episode"].startswith("ep_") and line["request_id"].startswith("req_") for line in about)
    (cut, *_) = [line for line in lines if line["event"] == "request_broke" and "LookupError" in line["exception"]]
    assert "leaky_app.py" in cut["exception"]  # where it was can be seen
    outcomes = {line["outcome"] for line in lines if line["event"] == "episode"}
    assert {"recovered", "errored", "exhausted", "unverified"} <= outcomes
    assert {line["error"] for line in lines if line["event"] == "episode"} >= {"", "EngineRefused", "RuntimeError"}


def test_a_traceback_shows_where_and_which_class_and_words_where_they_are_asked_for():
    try:
        try:
            raise ValueError(PROMPT)
        except ValueError as error:
            raise RuntimeError(f"because of {PROMPT}") from error
    except RuntimeError as error:
        told, words = describe_error(error), describe_error(error, words=True)
    assert PROMPT not in told
    assert words.count(PROMPT) >= 2
    assert told.index("ValueError: (words withheld") < told.index("RuntimeError: (words withheld")
    assert "test_log_lines.py" in told
    assert describe_error(FileNotFoundError(2, "No such file", "/a/b")).endswith("No such file: '/a/b'")


@pytest.mark.parametrize("error", [ValueError(f"invalid input for query argument $3: '{PROMPT}'"), TypeError(PROMPT)])
def test_what_the_database_refuses_is_named_by_its_class(error):
    assert first_line(error) == type(error).__name__
    assert first_line(OSError("no route")) == "no route"
