"""What is said of episodes later: kept once a source, never overwritten silently, found again. On both dialects."""

import asyncio
from dataclasses import replace

import pytest

from server.domain import Feedback, Outcome
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.feedback import FeedbackStore
from tests.fixtures.episodes import make_episode

GIVEN = Feedback("ep_1", "support", "key_1", passed=False, score=0.25, comment="wrong year", created_at=5.5)


@pytest.fixture
async def store(database: Database, log: EpisodeLog) -> FeedbackStore:
    for name in ("ep_1", "ep_2"):
        await log.record(make_episode(id=name))
    return FeedbackStore(database)


async def test_feedback_comes_back_as_it_was_given(store: FeedbackStore) -> None:
    assert await store.give(GIVEN) == GIVEN
    assert await store.list() == [GIVEN]
    bare = await store.give(Feedback("ep_2", "nightly", "key_2", passed=True, trains=True))
    assert bare.created_at > 0
    assert await store.list() == [bare, GIVEN]


async def test_the_same_again_is_the_same_record(store: FeedbackStore, database: Database) -> None:
    await store.give(GIVEN)
    assert await store.give(replace(GIVEN, created_at=9.0)) == GIVEN
    assert await store.give(replace(GIVEN, created_at=9.0), overwrite=True) == GIVEN
    assert await store.give(replace(GIVEN, key="key_2", trains=True)) == GIVEN
    assert await EventStore(database).list() == []


async def test_an_episode_has_so_many_sources_and_no_more(store: FeedbackStore, monkeypatch) -> None:
    monkeypatch.setattr("server.store.feedback.MOST_SOURCES", 2)
    for source in ("a", "b"):
        await store.give(replace(GIVEN, source=source))
    with pytest.raises(Conflict) as refused:
        await store.give(replace(GIVEN, source="c"))
    assert refused.value.code == "too_much_feedback"
    assert (await store.give(replace(GIVEN, source="b", passed=True), overwrite=True)).passed
    assert (await store.give(replace(GIVEN, episode_id="ep_2", source="c"))).source == "c"
    assert [(one.episode_id, one.source) for one in await store.list()] == [("ep_2", "c"), ("ep_1", "a"), ("ep_1", "b")]


@pytest.mark.parametrize("change", [{"passed": True}, {"score": None}, {"score": 0.5}, {"comment": ""}])
async def test_something_else_is_refused_and_replaces_only_where_that_is_asked(
    store: FeedbackStore, database: Database, change: dict
) -> None:
    await store.give(GIVEN)
    other = replace(GIVEN, **change, created_at=9.0)
    with pytest.raises(Conflict) as refused:
        await store.give(other)
    assert "'support' said failed with score 0.25" in str(refused.value)
    assert await store.list() == [GIVEN]
    assert await store.give(other, overwrite=True) == other
    assert await store.list() == [other]
    (event,) = await EventStore(database).list()
    assert (event.kind, event.subject, event.actor) == ("feedback.replaced", "ep_1", "key_1")
    assert event.details["source"] == "support"
    assert event.details["from"] == {
        "key": "key_1", "passed": False, "score": 0.25, "comment": "wrong year", "trains": False, "created_at": 5.5,
    }  # fmt: skip


async def test_a_key_that_becomes_trusted_says_so_only_by_replacing(store: FeedbackStore) -> None:
    await store.give(GIVEN)
    assert (await store.give(replace(GIVEN, trains=True))).trains is False
    assert (await store.give(replace(GIVEN, trains=True), overwrite=True)).trains is True


async def test_what_another_key_said_is_not_a_clients_to_replace(store: FeedbackStore) -> None:
    await store.give(GIVEN)
    theirs = replace(GIVEN, key="key_2", passed=True)
    with pytest.raises(Conflict, match="sent with another key"):
        await store.give(theirs, overwrite=True, own_only=True)
    assert (await store.give(theirs, overwrite=True)).passed is True


async def test_sources_stand_beside_each_other(store: FeedbackStore) -> None:
    nightly = await store.give(replace(GIVEN, source="nightly", passed=True))
    await store.give(GIVEN)
    assert await store.list() == [nightly, GIVEN]


async def test_of_many_at_once_one_counts_and_the_others_learn_of_it(store: FeedbackStore) -> None:
    verdicts = [replace(GIVEN, passed=number % 2 == 0) for number in range(12)]
    answers = await asyncio.gather(*(store.give(one) for one in verdicts), return_exceptions=True)
    (kept,) = await store.list()
    assert [one for one in answers if isinstance(one, Feedback)] == [kept] * 6
    assert all(isinstance(one, Conflict) for one in answers if not isinstance(one, Feedback))


async def test_of_many_replacements_at_once_none_is_lost_from_the_audit_log(
    store: FeedbackStore, database: Database
) -> None:
    scores = [None, *(number / 10 for number in range(10))]
    await asyncio.gather(*(store.give(replace(GIVEN, score=score), overwrite=True) for score in scores))
    events = await EventStore(database).list()
    (kept,) = await store.list()
    assert {*(event.details["from"]["score"] for event in events), kept.score} == set(scores)
    assert len(events) == 10


async def test_text_that_no_database_holds_is_made_visible(store: FeedbackStore) -> None:
    given = await store.give(replace(GIVEN, source="a\0b", comment="c\0d"))
    assert (given.source, given.comment) == ("a\u2400b", "c\u2400d")
    assert await store.give(replace(GIVEN, source="a\0b", comment="c\0d")) == given
    assert await store.list() == [given]


async def test_it_belongs_to_its_episode(log: EpisodeLog, database: Database) -> None:
    episodes, store = EpisodeStore(database), FeedbackStore(database)
    logged = [make_episode(Outcome.PASSED, task=task) for task in ("a", "a", "b", "a")]
    for episode in logged:
        await log.record(episode)
    first, second, third, last = (episode.id for episode in logged)
    for episode_id, source, passed in ((first, "x", False), (first, "y", True), (second, "x", True), (third, "x", 0)):
        await store.give(Feedback(episode_id, source, "key_1", passed=bool(passed)))
    shown = await episodes.get(first)
    assert shown is not None
    assert [(one.source, one.passed) for one in shown.feedback] == [("x", False), ("y", True)]
    assert {one.id: len(one.feedback) for one in await episodes.list()} == {first: 2, second: 1, third: 1, last: 0}

    async def find(**criteria) -> list[str]:
        return [one.id for one in await episodes.list(**criteria)]

    assert await find(said="passed") == [second, first]
    assert await find(said="failed") == [third, first]
    assert await find(said="none") == [last]
    assert await find(said="failed", task="a") == [first]
    assert await find(said="passed", limit=1) == [second]
    assert await find(said="passed", limit=1, before=second) == [first]
    assert await find(said="passed", limit=1, before=first) == []
    assert [one.episode_id for one in await store.list(task="b")] == [third]
    assert [one.source for one in await store.list(limit=2)] == ["x", "x"]


@pytest.mark.parametrize("gone", ["ep_3", "ep_\0", "ep_\ud800"])
async def test_of_an_episode_that_is_not_there_nothing_is_kept(
    store: FeedbackStore, database: Database, gone: str
) -> None:
    with pytest.raises(NotFound, match="any more"):
        await store.give(replace(GIVEN, episode_id=gone))
    assert await store.list() == []
    assert await EpisodeStore(database).find_owner(gone) is None
