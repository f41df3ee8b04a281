"""What a round selects from a log, on both dialects: every reason for leaving an episode out, counted by its name."""

from dataclasses import replace
from typing import Any

from server.domain import Binding, Feedback, Outcome, RoundState
from server.store import left_out as module
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.rounds import RoundStore
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals
from tests.fixtures.episodes import make_attempt, make_episode, make_reflection
from trainer.dataset import Selection, select
from trainer.settings import TrainerSettings

CHECK = Binding("regex", {"pattern": "yes"}, "yes", 1)
SETTINGS = TrainerSettings(min_failures=1, step_failures=2)


class Tokenizer:
    """Never asked: all that is selected here was logged with its prompt."""

    def apply_chat_template(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def make_failure(number: int, outcome: Outcome = Outcome.EXHAUSTED, **changes: Any):
    """An episode whose first attempt failed and whose reflection's prompt is its own."""
    second = "passed" if outcome is Outcome.RECOVERED else "failed"
    fields = {
        "bindings": (CHECK,), "split": "training", "created_at": float(number), "adapter": "",
        "request": {"messages": [{"role": "user", "content": f"question {number}"}]},
        "attempts": [make_attempt(1, "failed"), make_attempt(2, second)],
        "reflections": [replace(make_reflection(), prompt_ids=(7, number))],
    }  # fmt: skip
    return make_episode(outcome, **{**fields, **changes})


async def choose(database: Database, **more: Any) -> Selection:
    revoked = await VerifierStore(database).revoked()
    return await select("countdown", EpisodeStore(database), Tokenizer(), SETTINGS, revoked, **more)


async def test_every_reason_is_counted_by_its_name(database: Database, log: EpisodeLog) -> None:
    await VerifierStore(database).add("yes", "regex", {"pattern": "yes"})
    await VerifierStore(database).add("yes", "regex", {"pattern": "yes|no"})
    await Withdrawals(database).revoke("yes", 2, "too lax")
    first = [make_attempt(1, "abstained")]
    doubted = make_failure(10)
    again = make_failure(11, request={"messages": [{"role": "user", "content": "question 1"}]})
    again.reflections = [replace(make_reflection(), prompt_ids=(7, 1))]
    episodes = [
        make_failure(1), make_failure(2, Outcome.RECOVERED),
        make_failure(3, split="held_out"), make_failure(4, trains=False), make_failure(5, store=False, request=None),
        make_failure(6, Outcome.UNVERIFIED, attempts=first, reflections=[]),
        make_failure(7, Outcome.UNVERIFIED, attempts=[make_attempt(1, "skipped")], reflections=[]),
        make_failure(8, Outcome.CANCELLED, attempts=[], reflections=[]),
        make_failure(9, bindings=(replace(CHECK, version=2),)),
        doubted, again,
        make_failure(12, Outcome.PASSED, attempts=[make_attempt(1, "passed")], reflections=[]),
        make_failure(13, Outcome.UNVERIFIED, bindings=(), attempts=[make_attempt(1, "skipped")], reflections=[]),
        make_failure(14, task="another", split="held_out"),
        make_failure(15, Outcome.PASSED, split="held_out", attempts=[make_attempt(1, "passed")], reflections=[]),
    ]  # fmt: skip
    for episode in episodes:
        await log.record(episode)
    # A client says that this answer was wrong, where nothing can be run again to say so; and that one was right.
    store = FeedbackStore(database)
    await store.give(Feedback(episodes[-3].id, "user", "key", passed=False, trains=True))
    await store.give(Feedback(doubted.id, "user", "key", passed=True, trains=True))

    selection = await choose(database)
    assert [failure.episode_id for failure in selection.failures] == [episodes[1].id, again.id]  # recovered ones first
    assert selection.failures[1].alike == (episodes[0].id,)
    assert selection.left_out == {
        module.HELD_OUT: 1, module.OPTED_OUT: 1, module.NOT_STORED: 1, module.ABSTAINED: 1, module.SKIPPED: 2,
        module.CUT_OFF: 1, "its verifier yes@2 was revoked": 1, "trusted feedback contradicts its verifier": 1,
        "the same failure again": 1,
    }  # fmt: skip


async def test_only_what_is_new_is_counted_and_older_failures_fill_up(database: Database, log: EpisodeLog) -> None:
    for number in range(1, 9):
        await log.record(make_failure(number))
        await log.record(make_failure(100 + number, trains=False, created_at=float(number)))
    selection = await choose(database, since=7.0)
    assert [failure.prompt_ids[1] for failure in selection.failures] == [8, 7]  # a step of two is filled up
    assert (selection.describe()["new"], selection.replayed) == (1, 1)
    assert selection.left_out == {module.OPTED_OUT: 1}
    store = EpisodeStore(database)
    assert [one.created_at for one in await store.failures("countdown", until=3.0, limit=9)] == [3.0, 2.0, 1.0]


async def test_counting_looks_at_the_newest_alone(database: Database, log: EpisodeLog, monkeypatch) -> None:
    for number in range(6):
        await log.record(make_failure(number, trains=False))
    monkeypatch.setattr(module, "MOST", 4)
    assert await EpisodeStore(database).count_left_out("countdown") == {module.OPTED_OUT: 4}


async def test_the_last_round_that_decided_is_found_behind_those_that_did_not(database: Database) -> None:
    rounds = RoundStore(database)
    assert await rounds.last_decided("countdown") is None
    for state in (RoundState.INCONCLUSIVE, RoundState.CANCELLED, RoundState.FAILED):
        row = await rounds.lease((await rounds.create("countdown", {})).id, "w")
        await rounds.finish(row.id, row.epoch, state, "x")
    await rounds.create("countdown", {})
    assert (await rounds.last_decided("countdown")).number == 1
    assert (await rounds.last_ended("countdown")).number == 3
