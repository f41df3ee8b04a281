"""`mulligan verifiers backtest`, `backtests` and `stats`, beside a running server."""

import json
import time

import pytest
from typer.testing import CliRunner

from server.cli import app, backtests
from server.errors import Conflict, InvalidRequest, NotFound
from tests.fixtures.server import with_database

runner = CliRunner()


@pytest.fixture
def run(api):
    def run(*words, status=0):
        places = ["--data-dir", str(api.settings.data_dir), "--database-url", api.settings.database_url]
        result = runner.invoke(app, ["verifiers", *words, *places], catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def asked(api):
    """Two episodes, one of which passed."""
    for text in ("4", "5"):
        body = {"model": "sums", "messages": [{"role": "user", "content": text}], "retry": {"max_retries": 0}}
        assert api.ask("POST", "/v1/chat/completions", body, key="client")[0] == 200


def test_a_backtest_is_waited_for_and_shown(run, asked):
    report = json.loads(run("backtest", "four@1", "--task", "sums", "--sample", "50", "--json").stdout)["report"]
    assert report["n"] >= 2
    assert report["agreement"]["share"] == 1.0
    shown = run("backtest", "four", "--task", "sums", "--seed", "3").stdout
    assert "four@1" in shown
    assert "95 % interval" in shown
    listed = json.loads(run("backtests", "--verifier", "four", "--json").stdout)
    assert {one["state"] for one in listed} == {"done"}
    assert listed[0]["id"] in run("backtests").stdout
    assert "100.0%" in run("backtests", listed[0]["id"]).stdout


def test_flips_are_listed_with_both_verdicts(api, run, asked):
    strict = {"name": "never", "kind": "regex", "config": {"pattern": "^$"}}
    assert api.ask("POST", "/v1/verifiers", strict)[0] in (200, 201)
    shown = run("backtest", "never", "--task", "sums", "--against", "four@1").stdout
    assert "newest flips" in shown
    assert "the pattern does not match" in shown


def test_ctrl_c_leaves_it_running_and_says_how_to_look(run, monkeypatch):
    async def interrupt(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backtests, "_wait", interrupt)
        left = run("backtest", "four", status=1)
    assert "goes on: `mulligan verifiers backtests bt_" in left.stderr
    backtest_id = left.stderr.split()[0]
    found = json.loads(run("backtests", backtest_id, "--json").stdout)
    assert found["state"] in ("running", "done")


def test_what_cannot_be_backtested_is_refused(api, run, sqlite_url, tmp_path):
    for error, words in [
        (NotFound, ["backtest", "none"]),
        (NotFound, ["backtest", "four", "--task", "none"]),
        (InvalidRequest, ["backtest", "four", "--against", "four"]),
        (InvalidRequest, ["backtests", "--cancel"]),
        (NotFound, ["backtests", "bt_none"]),
    ]:
        with pytest.raises(error):
            run(*words)
    places = ["--data-dir", str(tmp_path), "--database-url", sqlite_url]
    runner.invoke(app, ["verifiers", "add", "four", "--kind", "regex", "--config", '{"pattern": "4"}', *places])
    with pytest.raises(Conflict, match="no server runs"):
        runner.invoke(app, ["verifiers", "backtest", "four", *places], catch_exceptions=False)
    rows = with_database(sqlite_url, lambda database: backtests.BacktestStore(database).list())
    assert rows == []


def test_stats_are_shown(run, asked):
    deadline = time.monotonic() + 60
    while (figures := json.loads(run("stats", "four", "--json").stdout))["verdicts"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert figures["passed"] >= 1
    assert figures["versions"]["four@1"]["verdicts"] == figures["verdicts"]
    assert "slowest ms" in run("stats", "four@1", "--hours", "2").stdout
    with pytest.raises(NotFound):
        run("stats", "none")
