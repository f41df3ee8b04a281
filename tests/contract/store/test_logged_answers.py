"""Logged answers, one by one, on both dialects."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.domain import Outcome
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.logged_answers import LoggedAnswerStore, LoggedId, Selection
from tests.fixtures.episodes import COUNTDOWN, make_episode


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> AsyncIterator[EpisodeLog]:
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await log.start()
    yield log
    await log.stop()


async def collect(database: Database, selection: Selection, page: int = 2) -> list[LoggedId]:
    pages = LoggedAnswerStore(database).pages(selection, episodes_a_page=page)
    return [one async for found in pages for one in found]


async def test_every_attempt_of_a_selection_is_met_once_in_order(database: Database, log: EpisodeLog) -> None:
    episodes = [make_episode(Outcome.RECOVERED if n % 2 else Outcome.PASSED) for n in range(7)]
    for episode in episodes:
        await log.record(episode)
    wanted = [LoggedId(episode.id, attempt.number, True) for episode in episodes for attempt in episode.attempts]
    for page in (1, 2, 7, 100):
        assert await collect(database, Selection(), page) == wanted


@pytest.mark.parametrize(
    ("changes", "narrowed"),
    [
        ({"task": "other"}, Selection(task="countdown")),
        ({"adapter": "x@1"}, Selection(adapter="countdown@1")),
        ({"key": "key_2"}, Selection(key="key_1")),
        ({"created_at": 5.0}, Selection(since=1700000000.25)),
        ({"created_at": 1700000001.0}, Selection(until=1700000001.0)),
        ({"outcome": Outcome.EXHAUSTED}, Selection(outcome="passed")),
    ],
)
async def test_a_selection_leaves_out_what_does_not_match(database, log, changes, narrowed) -> None:
    kept = make_episode(Outcome.PASSED)
    await log.record(make_episode(**({"outcome": Outcome.PASSED} | changes)))
    await log.record(kept)
    assert await collect(database, narrowed) == [LoggedId(kept.id, 1, True)]
    assert len(await collect(database, Selection())) > 1


async def test_an_answer_is_read_with_its_request_bindings_and_verdicts(database: Database, log: EpisodeLog) -> None:
    episode = make_episode(question="Ümlaut?")
    await log.record(episode)
    read = await LoggedAnswerStore(database).read(LoggedId(episode.id, 2, True))
    assert read is not None
    assert json.loads(read.request) == episode.request
    assert json.loads(read.answer) == episode.attempts[1].answer
    assert (read.bindings, read.verdicts) == ((COUNTDOWN,), episode.attempts[1].verdicts)


async def test_what_is_not_kept_is_told_and_not_read(database: Database, log: EpisodeLog) -> None:
    episode = make_episode(Outcome.PASSED, store=False)
    await log.record(episode)
    assert await collect(database, Selection()) == [LoggedId(episode.id, 1, False)]
    answers = LoggedAnswerStore(database)
    assert await answers.read(LoggedId(episode.id, 1, False)) is None
    assert await answers.read(LoggedId("ep_none", 1, True)) is None
