"""What a task has gathered for its next round and its gate, on both dialects."""

import asyncio
from dataclasses import replace
from pathlib import Path

from server.domain import Binding, BindingMode, Outcome, RoundState, Task, TrainingPolicy
from server.orchestration.progress import read_progress
from server.settings import LogSettings, RoundSizes
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episode_rows import identify_problem
from server.store.progress import ProgressStore
from server.store.rounds import RoundStore
from tests.fixtures.episodes import COUNTDOWN, make_episode

WATCHING = Binding("regex", {"pattern": "6"}, "hidden", 1, mode=BindingMode.AUDIT)


async def record(database: Database, folder: Path, *episodes) -> None:
    log = EpisodeLog(database, LogSettings(), folder / "spool")
    await log.start()
    await asyncio.gather(*(log.record(one) for one in episodes))
    await log.stop()


def held_out(number: int, **changes):
    changes = {"outcome": Outcome.PASSED, "split": "held_out", "question": f"problem {number}", **changes}
    return make_episode(changes.pop("outcome"), **changes)


async def test_what_a_gate_may_ask_is_counted_once_and_up_to_a_bound(database: Database, tmp_path: Path) -> None:
    counted = [held_out(1), held_out(2), held_out(2), held_out(3, outcome=Outcome.EXHAUSTED)]
    others = [
        held_out(4, outcome=Outcome.UNVERIFIED),
        held_out(5, store=False),
        held_out(6, trains=False),
        held_out(7, split="training"),
        held_out(8, task="other"),
        held_out(9, bindings=()),
        held_out(10, bindings=(WATCHING,)),
    ]
    await record(database, tmp_path, *counted, *others)
    store = ProgressStore(database)
    assert await store.count_problems("countdown", (), most=100) == 3
    assert await store.count_problems("countdown", ("hidden@1",), most=100) == 3
    assert await store.count_problems("countdown", (COUNTDOWN.pin,), most=100) == 0
    assert await store.count_problems("none", (), most=100) == 0
    await record(database, tmp_path, *[held_out(number, task="many") for number in range(5)])
    assert [await store.count_problems("many", (), most=most) for most in (4, 5, 6)] == [4, 5, 5]


async def test_new_failures_are_those_that_a_round_may_take(database: Database, tmp_path: Path) -> None:
    counted = [make_episode(Outcome.RECOVERED, created_at=5.0), make_episode(Outcome.EXHAUSTED, created_at=6.0)]
    others = [
        make_episode(Outcome.PASSED, created_at=6.0),
        make_episode(created_at=3.0),
        make_episode(created_at=6.0, store=False),
        make_episode(created_at=6.0, trains=False),
        held_out(1, outcome=Outcome.EXHAUSTED, created_at=6.0),
        make_episode(created_at=6.0, task="other"),
    ]
    await record(database, tmp_path, *counted, *others)
    store = ProgressStore(database)
    assert await store.count_failures("countdown", since=4.0, most=10) == 2
    assert await store.count_failures("countdown", since=4.0, most=1) == 1
    assert await store.count_failures("countdown", since=5.0, most=10) == 1


async def test_progress_counts_from_the_last_round_on(database: Database, tmp_path: Path) -> None:
    task = Task("countdown", training=TrainingPolicy(train_on_new_failures=3, options={"gate_problems": 2}))
    await record(database, tmp_path, *[make_episode(created_at=5.0) for _ in range(2)], *map(held_out, range(3)))
    before = await read_progress(task, database, RoundSizes())
    assert (before.held_out, before.held_out_wanted, before.new_failures, before.failures_wanted) == (2, 2, 2, 3)
    assert "2 of 3 new failures: next round when 1 more are logged" in before.says

    rounds = RoundStore(database)
    leased = await rounds.lease((await rounds.create("countdown", {})).id, "w")
    assert leased is not None
    assert f"round {leased.id} runs" in (await read_progress(task, database, RoundSizes())).says
    await rounds.finish(leased.id, leased.epoch, RoundState.INCONCLUSIVE, "too close")
    await record(database, tmp_path, make_episode(created_at=leased.started_at + 10))
    after = await read_progress(replace(task, training=TrainingPolicy()), database, RoundSizes())
    assert (after.new_failures, after.failures_wanted) == (1, None)
    assert "no round begins by itself" in after.says


async def test_problems_that_were_judged_are_found_by_their_hashes(database: Database, tmp_path: Path) -> None:
    def identify(episode) -> str:
        return identify_problem(episode.request, episode.bindings)

    there = [held_out(1), make_episode(question="in training")]
    unusable = [
        held_out(2, outcome=Outcome.UNVERIFIED),
        held_out(3, outcome=Outcome.ERRORED),
        held_out(4, trains=False),
        held_out(5, task="other"),
    ]
    await record(database, tmp_path, *there, *unusable)
    asked = [identify(one) for one in (*there, *unusable)]
    many = [*(f"none {number}" for number in range(600)), *asked]  # more than one query takes
    assert await ProgressStore(database).find_logged("countdown", many) == set(asked[:2])
    assert await ProgressStore(database).find_logged("countdown", []) == set()
