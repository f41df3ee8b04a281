"""The commands on a real SQLite file: what they print, what they refuse, how they exit."""

import asyncio
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from server import cli
from server.cli import app
from server.cli.keys import parse_expiry
from server.cli.options import load_settings, parse_object, parse_pairs, split_pin
from server.cli.up import curl_line, example_body, sdk_lines
from server.domain import KeyLimits
from server.errors import InvalidRequest
from server.settings import DEMO_MODEL, EngineSettings, Settings
from server.store import migrations
from server.store.key_limits import Claim, KeyLimitStore
from server.supervisor.folder import leave_note
from tests.fixtures.server import with_database
from tools.cli_docs import PAGE, render_page
from verifiers.registry import check_args, compile_verifier

runner = CliRunner()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "mulligan.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def folder(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(migrated, tmp_path / "mulligan.db")
    monkeypatch.setenv("MULLIGAN_DATA_DIR", str(tmp_path))
    return tmp_path


def run(*words: str) -> str:
    result = runner.invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run_json(*words: str):
    return json.loads(run(*words, "--json"))


def fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run the console script and return its one line on standard error."""
    monkeypatch.setattr(sys, "argv", ["mulligan", *words])
    monkeypatch.setattr(cli, "configure_logs", lambda _level: None)  # the other tests' logs stay as they are
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_keys_are_created_listed_and_revoked(folder: Path):
    made = run_json("keys", "create", "app", "--scope", "register_code", "--scope", "pin_adapters")
    assert made["secret"].startswith("mk-")
    assert (made["role"], made["scopes"]) == ("client", ["register_code", "pin_adapters"])
    listed = run_json("keys", "list")
    assert [key["name"] for key in listed] == ["app"]
    assert made["secret"] not in json.dumps(listed)
    assert run_json("keys", "revoke", made["id"])[0]["revoked_at"] > 0
    assert "app" in run("keys", "list")


def test_a_key_is_limited(folder: Path, capsys, monkeypatch):
    run("tasks", "create", "sql")
    words = ["--task", "sql", "--requests-per-minute", "60", "--max-concurrent", "4", "--no-train", "--no-scopes"]
    budget = ["--token-budget", "5000", "--budget-period", "day", "--expires", "30d"]
    made = run_json("keys", "create", "trial", *words, *budget)
    assert made["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "max_concurrent": 4,
        "token_budget": 5000,
        "budget_period": "day",
    }
    assert (made["tasks"], made["scopes"], made["trains"]) == (["sql"], [], False)
    assert 29.9 < (made["expires_at"] - made["created_at"]) / 86400 < 30.1
    assert run_json("keys", "create", "boss", "--role", "approver")["role"] == "approver"
    said = run("keys", "create", "said", *words, *budget)
    assert "role client, tasks sql, at most 60 requests/min, 4 at once, 5000 tokens a day, never trained on" in said
    listed = run("keys", "list")
    assert "60 requests/min, 4 at once, 5000 tokens a day" in listed
    claim = Claim(made["id"], KeyLimits(token_budget=5000, budget_period="day"), tokens=1234)
    with_database(f"sqlite:///{folder / 'mulligan.db'}", lambda database: KeyLimitStore(database).settle("a", [claim]))
    spent = {key["name"]: key["budget_spent"] for key in run_json("keys", "list")}
    assert spent == {"trial": 1234, "said": 0, "boss": None}
    assert "1234" in run("keys", "list")
    for wrong, words in {
        "no task 'nope'": ["--task", "nope"],
        "expires after now": ["--expires", "2020-01-01"],
        "--expires wants": ["--expires", "tomorrow"],
        "client keys": ["--role", "viewer", "--scope", "pin_adapters"],
        "do not go together": ["--no-scopes", "--scope", "pin_adapters"],
        "total, day, month": ["--token-budget", "5", "--budget-period", "year"],
    }.items():
        assert wrong in fail(capsys, monkeypatch, "keys", "create", "x", *words)


@pytest.mark.parametrize(
    ("text", "at"),
    [("90s", 190.0), ("2h", 7300.0), ("30d", 2592100.0), ("1970-01-03", 172800.0), ("1970-01-01T01:00+01:00", 0.0)],
)
def test_an_expiry_is_a_time_from_now_or_a_date(text: str, at: float):
    assert parse_expiry(text, 100.0) == at
    assert parse_expiry(None, 100.0) is None


def test_verifiers_are_checked_when_they_are_added(folder: Path, capsys, monkeypatch):
    added = run_json("verifiers", "add", "short", "--kind", "regex", "--config", '{"pattern": "^.{1,5}$"}')
    assert (added["name"], added["version"], added["kind"]) == ("short", 1, "regex")
    assert run_json("verifiers", "add", "short", "--kind", "regex", "--config", '{"pattern": "^.$"}')["version"] == 2
    assert [one["version"] for one in run_json("verifiers", "list", "--name", "short")] == [2, 1]
    assert "no kind 'magic'" in fail(capsys, monkeypatch, "verifiers", "add", "x", "--kind", "magic")
    assert "--config" in fail(capsys, monkeypatch, "verifiers", "add", "x", "--kind", "regex", "--config", "{")


def test_verifiers_are_tried(folder: Path):
    run("verifiers", "add", "short", "--kind", "regex", "--config", '{"pattern": "^.{1,5}$"}')
    assert run_json("verifiers", "run", "short", "--answer", "four")["status"] == "passed"
    refused = runner.invoke(app, ["verifiers", "run", "short@1", "--answer", "far too long", "--json"])
    assert refused.exit_code == 1
    assert json.loads(refused.output)["status"] == "failed"
    args = '{"numbers": [3, 5, 2], "target": 21}'
    tried = run_json("verifiers", "run", "countdown", "--config", "{}", "--args", args, "--answer", "(5+2)*3")
    assert tried["status"] == "passed"
    assert "countdown" in run("verifiers", "kinds")


def test_tasks_are_created_shown_and_changed(folder: Path, capsys, monkeypatch):
    run("verifiers", "add", "sql", "--kind", "regex", "--config", '{"pattern": "select"}')
    task = run_json("tasks", "create", "sql", "--verifier", "sql", "--option", "steps=4", "--max-retries", "2")
    assert task["verifiers"] == [{"name": "sql", "version": 1, "args": {}, "when": {}, "mode": "enforce"}]
    assert task["training"]["options"] == {"steps": 4}
    assert task["retry"]["max_retries"] == 2
    assert task["unknown_fields"] == "refuse"
    assert run_json("tasks", "update", "sql", "--unknown-fields", "ignore")["unknown_fields"] == "ignore"
    changed = run_json("tasks", "update", "sql", "--verify", "observe", "--option", "learning_rate=1e-4")
    assert changed["verify"] == "observe"
    assert changed["training"]["options"] == {"steps": 4, "learning_rate": 1e-4}
    assert changed["verifiers"] == task["verifiers"]
    assert run_json("tasks", "update", "sql", "--option", "steps=")["training"]["options"] == {"learning_rate": 1e-4}
    assert "sql@1" in run("tasks", "show", "sql")
    assert [one["name"] for one in run_json("tasks", "list")] == ["sql"]
    assert "no verifier 'nope@3'" in fail(capsys, monkeypatch, "tasks", "create", "x", "--verifier", "nope@3")
    assert "no task 'nope'" in fail(capsys, monkeypatch, "tasks", "show", "nope")
    assert "nothing to change" in fail(capsys, monkeypatch, "tasks", "update", "sql")
    assert "a task's name" in fail(capsys, monkeypatch, "tasks", "create", "base:sql")
    assert "sql" in fail(capsys, monkeypatch, "tasks", "create", "sql")


def test_rounds_are_started_listed_and_cancelled(folder: Path, capsys, monkeypatch):
    run("tasks", "create", "sql")
    row = run_json("round", "start", "sql", "--option", "steps=2")
    assert (row["state"], row["number"], row["options"]) == ("queued", 1, {"steps": 2})
    assert row["id"] in run("round", "list")
    assert run_json("round", "show", row["id"])["steps"] == []
    assert f"running already: wait for {row['id']}" in fail(capsys, monkeypatch, "round", "start", "sql")
    assert f"{row['id']} has no gate to show" in fail(capsys, monkeypatch, "gate", "pairs", row["id"])
    assert "ended" not in run("round", "show", row["id"])
    assert run_json("round", "cancel", row["id"])["state"] == "cancelled"
    assert "cancelled" in run("round", "show", row["id"])
    assert "needs 8 usable failures (min_failures), and 0 are in the log" in run("round", "start", "sql")
    assert "no task 'nope'" in fail(capsys, monkeypatch, "round", "start", "nope")
    assert "no round 'rd_0'" in fail(capsys, monkeypatch, "round", "show", "rd_0")


def test_options_that_no_trainer_knows_are_refused_before_a_round_waits_for_them(folder: Path, capsys, monkeypatch):
    run("tasks", "create", "sql")
    said = fail(capsys, monkeypatch, "round", "start", "sql", "--option", "stepz=2")
    assert "unknown training option 'stepz': did you mean 'steps'?" in said
    assert "training option 'steps' is 'two'" in fail(
        capsys, monkeypatch, "tasks", "update", "sql", "--option", "steps=two"
    )
    assert run_json("round", "list") == []


@pytest.mark.parametrize(
    "command", ["round list", "adapters list", "episodes list", "episodes export", "feedback list"]
)
def test_a_misspelt_task_is_told_from_an_empty_one(folder: Path, capsys, monkeypatch, command: str):
    run("tasks", "create", "sql")
    run(*command.split(), "--task", "sql")
    assert "there is no task 'sqk'" in fail(capsys, monkeypatch, *command.split(), "--task", "sqk")


def test_adapters_need_force_where_no_gate_passed_them(folder: Path, capsys, monkeypatch):
    assert run_json("adapters", "list") == []
    assert "no adapter 'sql@1'" in fail(capsys, monkeypatch, "adapters", "promote", "sql@1")


def test_an_empty_log_is_listed_and_exported(folder: Path, tmp_path: Path, capsys, monkeypatch):
    assert run("episodes", "list").strip() == "none yet"
    assert run_json("episodes", "list") == []
    run("episodes", "export", "--output", str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert "no episode 'ep_0'" in fail(capsys, monkeypatch, "episodes", "show", "ep_0")
    assert "cannot write" in fail(capsys, monkeypatch, "episodes", "export", "-o", str(tmp_path / "no" / "where"))


def test_a_missing_database_says_what_to_do(tmp_path: Path, capsys, monkeypatch):
    said = fail(capsys, monkeypatch, "tasks", "list", "--data-dir", str(tmp_path / "nothing"))
    assert "run `mulligan up`" in said
    assert not (tmp_path / "nothing").exists()


def test_the_schema_is_brought_up_to_date(tmp_path: Path):
    assert "the schema is at" in run("db", "upgrade", "--data-dir", str(tmp_path))
    assert run("db", "current", "--data-dir", str(tmp_path)).strip() not in ("", "empty")


def test_addresses_that_cannot_work_are_refused_by_option(tmp_path: Path, capsys, monkeypatch):
    said = fail(capsys, monkeypatch, "tasks", "list", "--database-url", "mysql://me:secret@there/db")
    assert "--database-url is mysql://me:***@there/db" in said
    up = ("up", "--data-dir", str(tmp_path), "--port", "0", "--model", str(tmp_path))
    assert "--broker-url is amqp://x" in fail(capsys, monkeypatch, *up, "--broker-url", "amqp://x")
    assert "no Redis answers" in fail(capsys, monkeypatch, *up, "--broker-url", "redis://127.0.0.1:1")
    away = "postgresql://me:secret@127.0.0.1:1/db"
    assert "postgresql://me:***@127.0.0.1:1/db" in fail(capsys, monkeypatch, *up, "--database-url", away)
    for command in (("tasks", "list"), ("db", "upgrade"), ("db", "current")):
        said = fail(capsys, monkeypatch, *command, "--database-url", away, "--data-dir", str(tmp_path))
        assert "Connect call failed" in said
        assert "secret" not in said


def test_a_demo_that_could_not_write_its_figures_does_not_start(tmp_path: Path, capsys, monkeypatch):
    said = fail(capsys, monkeypatch, "demo", "--json", str(tmp_path / "nowhere" / "figures.json"))
    assert "--json: there is no folder" in said


def test_misuse_exits_with_two():
    for words in (["tasks", "list", "--colour"], ["up", "--engine", "vllm"], ["tasks", "show"], ["nonsense"]):
        assert runner.invoke(app, words).exit_code == 2, words


def test_a_bad_variable_is_named(capsys, monkeypatch):
    monkeypatch.setenv("MULLIGAN_PORT", "eighty")
    assert "MULLIGAN_PORT" in fail(capsys, monkeypatch, "tasks", "list")


def test_sglang_without_its_environment_says_how_to_get_it(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("MULLIGAN_ENGINE__SGLANG_PYTHON", str(tmp_path / "none"))
    said = fail(capsys, monkeypatch, "up", "--engine", "sglang", "--data-dir", str(tmp_path), "--port", "0")
    assert "make sglang-cpu" in said


def test_every_command_has_help_with_an_example():
    def walk(command, path):
        assert command.help, path
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, [*path, name])
        else:
            yield path, command

    found = list(walk(typer.main.get_command(app), []))
    assert len(found) >= 28
    for path, command in found:
        assert "Example" in (command.epilog or ""), path
    assert "Example: mulligan tasks show sql" in run("tasks", "show", "--help")


def test_the_page_of_commands_is_in_step():
    assert PAGE.read_text() == render_page(), "run `make docs`"


def test_the_example_of_the_welcome_is_right():
    settings = Settings(data_dir=Path("somewhere"))
    body = example_body(settings)
    (verifier,) = body["verifiers"]
    check_args(verifier["kind"], {}, verifier["args"])
    judged = compile_verifier(verifier["kind"], {}).verify({}, {"content": "(5+2)*3"}, verifier["args"])
    assert asyncio.run(judged).status == "passed"
    assert settings.engine.model == str(DEMO_MODEL)
    assert "$MULLIGAN_API_KEY" in curl_line("http://x", "$MULLIGAN_API_KEY", settings)
    for key in ("mk-1", None):
        compile("\n".join(sdk_lines("http://x", key, settings)), "snippet", "exec")


def test_words_are_parsed():
    assert parse_pairs(["a=1", "b=x", "c=[2]"], "--option") == {"a": 1, "b": "x", "c": [2]}
    assert split_pin("sql@3") == ("sql", 3)
    assert split_pin("sql") == ("sql", None)
    for wrong in ("@1", "sql@", "sql@x"):
        with pytest.raises(InvalidRequest):
            split_pin(wrong)
    for wrong in ("[]", "{", "@/no/such/file"):
        with pytest.raises(InvalidRequest):
            parse_object(wrong, "--config")
    with pytest.raises(InvalidRequest):
        parse_pairs(["novalue"], "--option")


def test_settings_prefer_options_to_variables(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MULLIGAN_DATABASE_URL", "postgresql://variable/db")
    assert load_settings(data_dir=tmp_path).database_url == "postgresql://variable/db"
    assert load_settings(data_dir=tmp_path, database_url="sqlite:///x").database_url == "sqlite:///x"


def test_a_running_server_tells_where_its_parts_are(tmp_path: Path, monkeypatch):
    engine = EngineSettings(url="http://127.0.0.1:1234", kind="sglang")
    running = Settings(
        data_dir=tmp_path, database_url="postgresql://there/db", broker_url="redis://there", engine=engine
    )
    with leave_note(running, "http://127.0.0.1:8000"):
        found = load_settings(data_dir=tmp_path)
        assert (found.database_url, found.broker_url) == ("postgresql://there/db", "redis://there")
        assert (found.engine.url, found.engine.kind) == ("http://127.0.0.1:1234", "sglang")
        assert load_settings(data_dir=tmp_path, database_url="sqlite:///x").database_url == "sqlite:///x"
        monkeypatch.setenv("MULLIGAN_ENGINE__URL", "http://127.0.0.1:99")
        assert load_settings(data_dir=tmp_path).engine.url == "http://127.0.0.1:99"
        assert load_settings(data_dir=tmp_path, note=False).database_url.startswith("sqlite")
    assert load_settings(data_dir=tmp_path).database_url.startswith("sqlite")


def test_a_note_that_a_killed_server_left_does_not_count(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with leave_note(Settings(data_dir=tmp_path, database_url="postgresql://there/db"), "http://127.0.0.1:8000"):
        path = tmp_path / "up.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": gone.pid}))
        assert load_settings(data_dir=tmp_path).database_url.startswith("sqlite")


def test_it_says_its_version():
    assert run("--version") == f"mulligan {metadata.version('mulligan')}\n"
