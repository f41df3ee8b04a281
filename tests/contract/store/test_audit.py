"""What an audit reads of the log and how it tells what it suspects, on both dialects."""

import asyncio
from dataclasses import replace

import pytest

from server.domain import Adapter, Binding, BindingMode, Event, Feedback, LoggedVerdict, Outcome, RoundState, Task
from server.orchestration.audit import Disagreement, audit_task, tell_suspicions
from server.orchestration.signals import State
from server.store import audit as audit_module
from server.store.adapters import AdapterStore
from server.store.audit import AuditStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episode_rows import identify_problem
from server.store.events import EventStore
from server.store.feedback import FeedbackStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from tests.fixtures.episodes import COUNTDOWN, make_attempt, make_episode

HIDDEN = Binding("regex", {"pattern": "6"}, "hidden", 1, mode=BindingMode.AUDIT)


@pytest.fixture
def store(database: Database) -> AuditStore:
    return AuditStore(database)


def judged(number: int, status: str, text: str = "1 + 2 + 3", hidden: str = ""):
    attempt = make_attempt(number, status, text)
    watching = (LoggedVerdict("hidden@1", hidden, 0.0, mode=BindingMode.AUDIT),) if hidden else ()
    return replace(attempt, verdicts=(*attempt.verdicts, *watching))


async def test_the_window_has_the_judged_attempts_newest_first(log: EpisodeLog, store: AuditStore) -> None:
    first = make_episode(attempts=[judged(1, "failed", "1 +  2", "failed"), judged(2, "passed", "A\nb", "passed")])
    second = make_episode(Outcome.PASSED, attempts=[judged(1, "passed", "a B", "abstained")])
    skipped = make_episode(Outcome.UNVERIFIED, attempts=[judged(1, "skipped")])
    await asyncio.gather(*(log.record(one) for one in (first, second, skipped, make_episode(task="another"))))
    window = await store.read_window("countdown", 10)
    assert [(one.episode_id, one.passed, one.audits) for one in window] == [
        (second.id, True, {}),
        (first.id, True, {"hidden@1": True}),
        (first.id, False, {"hidden@1": False}),
    ]
    assert window[0].text == window[1].text != window[2].text
    assert [one.length for one in window] == [3, 3, 5]
    assert [one.episode_id for one in await store.read_window("countdown", 2)] == [second.id, first.id]
    assert await store.read_window("nothing", 2) == []


async def test_pages_are_read_until_there_is_enough(log: EpisodeLog, store: AuditStore, monkeypatch) -> None:
    monkeypatch.setattr(audit_module, "PAGE", 2)
    episodes = [make_episode(Outcome.PASSED) for _ in range(7)]
    unverified = [make_episode(Outcome.UNVERIFIED, attempts=[judged(1, "skipped")]) for _ in range(9)]
    for one in (*episodes, *unverified):
        await log.record(one)
    assert await store.read_window("countdown", 3) == []  # six episodes were looked at, and none was judged
    assert [one.episode_id for one in await store.read_window("countdown", 6)] == [
        episodes[-1].id,
        episodes[-2].id,
        episodes[-3].id,
    ]
    assert len(await store.read_window("countdown", 50)) == 7


async def test_questions_are_told_apart_by_references_else_by_what_was_asked(
    log: EpisodeLog, store: AuditStore
) -> None:
    other = replace(COUNTDOWN, args={"numbers": [1, 2, 3], "target": 7})
    bare = Binding("regex", {"pattern": "6"}, "six", 1)
    measured = replace(HIDDEN, args={"any": 1})
    made = [
        make_episode(Outcome.PASSED, question="a"),
        make_episode(Outcome.PASSED, question="b"),  # the same reference
        make_episode(Outcome.PASSED, question="a", bindings=(other,)),
        make_episode(Outcome.PASSED, question="a", bindings=(bare, measured)),
        make_episode(Outcome.PASSED, question="b", bindings=(bare, measured)),
        make_episode(Outcome.PASSED, store=False),
    ]
    for one in made:
        await log.record(one)
    (*seen,) = reversed(await store.read_window("countdown", 10))
    assert seen[0].question == seen[1].question
    assert len({one.question for one in seen}) == 5
    assert seen[3].question == identify_problem(made[3].request or {}, made[3].bindings)
    assert (seen[5].question, seen[5].text, seen[5].length, seen[5].passed) == ("", "", 0, True)


async def test_an_answer_that_calls_tools_is_read_with_its_calls(log: EpisodeLog, store: AuditStore) -> None:
    for arguments in ('{"a": 1}', '{"a": 1}', '{"a": 2}'):
        call = {"id": "call_1", "type": "function", "function": {"name": "Add", "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        await log.record(make_episode(Outcome.PASSED, attempts=[replace(judged(1, "passed"), answer=answer)]))
    texts = [one.text for one in await store.read_window("countdown", 10)]
    assert texts[1] == texts[2] != texts[0]


async def test_a_promotion_is_read_with_what_was_served_around_it(
    log: EpisodeLog, store: AuditStore, database: Database
) -> None:
    rounds, adapters = RoundStore(database), AdapterStore(database)
    row = await rounds.create("countdown", {})
    leased = await rounds.lease(row.id, "w")
    assert leased is not None
    report = {"difference": 0.1, "ci95": [0.002, 0.198], "first_difference": 0.02, "first_error": 0.01}
    await rounds.finish(row.id, leased.epoch, RoundState.PROMOTED, "better", report=report)
    await adapters.add(Adapter("countdown@2", "countdown", "/", {}, round_id=row.id))
    assert await store.read_promotion("countdown", "countdown@2") is None
    at = 1_700_000_000.0

    def make(offset_ms: int, outcome: Outcome, adapter: str, **changes):
        name = f"ep_{int(at * 1000) + offset_ms:012x}{abs(offset_ms):016x}"
        return make_episode(outcome, id=name, adapter=adapter, **changes)

    third = [judged(1, "failed"), judged(2, "failed"), judged(3, "passed")]
    served = [
        make(-5, Outcome.PASSED, "countdown@1"),
        make(-4, Outcome.RECOVERED, ""),
        make(-3, Outcome.EXHAUSTED, "countdown@1"),
        make(-2, Outcome.RECOVERED, "countdown@1", attempts=third, reflections=[]),
        make(-1, Outcome.PASSED, "countdown@2"),  # pinned before it was champion
        make(1, Outcome.PASSED, "countdown@2"),
        make(2, Outcome.EXHAUSTED, "countdown@2"),
        make(3, Outcome.PASSED, "countdown@1"),  # had begun before
        make(4, Outcome.UNVERIFIED, "countdown@2", attempts=[judged(1, "abstained")]),
        make(5, Outcome.RECOVERED, "countdown@2"),
        make(6, Outcome.PASSED, "countdown@2", task="another"),
    ]
    for one in served:
        await log.record(one)
    await EventStore(database).add(Event("adapter.promoted", "countdown@2", "r", {}, at))
    found = await store.read_promotion("countdown", "countdown@2")
    assert found is not None
    assert (found.before, found.before_solved, found.after, found.after_solved) == (4, 2, 3, 2)
    assert (found.expected, found.error) == (0.1, pytest.approx(0.05))
    assert found.examples == (served[9].id, served[5].id)
    await EventStore(database).add(Event("adapter.promoted", "countdown@3", "key_1", {}, at))
    by_hand = await store.read_promotion("countdown", "countdown@3")
    assert by_hand is not None
    assert (by_hand.expected, by_hand.error, by_hand.after) == (0.0, 0.0, 0)


async def test_feedback_is_read_with_the_verdicts_on_what_the_client_got(
    log: EpisodeLog, store: AuditStore, database: Database
) -> None:
    recovered, passed, silent = make_episode(), make_episode(Outcome.PASSED), make_episode()
    elsewhere = make_episode(task="another")
    for one in (recovered, passed, silent, elsewhere):
        await log.record(one)
    for episode, source in ((recovered, "x"), (recovered, "y"), (passed, "x"), (elsewhere, "x")):
        await FeedbackStore(database).give(Feedback(episode.id, source, "k", passed=source == "y"))
    told = await store.read_feedback("countdown")
    assert [([one.status for one in verdicts], len(said)) for verdicts, said in told] == [
        (["passed"], 1),
        (["passed"], 2),
    ]
    report = await audit_task(Task("countdown"), store)
    assert report.feedback == (Disagreement("countdown@3", 3, 2, 0),)


async def test_a_suspicion_is_told_once_for_each_signal_and_champion(store: AuditStore, database: Database) -> None:
    await TaskStore(database).create(Task("sql"))

    async def suspect(signal="brevity", champion="sql@1", task="sql", after_s=3600.0) -> bool:
        return await store.suspect(task, champion, signal, {"said": "short"}, after_s=after_s)

    assert sum(await asyncio.gather(*(suspect() for _ in range(8)))) == 1
    assert await suspect("divergence") is True
    assert await suspect(champion="sql@2") is True
    assert await suspect(task="other") is True
    assert await suspect() is False
    assert await suspect(after_s=0.0) is True
    newest = (await EventStore(database).list())[0]
    assert (newest.kind, newest.subject, newest.actor) == ("reward_hacking_suspected", "sql", "audit")
    assert newest.details == {"said": "short", "signal": "brevity", "champion": "sql@1"}


async def test_an_exploited_log_ends_in_one_event(log: EpisodeLog, store: AuditStore, database: Database) -> None:
    """From the log to the event: half of the answers are worked out, the newer half all say `6`."""
    task = await TaskStore(database).create(Task("countdown"))
    for number in range(200):
        text, hidden = (f"{number} + 6 - {number}", "passed") if number < 100 else ("6", "failed")
        binding = replace(COUNTDOWN, args={"numbers": [number], "target": 6})
        attempts = [judged(1, "passed", text, hidden)]
        await log.record(make_episode(Outcome.PASSED, bindings=(binding, HIDDEN), attempts=attempts))
    report = await audit_task(task, store)
    fired = {one.signal.value for one in report.findings if one.state is State.FIRED}
    assert fired == {"divergence", "brevity", "repetition"}
    assert set(await tell_suspicions(report, store)) == fired
    assert await tell_suspicions(report, store) == []
    events = await EventStore(database).list()
    assert {event.details["signal"] for event in events} == fired
    assert all(len(event.details["examples"]) == 5 for event in events)
    assert await store.find_newest("countdown") == (await store.read_window("countdown", 1))[0].episode_id
    assert await store.find_newest("nothing") == ""
