"""What the episode log writes and the episode store reads, on both dialects."""

from dataclasses import replace

import pytest

from server.domain import Binding, Outcome, Usage
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from tests.fixtures.episodes import make_attempt, make_episode, make_reflection


@pytest.fixture
def episodes(database: Database) -> EpisodeStore:
    return EpisodeStore(database)


def light(episode):
    """An episode as lists show it."""
    return replace(
        episode,
        attempts=[replace(attempt, logprobs=None) for attempt in episode.attempts],
        reflections=[replace(r, prompt_ids=(), token_ids=(), logprobs=()) for r in episode.reflections],
    )


async def test_an_episode_comes_back_as_it_was_recorded(log: EpisodeLog, episodes: EpisodeStore) -> None:
    episode = make_episode(error="none really", split="held_out", trains=False)
    episode.attempts[1] = replace(episode.attempts[1], logprobs={"content": [{"token": "6", "logprob": -0.5}]})
    await log.record(episode)
    assert await episodes.get(episode.id) == episode
    assert await episodes.get("ep_none") is None


async def test_recording_twice_is_recording_once(log: EpisodeLog, episodes: EpisodeStore) -> None:
    episode = make_episode()
    await log.record(episode)
    await log.record(episode)
    await log.record(replace(episode, error="another", attempts=[], reflections=[]))
    assert await episodes.count() == 1
    assert await episodes.get(episode.id) == episode


async def test_the_order_of_keys_in_a_request_is_kept(log: EpisodeLog, episodes: EpisodeStore) -> None:
    """A tool's schema is rendered into the prompt in the client's order: another order is another prompt."""
    parameters = {"zoo": {"type": "string"}, "ant": {"type": "integer"}, "b": {"enum": [2, 1.0, 10**30]}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": parameters}}}]
    episode = make_episode(request={"tools": tools, "messages": [{"role": "user", "content": "ä\u2028"}], "a": 1})
    await log.record(episode)
    found = await episodes.get(episode.id)
    assert found is not None
    assert str(found.request) == str(episode.request)


async def test_text_that_a_database_cannot_hold_is_made_visible(log: EpisodeLog, episodes: EpisodeStore) -> None:
    odd = "a\0b\ud800c😀"
    reflection = replace(make_reflection(), text=odd)
    attempt = replace(make_attempt(1, "failed", odd), reason=odd, sampling={"stop": [odd]})
    episode = make_episode(request={"messages": [{odd: odd}]}, error=odd, attempts=[attempt], reflections=[reflection])
    await log.record(episode)
    found = await episodes.get(episode.id)
    assert found is not None
    visible = "a\u2400b\ufffdc😀"
    assert found.request == {"messages": [{visible: visible}]}
    assert found.attempts[0].answer["content"] == visible
    assert found.attempts[0].sampling == {"stop": [visible]}
    assert (found.error, found.attempts[0].reason, found.reflections[0].text) == (visible, visible, visible)
    assert found.reflections[0].token_ids == reflection.token_ids


async def test_what_is_no_number_can_be_logged(log: EpisodeLog, episodes: EpisodeStore) -> None:
    inf, nan = float("inf"), float("nan")
    attempt = make_attempt(1, "failed")
    verdict = replace(attempt.verdicts[0], score=nan, duration_ms=inf)
    attempt = replace(attempt, score=nan, engine_ms=inf, verdicts=(verdict,))
    reflection = replace(make_reflection(), logprobs=(-inf, -1.0, 0.0, 0.0))
    await log.record(episode := make_episode(attempts=[attempt], reflections=[reflection], duration_ms=inf))
    found = await episodes.get(episode.id)
    assert found is not None
    assert (found.attempts[0].score, found.attempts[0].verdicts[0].score, found.duration_ms) == (0.0, 0.0, 0.0)
    assert found.reflections[0].logprobs[0] == -inf


async def test_without_store_the_content_stays_out(log: EpisodeLog, episodes: EpisodeStore, database: Database) -> None:
    secret = "hunter2"
    attempt = make_attempt(1, "failed", secret)
    attempt = replace(
        attempt,
        reason=secret,
        verdicts=(replace(attempt.verdicts[0], reason=secret, stdout=secret),),
        sampling={"stop": secret},
        logprobs={"content": secret},
    )
    episode = make_episode(
        Outcome.EXHAUSTED,
        store=False,
        question=secret,
        attempts=[attempt],
        reflections=[replace(make_reflection(), text=secret, sampling={"stop": secret})],
        bindings=(Binding("python", {"code": secret}, "", 0, {"reference": secret}, {"answer": secret}),),
    )
    await log.record(episode)
    found = await episodes.get(episode.id)
    assert found is not None
    assert secret not in repr(found)
    assert found.request is None
    assert found.reflections[0].token_ids == found.reflections[0].prompt_ids == ()
    assert (found.outcome, found.usage, found.attempts[0].status) == (Outcome.EXHAUSTED, episode.usage, "failed")
    assert found.attempts[0].usage == Usage(11, 7)
    async with database.read() as connection:
        rows = (await connection.exec_driver_sql("SELECT problem FROM episodes")).all()
    assert rows == [("",)]  # a hash of it would still tell who asked the same


async def test_lists_are_light_and_go_page_by_page(log: EpisodeLog, episodes: EpisodeStore) -> None:
    made = [make_episode(id=f"ep_{n}") for n in range(5)]
    for episode in made:
        await log.record(episode)
    newest_first = [light(episode) for episode in reversed(made)]
    assert await episodes.list() == newest_first
    assert await episodes.list(limit=2) == newest_first[:2]
    assert await episodes.list(limit=2, before="ep_3") == newest_first[2:4]
    assert await episodes.list(before="ep_0") == []


async def test_lists_and_counts_by_task_outcome_and_key(log: EpisodeLog, episodes: EpisodeStore) -> None:
    a = make_episode(Outcome.PASSED, task="a", created_at=1.0)
    b = make_episode(Outcome.EXHAUSTED, task="a", key="key_2", created_at=2.0)
    c = make_episode(Outcome.PASSED, task="b", key="key_2", created_at=3.0)
    for episode in (a, b, c):
        await log.record(episode)
    for wanted, criteria in (
        ([b, a], {"task": "a"}),
        ([c, a], {"outcome": "passed"}),
        ([c, b], {"key": "key_2"}),
        ([b], {"task": "a", "outcome": Outcome.EXHAUSTED, "key": "key_2"}),
        ([], {"task": "c"}),
    ):
        assert [found.id for found in await episodes.list(**criteria)] == [episode.id for episode in wanted]
        assert await episodes.count(**criteria) == len(wanted)
    assert await episodes.count(since=2.0) == 1


async def test_iterating_passes_every_episode_once_oldest_first(log: EpisodeLog, episodes: EpisodeStore) -> None:
    made = [make_episode(task=task) for task in ("a", "b", "a", "a", "b")]
    for episode in made:
        await log.record(episode)
    assert [episode async for episode in episodes.iterate(batch=2)] == made
    assert [episode async for episode in episodes.iterate(task="a", batch=3)] == [made[0], made[2], made[3]]


async def test_failures_to_train_on(log: EpisodeLog, episodes: EpisodeStore) -> None:
    recovered = [make_episode(Outcome.RECOVERED, created_at=float(n)) for n in (10, 30)]
    exhausted = [make_episode(Outcome.EXHAUSTED, created_at=float(n)) for n in (20, 40)]
    others = [
        make_episode(Outcome.PASSED),
        make_episode(Outcome.UNVERIFIED),
        make_episode(split="held_out"),
        make_episode(task="other"),
        make_episode(store=False),
        make_episode(trains=False),
        make_episode(Outcome.EXHAUSTED, trains=False),
    ]
    for episode in (*recovered, *exhausted, *others):
        await log.record(episode)
    wanted = [recovered[1], recovered[0], exhausted[1], exhausted[0]]
    assert await episodes.failures("countdown", limit=10) == wanted
    assert await episodes.failures("countdown", limit=3) == wanted[:3]
    assert await episodes.failures("countdown", limit=1) == wanted[:1]
    assert await episodes.failures("countdown", limit=0) == []
    assert await episodes.failures("countdown", since=20.0, limit=10) == [recovered[1], exhausted[1]]
    assert await episodes.count_failures("countdown", since=0) == 4
    assert await episodes.count_failures("countdown", since=20.0) == 2
    assert await episodes.count_failures("nothing", since=0) == 0


async def test_held_out_problems_come_once(log: EpisodeLog, episodes: EpisodeStore) -> None:
    def held(outcome: Outcome, question: str, **changes):
        return make_episode(outcome, question=question, split="held_out", **changes)

    old = held(Outcome.PASSED, "one")
    new = held(Outcome.EXHAUSTED, "one")
    new.request = {**(new.request or {}), "temperature": 1.5}  # sampled otherwise, but the same problem
    two = held(Outcome.RECOVERED, "two")
    other_target = held(Outcome.PASSED, "two", bindings=(replace(two.bindings[0], args={"target": 7}),))
    left_out = [
        held(Outcome.UNVERIFIED, "three"),
        held(Outcome.ERRORED, "four"),
        held(Outcome.PASSED, "five", store=False),
        held(Outcome.PASSED, "six", task="other"),
        held(Outcome.PASSED, "eight", trains=False),
        held(Outcome.PASSED, "one", trains=False),
        make_episode(Outcome.PASSED, question="seven"),
    ]
    for episode in (old, new, two, other_target, *left_out):
        await log.record(episode)
    wanted = [light(other_target), light(two), light(new)]
    assert await episodes.held_out("countdown", limit=10) == wanted
    assert await episodes.held_out("countdown", limit=2) == wanted[:2]
