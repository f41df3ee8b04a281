"""A verifier's life on the command line: files and samples, versions on trial, archive and revoke; and keys changed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain import Adapter, BindingMode, LoggedVerdict, TaskVerifier
from server.settings import LogSettings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.tasks import TaskStore
from tests.fixtures.episodes import make_attempt, make_episode
from tests.fixtures.server import with_database
from tests.integration.cli.test_commands import app, fail, folder, migrated, run, run_json, runner

__all__ = ["folder", "migrated"]

CODE = 'def verify(request, answer, args):\n    print("hm")\n    return args["word"] in answer["content"]\n'


@pytest.fixture
def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'mulligan.db'}"


def write(path: Path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def add(name: str, *patterns: str) -> None:
    for pattern in patterns:
        run("verifiers", "add", name, "--kind", "regex", "--config", json.dumps({"pattern": pattern}))


def pins_of(task) -> list[tuple[str, str]]:
    return [(f"{pin['name']}@{pin['version']}", pin["mode"]) for pin in task["verifiers"]]


class TestAdding:
    def test_code_in_a_file_is_tried_on_a_sample_before(self, folder: Path, tmp_path: Path, capsys, monkeypatch):
        file = write(tmp_path / "check.py", CODE)
        sample = {"answer": "a cat", "args": {"word": "cat"}, "expect": "passed"}
        good = write(tmp_path / "sample.json", sample)
        bad = write(tmp_path / "bad.json", {**sample, "expect": "failed"})
        words = ("verifiers", "add", "--file", file, "--run", good)
        said = fail(capsys, monkeypatch, *words, "--run", bad)
        assert "bad.json expects failed, but the verdict is passed. Nothing was added." in said
        assert run_json("verifiers", "list") == []
        shown = run(*words)
        for part in ("passed", "hm", "check@1", "expected"):
            assert part in shown
        assert "nothing was added" in run(*words)
        again = run_json(*words)
        assert (again["version"], again["kind"], again["registered"]) == (1, "python", False)
        assert [trial["status"] for trial in again["trials"]] == ["passed"]

    def test_json_in_a_file_is_the_verifier_or_its_config(self, folder: Path, tmp_path: Path):
        whole = write(tmp_path / "a.json", {"kind": "regex", "config": {"pattern": "4"}, "description": "fours"})
        made = run_json("verifiers", "add", "four", "--file", whole)
        assert (made["name"], made["description"], made["config"]) == ("four", "fours", {"pattern": "4"})
        config = write(tmp_path / "short.json", {"pattern": "^.{1,5}$"})
        made = run_json("verifiers", "add", "--file", config, "--kind", "regex", "--config", '{"negate": true}')
        assert (made["name"], made["config"]) == ("short", {"pattern": "^.{1,5}$", "negate": True})

    @pytest.mark.parametrize(
        ("name", "content", "more", "said"),
        [
            ("check.py", "x = 1\ndef verify(:\n", (), "line 2"),
            ("check.txt", "x", (), "--file is a .py"),
            ("check.json", {"pattern": "4"}, (), 'it has no "kind"'),
            ("check.json", {"kind": "regex", "configuration": {}}, (), "'configuration' is not known"),
            ("check.json", "[", (), "wants a JSON object"),
            ("kinds.json", {"kind": "regex", "config": {"pattern": "4"}}, (), "No verifier can be called 'kinds'"),
            ("check.json", {"kind": "countdown"}, ("--run", {"answer": "1"}), "numbers"),
            ("check.json", {"kind": "countdown"}, ("--run", {"args": {}}), "a sample has an answer"),
            ("check.json", {"kind": "countdown"}, ("--run", {"answer": "1", "expects": "failed"}), "'expects' is not"),
            ("check.json", {"kind": "countdown"}, ("--run", {"answer": "1", "expect": "fail"}), "passed or failed"),
            ("check.py", CODE, ("--run", {"answer": "1", "request": {"messages": "hi"}}), "messages is a list of JSON"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said(
        self, folder: Path, tmp_path: Path, capsys, monkeypatch, name: str, content, more, said: str
    ):
        words = ["--file", write(tmp_path / name, content)]
        if more:
            words += [more[0], write(tmp_path / "sample.json", more[1])]
        assert said in fail(capsys, monkeypatch, "verifiers", "add", *words)
        assert run_json("verifiers", "list") == []

    @pytest.mark.parametrize("request_", ['{"messages": 5}', '{"messages": ["hi"]}', '{"tools": {}}'])
    def test_a_request_that_is_none_is_refused(self, folder: Path, capsys, monkeypatch, request_: str):
        add("short", "4")
        words = ("verifiers", "run", "short", "--answer", "4", "--request", request_)
        assert "is a list of JSON objects" in fail(capsys, monkeypatch, *words)

    def test_an_abstention_on_a_sample_that_expects_nothing_is_added_with_a_warning(self, folder: Path, tmp_path: Path):
        file = write(tmp_path / "broken.py", "def verify(request, answer, args):\n    return args['word']\n")
        words = ("verifiers", "add", "--file", file, "--run", write(tmp_path / "sample.json", {"answer": "a cat"}))
        made = runner.invoke(app, words)
        assert made.exit_code == 0, made.output
        assert "warning:" in made.stderr
        assert "the verifier abstained (broke): KeyError" in made.stderr
        assert "broke" in made.stdout

    def test_a_long_configuration_is_cut_but_for_machines(self, folder: Path):
        words = ("verifiers", "add", "long", "--kind", "regex", "--config", json.dumps({"pattern": "x" * 300}))
        assert "x" * 250 not in run(*words)
        assert run_json(*words)["config"] == {"pattern": "x" * 300}

    def test_a_kind_that_is_taken_for_a_verifier_is_told_apart(self, folder: Path, capsys, monkeypatch):
        said = fail(capsys, monkeypatch, "verifiers", "run", "regex", "--answer", "x")
        assert "to try the kind 'regex' say its --config" in said
        assert "the kind" not in fail(capsys, monkeypatch, "verifiers", "run", "nobody", "--answer", "x")

    def test_nothing_to_add_is_said(self, folder: Path, capsys, monkeypatch):
        assert "say the verifier's NAME" in fail(capsys, monkeypatch, "verifiers", "add")
        assert "verifiers kinds" in fail(capsys, monkeypatch, "verifiers", "add", "x")
        assert "cannot read" in fail(capsys, monkeypatch, "verifiers", "add", "--file", "/no/such.py")

    def test_a_kind_is_shown_with_what_it_takes(self, capsys, monkeypatch):
        assert run_json("verifiers", "kinds", "regex")["config_schema"]["required"] == ["pattern"]
        assert '"pattern"' in run("verifiers", "kinds", "regex")
        assert {"regex", "python"} <= {kind["name"] for kind in run_json("verifiers", "kinds")}
        assert "no kind 'magic'" in fail(capsys, monkeypatch, "verifiers", "kinds", "magic")


class TestOnTrial:
    def test_a_version_is_observed_audited_and_promoted(self, folder: Path, capsys, monkeypatch):
        add("sql", "1", "2", "3")
        add("hidden", "1")
        run("tasks", "create", "t", "--verifier", "sql@1", "--observe", "sql@2", "--audit", "hidden")
        watching = [("sql@2", "observe"), ("hidden@1", "audit")]
        assert pins_of(run_json("tasks", "show", "t")) == [("sql@1", "enforce"), *watching]
        shown = run("tasks", "show", "t")
        assert "observe" in shown
        assert "hidden@1" in shown
        assert pins_of(run_json("tasks", "update", "t", "--max-retries", "2")) == [("sql@1", "enforce"), *watching]
        promoted = run_json("tasks", "update", "t", "--verifier", "sql@2")
        assert pins_of(promoted) == [("sql@2", "enforce"), ("hidden@1", "audit")]
        assert pins_of(run_json("tasks", "update", "t", "--observe", "sql@3")) == [
            ("sql@2", "enforce"), ("sql@3", "observe"), ("hidden@1", "audit"),
        ]  # fmt: skip
        assert pins_of(run_json("tasks", "update", "t", "--no-observe", "--no-audit")) == [("sql@2", "enforce")]
        assert "do not go together" in fail(
            capsys, monkeypatch, "tasks", "update", "t", "--observe", "sql@3", "--no-observe"
        )
        both = ("tasks", "update", "t", "--observe", "sql@1", "--observe", "sql@3")
        assert "different modes" in fail(capsys, monkeypatch, *both)

    def test_arguments_are_kept_where_a_version_moves_on(self, folder: Path, url: str):
        add("sql", "1", "2")
        run("tasks", "create", "t")
        pins = (TaskVerifier("sql", 1, {"a": 1}, {"answer": "text"}),)
        with_database(url, lambda db: TaskStore(db).update("t", verifiers=pins))
        observed = run_json("tasks", "update", "t", "--observe", "sql@2")["verifiers"][1]
        assert (observed["version"], observed["args"], observed["when"]) == (2, {"a": 1}, {"answer": "text"})
        (moved,) = run_json("tasks", "update", "t", "--verifier", "sql@2")["verifiers"]
        assert (moved["version"], moved["args"], moved["mode"]) == (2, {"a": 1}, "enforce")

    def test_agreement_is_shown(self, folder: Path, url: str, tmp_path: Path, capsys, monkeypatch):
        add("sql", "1")
        assert "no version before it" in fail(capsys, monkeypatch, "verifiers", "agreement", "sql")
        add("sql", "2")
        run("tasks", "create", "t", "--verifier", "sql@1", "--observe", "sql@2")
        assert "nothing to compare yet" in run("verifiers", "agreement", "sql")
        verdicts = (
            LoggedVerdict("sql@1", "passed", 1.0), LoggedVerdict("sql@2", "failed", 0.0, mode=BindingMode.OBSERVE),
        )  # fmt: skip
        episode = replace(make_episode(), task="t", attempts=[replace(make_attempt(1, "passed"), verdicts=verdicts)])

        async def record(database: Database) -> None:
            log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
            await log.start()
            await log.record(replace(episode, reflections=[]))
            await log.stop()

        with_database(url, record)
        found = run_json("verifiers", "agreement", "sql@2", "--with", "1", "--task", "t")
        assert (found["n"], found["agreement"], found["only_old_passed"]) == (1, 0.0, 1)
        shown = run("verifiers", "agreement", "sql")
        assert "0.0% of 1" in shown
        assert episode.id in shown


class TestWithdrawing:
    def test_an_archived_verifier_is_bound_no_more(self, folder: Path, capsys, monkeypatch):
        add("sql", "1")
        run("tasks", "create", "t", "--verifier", "sql")
        assert "pinned by the task t" in fail(capsys, monkeypatch, "verifiers", "archive", "sql")
        run("tasks", "update", "t", "--no-verifiers")
        assert "sql@1" in run("verifiers", "archive", "sql")
        assert run_json("verifiers", "list") == []
        assert "archived" in run("verifiers", "list", "--archived")
        assert "is archived" in fail(capsys, monkeypatch, "tasks", "update", "t", "--verifier", "sql@1")
        assert "no verifier 'nope'" in fail(capsys, monkeypatch, "verifiers", "archive", "nope")
        add("sql", "1")
        assert pins_of(run_json("tasks", "update", "t", "--verifier", "sql")) == [("sql@2", "enforce")]

    def test_a_revoked_version_gives_way_and_its_adapters_are_flagged(
        self, folder: Path, url: str, capsys, monkeypatch
    ):
        add("sql", "1", "2")
        run("tasks", "create", "t", "--verifier", "sql@2")
        with_database(url, lambda db: AdapterStore(db).add(Adapter("t@1", "t", "/x", {}, verifiers=("sql@2",))))
        assert "which version" in fail(capsys, monkeypatch, "verifiers", "revoke", "sql", "--reason", "x")
        assert "with --reason" in fail(capsys, monkeypatch, "verifiers", "revoke", "sql@2", "--reason", " ")
        shown = run("verifiers", "revoke", "sql@2", "--reason", "too lax")
        for part in ("back to sql@1", "task t", "t@1", "too lax"):
            assert part in shown
        assert pins_of(run_json("tasks", "show", "t")) == [("sql@1", "enforce")]
        assert "trained_on_revoked:sql@2" in run("adapters", "list")
        assert run_json("adapters", "list")[0]["flags"] == ["trained_on_revoked:sql@2"]
        assert "revoked" in run("verifiers", "list", "--name", "sql")
        assert "was revoked" in fail(capsys, monkeypatch, "tasks", "update", "t", "--observe", "sql@2")
        assert run_json("verifiers", "revoke", "sql@1", "--reason", "too")["tasks_left"] == ["t"]


class TestKeys:
    def test_a_key_is_made_with_verifiers_and_changed(self, folder: Path, capsys, monkeypatch):
        add("sql", "1", "2")
        run("tasks", "create", "t")
        made = run_json("keys", "create", "app", "--verifier", "sql@1", "--token-budget", "5", "--budget-period", "day")
        assert pins_of(made) == [("sql@1", "enforce")]
        change = ("keys", "update", made["id"])
        (key,) = run_json(*change, "--verifier", "sql", "--task", "t", "--no-scopes", "--no-train", "--name", "new")
        assert (pins_of(key), key["tasks"], key["scopes"]) == ([("sql@2", "enforce")], ["t"], [])
        assert (key["trains"], key["name"], key["limits"]["token_budget"]) == (False, "new", 5)
        (key,) = run_json(*change, "--no-verifiers", "--all-tasks", "--token-budget", "0", "--max-concurrent", "3")
        assert (key["verifiers"], key["tasks"], key["trains"]) == ([], [], False)
        assert (key["limits"]["token_budget"], key["limits"]["budget_period"]) == (None, "total")
        assert key["limits"]["max_concurrent"] == 3
        (key,) = run_json(*change, "--expires", "30d", "--train", "--scope", "pin_adapters")
        assert key["expires_at"] > key["created_at"]
        assert (key["trains"], key["scopes"]) == (True, ["pin_adapters"])
        assert run_json(*change, "--expires", "never")[0]["expires_at"] is None
        assert "nothing to change" in fail(capsys, monkeypatch, *change)
        assert "do not go together" in fail(capsys, monkeypatch, *change, "--task", "t", "--all-tasks")
        assert runner.invoke(app, [*change, "--role", "admin"]).exit_code == 2
        run("keys", "revoke", made["id"])
        assert "is revoked" in fail(capsys, monkeypatch, *change, "--name", "x")
