"""`mulligan log`, on a real SQLite file."""

import time
from pathlib import Path

from server.store.partitions import border_id
from server.store.retention import DAY_S
from tests.fixtures.episodes import make_episode
from tests.integration.cli.test_commands import fail, folder, migrated, run, run_json  # noqa: F401 - fixtures too
from tests.integration.cli.test_feedback_and_audit import record


def made(days_ago: float, number: int):
    return make_episode(id=f"{border_id(time.time() - days_ago * DAY_S)}{number:016x}")


def test_the_log_says_what_it_holds_and_lets_go_of_what_is_old(folder: Path, capsys, monkeypatch):  # noqa: F811
    assert "none" in run("log", "status")
    old, young = [made(200, number) for number in range(3)], made(10, 0)
    record(folder, *old, young)
    shown = run("log", "status")
    assert all(part in shown for part in (old[0].id, "180 days", "3 episodes, which the worker takes", "now"))
    told = run("db", "upgrade", "--data-dir", str(folder))
    assert "3 episodes are older than 180 days: the worker will delete them" in told

    assert "3 episodes older than" in (said := run("log", "prune", "--dry-run"))
    assert "would go" in said
    assert run_json("log", "status")["rows"] == 4
    assert run_json("log", "prune")["episodes"] == 3
    status = run_json("log", "status")
    assert (status["rows"], status["oldest"], status["past_limit"]) == (1, young.id, 0)
    assert abs(status["next_at"] - (time.time() + 170 * DAY_S)) < 60
    assert "older than" not in run("db", "upgrade", "--data-dir", str(folder))

    monkeypatch.setenv("MULLIGAN_LOG__RETENTION_DAYS", "0")
    assert "ever" in run("log", "status")
    assert "--older-than" in fail(capsys, monkeypatch, "log", "prune")
    assert "1 episodes older than" in run("log", "prune", "--older-than", "5")
    assert run_json("log", "status")["rows"] == 0
