"""`mulligan feedback` and `mulligan tasks audit`, on a real SQLite file."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain import Binding, BindingMode, LoggedVerdict, Outcome
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from tests.fixtures.episodes import COUNTDOWN, make_attempt, make_episode
from tests.fixtures.server import with_database
from tests.integration.cli.test_commands import fail, folder, migrated, run, run_json  # noqa: F401 - fixtures too

HIDDEN = Binding("regex", {"pattern": "6"}, "hidden", 1, mode=BindingMode.AUDIT)


def record(folder: Path, *episodes) -> None:  # noqa: F811
    async def write(database: Database) -> None:
        log = EpisodeLog(database, LogSettings(), folder / "spool")
        await log.start()
        await asyncio.gather(*(log.record(one) for one in episodes))
        await log.stop()

    with_database(f"sqlite:///{folder / 'mulligan.db'}", write)


def test_feedback_is_added_listed_and_shown(folder: Path, capsys, monkeypatch):  # noqa: F811
    first, second, private = make_episode(), make_episode(task="other"), make_episode(store=False)
    record(folder, first, second, private)
    words = ("feedback", "add", first.id, "--source", "support", "--comment", "wrong year")
    given = run_json(*words, "--failed", "--score", "0.25")
    assert (given["passed"], given["score"], given["comment"], given["trains"]) == (False, 0.25, "wrong year", False)
    assert run_json(*words, "--failed", "--score", "0.25") == given
    assert "said failed with score 0.25" in fail(capsys, monkeypatch, *words, "--passed")
    assert "wrong year" in run(*words, "--passed", "--replace")
    monkeypatch.setenv("MULLIGAN_LOG__REDACT", "examples.redactor:redact")  # for the command line, too
    said = run_json("feedback", "add", second.id, "--failed", "--source", "nightly", "--comment", "ask ann@example.com")
    assert said["comment"] == "ask [email]"
    monkeypatch.delenv("MULLIGAN_LOG__REDACT")
    assert [one["source"] for one in run_json("feedback", "list")] == ["nightly", "support"]
    assert [one["source"] for one in run_json("feedback", "list", "--task", "countdown")] == ["support"]
    assert "support" in run("feedback", "list", "--task", "countdown")
    shown = run("episodes", "show", first.id)
    assert "feedback from support" in shown
    assert "wrong year" in shown
    assert run_json("episodes", "show", first.id)["feedback"][0]["passed"] is True

    def find(said: str) -> list[str]:
        return [one["id"] for one in run_json("episodes", "list", "--feedback", said)]

    assert (find("passed"), find("failed"), find("none")) == ([first.id], [second.id], [private.id])
    kept = run_json("feedback", "add", private.id, "--failed", "--source", "x", "--comment", "what was said")
    assert kept["comment"] == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("ep_nothing", "--failed", "--source", "x"), "there is no episode 'ep_nothing'"),
        (("ep_1", "--failed", "--source", "a b"), "a source has letters"),
        (("ep_1", "--failed", "--source", "x", "--comment", "x" * 4001), "at most 4000"),
    ],
)
def test_feedback_that_cannot_be(folder: Path, capsys, monkeypatch, words, why):  # noqa: F811
    assert why in fail(capsys, monkeypatch, "feedback", "add", *words)


def test_a_task_trusts_keys_and_leaves_signals_out(folder: Path, capsys, monkeypatch):  # noqa: F811
    key = run_json("keys", "create", "support")["id"]
    made = run_json("tasks", "create", "sql", "--trust-feedback", key, "--audit-off", "repetition")
    assert (made["training"]["trust_feedback"], made["training"]["audit_off"]) == ([key], ["repetition"])
    assert key in run("tasks", "show", "sql")
    kept = run_json("tasks", "update", "sql", "--promotion", "approve")["training"]
    assert (kept["trust_feedback"], kept["audit_off"]) == ([key], ["repetition"])
    dropped = run_json("tasks", "update", "sql", "--no-trust-feedback", "--audit-all")["training"]
    assert (dropped["trust_feedback"], dropped["audit_off"]) == ([], [])
    refused = fail(capsys, monkeypatch, "tasks", "update", "sql", "--trust-feedback", "key_nobody")
    assert "there is no key 'key_nobody'" in refused
    both = fail(capsys, monkeypatch, "tasks", "update", "sql", "--trust-feedback", key, "--no-trust-feedback")
    assert "do not go together" in both


def test_an_audit_is_told_in_words_and_figures(folder: Path, capsys, monkeypatch):  # noqa: F811
    run("tasks", "create", "countdown")
    assert "nothing suspicious was found" in run("tasks", "audit", "countdown")
    episodes = []
    for number in range(160):
        said = LoggedVerdict("hidden@1", "passed" if number < 80 else "failed", 0.0, mode=BindingMode.AUDIT)
        attempt = make_attempt(1, "passed", f"answer {number}")
        attempt = replace(attempt, verdicts=(*attempt.verdicts, said))
        episodes.append(make_episode(Outcome.PASSED, bindings=(COUNTDOWN, HIDDEN), attempts=[attempt]))
    record(folder, *episodes)
    run("feedback", "add", episodes[-1].id, "--failed", "--source", "support")
    printed = run("tasks", "audit", "countdown")
    assert "task countdown, champion (base), 160 judged attempts: reward hacking is suspected" in printed
    assert "hidden@1 fails 100.0% (95.4% to 100.0%) of the answers that passed lately" in printed
    assert episodes[-1].id in printed
    report = run_json("tasks", "audit", "countdown")
    assert [(one["signal"], one["state"]) for one in report["findings"]] == [
        ("divergence", "fired"), ("brevity", "quiet"), ("repetition", "unknown"), ("promotion_jump", "unknown"),
    ]  # fmt: skip
    assert report["feedback"] == [
        {"verifier": "countdown@3", "verdicts": 1, "passed_but_wrong": 1, "failed_but_right": 0},
        {"verifier": "hidden@1", "verdicts": 1, "passed_but_wrong": 0, "failed_but_right": 0},
    ]
    assert "passed, but wrong" in printed
    assert "there is no task 'nothing'" in fail(capsys, monkeypatch, "tasks", "audit", "nothing")
