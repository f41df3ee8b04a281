"""`mulligan episodes import` against a running server."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.errors import EngineUnavailable, InvalidRequest, MulliganError, NotFound, Unauthorized
from server.store.episodes import EpisodeStore
from server.store.keys import KeyStore
from tests.fixtures.server import with_database

runner = CliRunner()
FAILS, PASSES = "5 | Hm. | 4 {}", "4 {}"


@pytest.fixture
def task(api) -> str:
    """A task for one test, whose answers need a 4."""
    name = f"import-{time.time_ns()}"
    status, made, _ = api.ask("POST", "/v1/tasks", {"name": name, "verifiers": ["four"]})
    assert status == 201, made
    return name


@pytest.fixture
def importing(api, api_database, folder, monkeypatch):
    """Give the command; return its exit status and what it printed."""
    monkeypatch.setenv("MULLIGAN_API_KEY", api.keys["client"])
    monkeypatch.delenv("MULLIGAN_DATABASE_URL", raising=False)

    def give(*words: str, url: str = api.url):
        given = ["episodes", "import", *words, "--url", url, "--database-url", api_database, "--data-dir", str(folder)]
        result = runner.invoke(app, given)
        assert isinstance(result.exception, MulliganError | SystemExit | None), repr(result.exception)
        return result

    return give


def write(tmp_path: Path, *lines) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return str(path)


def problem(text: str, **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


def list_logged(api, task: str):
    return with_database(api.settings.database_url, lambda database: EpisodeStore(database).list(task=task, limit=200))


def test_problems_become_episodes_once_however_often_they_are_imported(api, task, importing, tmp_path):
    lines = [problem(FAILS.format(n), key=f"p{n}") for n in range(20)] + [problem(PASSES.format(n)) for n in range(20)]
    file = write(tmp_path, *lines, "", lines[0])
    dry = json.loads(importing(file, "--task", task, "--dry-run", "--json").stdout)
    assert (dry["lines"], dry["repeated"], dry["new"], dry["asked"]) == (41, 1, 40, 0)
    assert 0 < dry["new_held_out"] < 40
    assert list_logged(api, task) == []

    result = importing(file, "--task", task, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["asked"], report["outcomes"]) == (40, {"recovered": 20, "passed": 20})
    logged = list_logged(api, task)
    assert sum(one.split == "held_out" for one in logged) == dry["new_held_out"]
    assert {one.outcome.value for one in logged if "metadata" in (one.request or {})} == {"recovered"}
    progress = api.ask("GET", f"/v1/tasks/{task}")[1]["progress"]
    assert progress["held_out"] == dry["new_held_out"]

    again = json.loads(importing(file, "--task", task, "--json").stdout)
    assert (again["known"], again["new"], again["asked"]) == (40, 0, 0)
    assert len(list_logged(api, task)) == 40


def test_bad_lines_are_named_and_the_others_are_imported(api, task, importing, tmp_path):
    bad = {
        2: "{",
        3: "[]",
        4: {"messages": []},
        5: {"tools": []},
        6: problem("4", arguments={}),
        7: {"messages": [{"role": "nobody", "content": "4"}]},
        8: problem("4", args=[1]),
        9: problem("4", args={"no such": 1}),
        10: problem("4", key=7),
    }
    result = importing(write(tmp_path, problem("4 good"), *bad.values()), "--task", task, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout or repr(result.exception))
    assert [one["line"] for one in report["bad"]] == list(bad)
    said = {one["line"]: one["error"] for one in report["bad"]}
    assert "not valid JSON" in said[2]
    assert "messages" in said[5]
    assert "'arguments'" in said[6]
    assert said[10].startswith("key: ")
    assert "args" in said[8]
    assert "args" in said[9]
    assert [one.request["messages"][0]["content"] for one in list_logged(api, task) if one.request] == ["4 good"]
    shown = importing(write(tmp_path, "{"), "--task", task)
    assert "line 1 left out" in shown.stderr
    assert shown.exit_code == 1


def test_arguments_reach_the_verifiers_and_make_another_problem(api, importing, tmp_path):
    name = f"exact-{time.time_ns()}"
    for number in (1, 2):
        made = api.ask("POST", "/v1/verifiers", {"name": f"{name}-{number}", "kind": "exact", "config": {}})
        assert made[0] == 201, made
    api.ask("POST", "/v1/tasks", {"name": name, "verifiers": [f"{name}-1"]})
    file = write(tmp_path, problem("yes", args={"reference": "yes"}), problem("yes", args={"reference": "no"}))
    report = json.loads(importing(file, "--task", name, "--json").stdout)
    assert report["outcomes"] == {"passed": 1, "exhausted": 1}, report
    assert json.loads(importing(file, "--task", name, "--json").stdout)["known"] == 2

    api.ask("PATCH", f"/v1/tasks/{name}", {"verifiers": [f"{name}-1", f"{name}-2"]})
    both = {f"{name}-1": {"reference": "yes"}, f"{name}-2": {"reference": "yes"}}
    file = write(tmp_path, problem("yes", args=both), problem("yes", args={"reference": "yes"}))
    report = json.loads(importing(file, "--task", name, "--json").stdout)
    assert (report["outcomes"], [one["line"] for one in report["bad"]]) == ({"passed": 1}, [2])
    assert "several verifiers" in report["bad"][0]["error"]
    assert json.loads(importing(file, "--task", name, "--json").stdout)["known"] == 1


def test_what_cannot_be_of_use_is_refused_before_anything_is_asked(api, task, importing, tmp_path, monkeypatch):
    file = write(tmp_path, problem("4"))
    assert isinstance(importing(file, "--task", "nope").exception, NotFound)
    assert isinstance(importing(str(tmp_path / "none.jsonl"), "--task", task).exception, InvalidRequest)
    assert "verifies nothing" in str(importing(file, "--task", "default").exception)
    private, _ = with_database(api.settings.database_url, lambda db: KeyStore(db).create("private", trains=False))
    assert "opted out of training" in str(importing(file, "--task", task, "--key", private).exception)
    assert isinstance(importing(file, "--task", task, "--key", "mk-unknown").exception, Unauthorized)
    monkeypatch.delenv("MULLIGAN_API_KEY")
    assert "--key or MULLIGAN_API_KEY" in str(importing(file, "--task", task).exception)
    assert importing(file, "--task", task, "--dry-run").exit_code == 0
    assert list_logged(api, task) == []


def test_a_server_that_does_not_answer_ends_it_and_a_refusal_is_named(api, task, importing, tmp_path, monkeypatch):
    monkeypatch.setattr("server.cli.importing._RETRIES", 0)
    file = write(tmp_path, problem("4"))
    away = importing(file, "--task", task, url="http://127.0.0.1:1")
    assert isinstance(away.exception, EngineUnavailable)
    assert "give the same command again" in str(away.exception)
    other, _ = with_database(api.settings.database_url, lambda db: KeyStore(db).create("other", tasks=["default"]))
    refused = importing(file, "--task", task, "--json", "--key", other)
    assert refused.exit_code == 1
    (failed,) = json.loads(refused.stdout)["failed"]
    assert (failed["line"], "There is no model" in failed["error"]) == (1, True)
