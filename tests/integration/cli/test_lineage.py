"""`mulligan lineage`, on a real SQLite file."""

from pathlib import Path

from server.domain import Adapter
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.lineage import LineageStore
from server.store.rounds import RoundStore
from tests.fixtures.episodes import make_episode
from tests.fixtures.server import with_database
from tests.integration.cli.test_commands import fail, folder, migrated, run, run_json  # noqa: F401 - fixtures too
from tests.integration.cli.test_feedback_and_audit import record


def test_an_episode_a_round_and_an_adapter_are_followed(folder: Path, capsys, monkeypatch):  # noqa: F811
    episode = make_episode(adapter="")
    record(folder, episode)

    async def train(database: Database) -> str:
        rounds = RoundStore(database)
        row = await rounds.lease((await rounds.create("countdown", {})).id, "w")
        assert row is not None
        await LineageStore(database).record((row.id, row.epoch), 1, [episode.id])
        await AdapterStore(database).add(Adapter("countdown@1", "countdown", "/", {}, round_id=row.id))
        await rounds.update(row.id, row.epoch, adapter="countdown@1")
        return row.id

    round_id = with_database(f"sqlite:///{folder / 'mulligan.db'}", train)
    for thing in (episode.id, round_id, "countdown@1"):
        drawn = run("lineage", thing)
        assert all(part in drawn for part in (round_id, "countdown@1"))
    found = run_json("lineage", episode.id)
    assert (found["kind"], [one["adapter"]["name"] for one in found["rounds"]]) == ("episode", ["countdown@1"])
    assert run_json("lineage", round_id)["rounds"][0]["episodes"] == {"count": 1, "ids": [episode.id]}
    assert "there is no episode, adapter or round 'sql@9'" in fail(capsys, monkeypatch, "lineage", "sql@9")


def test_a_task_says_how_far_it_is(folder: Path, monkeypatch):  # noqa: F811
    run("tasks", "create", "countdown", "--train-on-new-failures", "5")
    record(folder, make_episode(), make_episode(split="held_out", question="another"))
    shown = run("tasks", "show", "countdown")
    assert "1 of 200 held-out problems (below 30 nothing is promoted automatically)" in shown
    assert "1 of 5 new failures: next round when 4 more are logged" in shown
    monkeypatch.setenv("MULLIGAN_TRAINER__GATE_MIN_PROBLEMS", "2")
    run("tasks", "update", "countdown", "--option", "gate_problems=50")
    progress = run_json("tasks", "show", "countdown")["progress"]
    assert (progress["held_out"], progress["held_out_wanted"], progress["held_out_least"]) == (1, 50, 2)
