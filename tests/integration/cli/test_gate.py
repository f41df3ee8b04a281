"""`mulligan gate` and a gate in `mulligan round show`, on a real SQLite file."""

from pathlib import Path

import numpy as np

from server.settings import RoundSizes
from server.store.database import Database
from server.store.gates import GateStore, Pair
from server.store.rounds import RoundStore
from tests.fixtures.episodes import make_episode
from tests.fixtures.server import with_database
from tests.integration.cli.test_commands import fail, folder, migrated, run, run_json  # noqa: F401 - fixtures too
from tests.integration.cli.test_feedback_and_audit import record
from trainer.gate_tally import Tally
from trainer.gate_weighing import weigh
from trainer.settings import TrainerSettings


class Asker:
    """The candidate solves every problem by its retry, the champion none."""

    problems, others, probes = 40, 0, 0

    async def loop(self, numbers, samples) -> Tally:
        counts = np.zeros((self.problems, 2))
        counts[list(numbers)] = samples
        return Tally(counts, counts * 0, counts * 9, counts, counts * [0, 1], counts * 0.5)

    async def ask_first(self, samples) -> Tally:
        counts = np.repeat(samples[:, None], 2, axis=1).astype(float)
        return Tally(counts, counts * 0, counts * 9, counts * 0, counts * 0, counts * 0)

    async def ask_others(self, samples) -> Tally:
        raise AssertionError("there is none")

    ask_probes = ask_others


CONTROLS = {
    "n": 12, "samples": 2, "says": "the trained reflection does not beat a shuffled one; and so on",
    "arms": {
        "trained": {"words": "the trained reflection", "mended": 0.5, "tokens": 90.0},
        "shuffled": {"words": "a shuffled one", "mended": 0.5, "tokens": 40.0, "lead": 0.0, "lead_ci95": [-0.1, 0.1]},
    },
}  # fmt: skip


def hold_gate(path: Path, episode_id: str) -> str:
    async def hold(database: Database) -> str:
        rounds = RoundStore(database)
        row = await rounds.lease((await rounds.create("countdown", {})).id, "w")
        assert row is not None
        report, _ = await weigh(Asker(), TrainerSettings(bootstrap_draws=200))
        await GateStore(database).record((row.id, row.epoch), [Pair(episode_id, 2, 2, 0.0, 0.0, 0.0, 1.0)])
        await rounds.update(row.id, row.epoch, report={**report, "controls": CONTROLS, "tokens": 5})
        return row.id

    return with_database(f"sqlite:///{path / 'mulligan.db'}", hold)


def test_a_round_says_what_its_gate_found(folder: Path, capsys, monkeypatch):  # noqa: F811
    run("tasks", "create", "countdown")
    episode = make_episode(split="held_out", question="Make 21 of 3, 5 and 2.")
    record(folder, episode)
    round_id = hold_gate(folder, episode.id)
    shown = run("round", "show", round_id)
    for said in (
        "0.0 % -> 100.0 %: +100.0 points",
        f"30 fixed, 0 broken, 0 same (`mulligan gate pairs {round_id}`)",
        "the first try held",
        "plain problems: not asked, there are 0 plain problems, and 30 are needed",
        "the trained reflection does not beat a shuffled one",
        "+0.0 points (-10.0 to +10.0)",
    ):
        assert said in shown
    assert '"second_before"' not in shown  # said in words
    assert run_json("round", "show", round_id)["report"]["decision"] == "promoted"
    drawn = run("gate", "pairs", round_id)
    assert "fixed" in drawn
    assert "Make 21 of 3, 5 and 2." in drawn
    (pair,) = run_json("gate", "pairs", round_id)
    assert (pair["episode_id"], pair["change"], pair["second_after"]) == (episode.id, "fixed", 1.0)
    assert run_json("gate", "pairs", round_id, "--change", "broken") == []
    assert "there is no round 'rd_none'" in fail(capsys, monkeypatch, "gate", "pairs", "rd_none")


def test_a_plan_is_made_with_what_was_assumed_and_then_with_what_was_seen(folder: Path, capsys, monkeypatch):  # noqa: F811
    run("tasks", "create", "countdown", "--option", "gate_problems=150")
    drawn = run("gate", "plan", "countdown")
    assert "0 of at most 150 (gate_problems)" in drawn
    assert "30 % discordant single samples, assumed, before the task's first gate" in drawn
    planned = run_json("gate", "plan", "countdown")
    (row,) = [row for row in planned["table"] if row["problems"] == 500]
    assert round(row["x 1"], 2) == 0.53  # a single sample of 500 problems at 30 % discordant
    record(folder, make_episode(split="held_out", question="once"))
    hold_gate(folder, "ep_1")
    planned = run_json("gate", "plan", "countdown", "--effect", "0.1")
    assert (planned["source"], planned["effect"]) == ("seen by the gate of round 1", 0.1)
    assert planned["available"] == 1
    assert planned["power_wanted"] == RoundSizes().gate_power
    assert "there is no task 'other'" in fail(capsys, monkeypatch, "gate", "plan", "other")
