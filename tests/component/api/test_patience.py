"""How long the server goes on for a client: `until_gone`, whoever leaves, and deadlines."""

import asyncio
import time

import pytest

from server.api import wire
from server.api.wire import ClientGone, until_gone
from server.domain import Binding, Outcome, Reflection, RetryPolicy, Task
from server.errors import EngineBroken
from server.orchestration.episode import judge
from server.orchestration.reflection import Prompts
from server.orchestration.retry import Budget
from server.orchestration.verification import NONE, bind
from tests.fixtures.api import make_api
from tests.fixtures.asgi import Connection
from tests.fixtures.engines import HANG, reply
from verifiers.regex import RegexVerifier

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
BODY = {"model": "default", "messages": [{"role": "user", "content": "q"}]}


class Client:
    """A client that can go away, as `receive` tells it."""

    def __init__(self):
        self.gone = asyncio.Event()
        self.looks = 0

    async def receive(self):
        self.looks += 1
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def watched_at_once(monkeypatch):
    monkeypatch.setattr(wire, "UNWATCHED_S", 0)


async def settle():
    """Let everything that is ready run, and say which other tasks are left."""
    for _ in range(5):
        await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_quick_work_is_not_watched():
    client = Client()

    async def work():
        await asyncio.sleep(0)
        return 1

    assert await until_gone(client.receive, work()) == 1
    assert (client.looks, await settle()) == (0, set())


async def test_slow_work_is_watched_and_the_watch_ends_with_it(watched_at_once):
    client = Client()

    async def work():
        while not client.looks:
            await asyncio.sleep(0)
        return 1

    assert await until_gone(client.receive, work()) == 1
    assert (client.looks, await settle()) == (1, set())


async def test_who_was_gone_at_the_start_is_noticed(watched_at_once):
    client = Client()
    client.gone.set()
    with pytest.raises(ClientGone):
        await until_gone(client.receive, asyncio.Event().wait())
    assert (asyncio.current_task().cancelling(), await settle()) == (0, set())


async def test_the_clean_up_is_awaited(watched_at_once):
    client, seen = Client(), []
    client.gone.set()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            seen.append("cleaned up")

    with pytest.raises(ClientGone):
        await until_gone(client.receive, work())
    assert seen == ["cleaned up"]


async def test_an_error_of_the_clean_up_leaves_no_cancellation_behind(watched_at_once):
    client = Client()
    client.gone.set()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("the clean-up broke")

    with pytest.raises(ValueError, match="broke"):
        await until_gone(client.receive, work())
    assert asyncio.current_task().cancelling() == 0
    with pytest.raises(TimeoutError):  # with a cancellation left over this would be a CancelledError
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_work_that_ends_in_spite_of_it_has_its_result(watched_at_once):
    client = Client()
    client.gone.set()

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done"

    assert await until_gone(client.receive, work()) == "done"
    assert asyncio.current_task().cancelling() == 0


async def test_a_client_that_goes_at_the_end_of_the_work_is_either_gone_or_answered(watched_at_once):
    """Whatever the order of the two within one turn of the loop: one of them wins, and nothing is left over."""
    seen = set()
    for turns in range(8):
        for first in ("client", "work"):
            client, ended = Client(), asyncio.Event()

            async def work(ended=ended):
                await ended.wait()
                return 1

            async def end(client=client, ended=ended, turns=turns, first=first):
                while not client.looks:
                    await asyncio.sleep(0)
                events = [client.gone, ended] if first == "client" else [ended, client.gone]
                events[0].set()
                for _ in range(turns):
                    await asyncio.sleep(0)
                events[1].set()

            ending = asyncio.create_task(end())
            try:
                seen.add(await until_gone(client.receive, work()))
            except ClientGone:
                seen.add("gone")
            await ending
            assert (asyncio.current_task().cancelling(), await settle()) == (0, set())
    assert seen == {1, "gone"}


async def test_a_timeout_inside_and_a_client_that_goes_at_once(watched_at_once):
    """Both cancel the same task in the same turn: neither may be lost to the other."""
    client = Client()
    limits = []

    async def work():
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await asyncio.Event().wait()

    async def end():
        while not client.looks:
            await asyncio.sleep(0)
        client.gone.set()
        limits[0].reschedule(asyncio.get_running_loop().time())

    ending = asyncio.create_task(end())
    with pytest.raises(ClientGone):
        await until_gone(client.receive, work())
    await ending
    assert asyncio.current_task().cancelling() == 0


async def test_a_timeout_inside_stays_a_timeout(watched_at_once):
    client = Client()

    async def work():
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await until_gone(client.receive, work())


async def test_a_timeout_around_it_stays_a_timeout(watched_at_once):
    client = Client()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await until_gone(client.receive, asyncio.Event().wait())
    assert await settle() == set()


async def test_a_server_that_shuts_down_cancels_even_whom_the_client_left(watched_at_once):
    client = Client()

    async def serve():
        await until_gone(client.receive, asyncio.Event().wait())

    serving = asyncio.create_task(serve())
    while not client.looks:
        await asyncio.sleep(0)
    client.gone.set()
    await asyncio.sleep(0)  # the watch runs now, and cancels ...
    serving.cancel()  # ... and so does the server
    with pytest.raises(asyncio.CancelledError):
        await serving


async def take_turns():
    for _ in range(6):
        await asyncio.sleep(0)


SHAPES = {
    "whole": {},
    "verified": {"verifiers": FOUR},
    "live": {"stream": True},
    "held": {"stream": True, "verifiers": FOUR},
    "several": {"n": 3, "verifiers": FOUR},
    "several_live": {"n": 3, "stream": True},
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_client_that_goes_at_any_turn_leaves_nothing_behind(shape, watched_at_once):
    """The client goes after 0, 1, 2, ... turns of the loop, until the answer is whole before it goes."""
    fields = SHAPES[shape]
    outcomes = set()
    for turns in range(400):
        api = make_api("5", "Hm.", "4")
        api.engine._pause = take_turns
        await api.roster.refresh()
        connection = Connection(api.gate, "POST", "/v1/chat/completions", {**BODY, **fields}, key="mk-client")
        running = asyncio.create_task(connection.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        whole = connection.answer.whole
        connection.leave()
        answer = await asyncio.wait_for(running, 5)
        assert (api.traffic.in_flight(), api.traffic.running, api.engine.running) == ({}, 0, 0)
        assert await settle() == set()
        logged = [episode.id for episode in api.log.episodes]
        assert len(logged) == len(set(logged)) in (0, fields.get("n", 1))
        for episode in api.log.episodes:
            outcomes.add(episode.outcome)
            if answer.whole and answer.status == 200 and b'"error"' not in answer.body:
                assert episode.outcome not in (Outcome.CANCELLED, Outcome.ERRORED)
            assert episode.outcome is not Outcome.ERRORED
        if answer.whole:
            assert len(logged) == fields.get("n", 1)
        if whole:
            break
    else:
        pytest.fail("the answer never became whole")
    assert Outcome.CANCELLED in outcomes
    assert outcomes - {Outcome.CANCELLED}


@pytest.mark.parametrize("streams", [False, True])
async def test_several_choices_are_cleaned_up_before_they_are_logged(streams, watched_at_once):
    api = make_api("4")
    begun, cleaned, seen = [], [], []
    record = api.log.record

    async def hang():
        begun.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            await take_turns()
            cleaned.append(1)

    async def note(episode):
        seen.append(len(cleaned))
        await record(episode)

    api.engine._pause, api.log.record = hang, note
    connection = api.connect({**BODY, "n": 3, "stream": streams})
    running = asyncio.create_task(connection.run())
    while len(begun) < 3:
        await asyncio.sleep(0)
    connection.leave()
    await asyncio.wait_for(running, 5)
    assert (seen, {episode.outcome for episode in api.log.episodes}) == ([3, 3, 3], {Outcome.CANCELLED})


async def test_a_held_stream_that_breaks_while_it_is_alive_is_cancelled_too(watched_at_once):
    api = make_api(HANG)
    connection = api.connect(
        {**BODY, "stream": True, "n": 2, "verifiers": FOUR}, headers={"x-stainless-read-timeout": "0.02"}
    )
    running = asyncio.create_task(connection.run())
    await asyncio.wait_for(connection.progress.wait(), 5)
    connection.leave()
    await asyncio.wait_for(running, 5)
    assert api.engine.cancelled == 2
    assert {episode.outcome for episode in api.log.episodes} == {Outcome.CANCELLED}
    assert await settle() == set()


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": True, "n": 2}])
async def test_a_client_that_stays_and_reads_nothing_holds_its_room_only_to_the_deadline(fields, monkeypatch):
    monkeypatch.setattr(wire, "STALLED_S", 0.05)
    api = make_api("one two three", limits={"deadline_s": 0.1})
    connection = api.connect({**BODY, **fields})
    send, stalled = connection._send, asyncio.Event()

    async def stall(message):
        if b"one" in connection.answer.body:
            stalled.set()
            await asyncio.Event().wait()  # the server's buffers are full, and nobody empties them
        await send(message)

    connection._send = stall
    await asyncio.wait_for(connection.run(), 10)
    assert stalled.is_set()
    assert (api.traffic.running, api.traffic.in_flight(), connection.answer.whole) == (0, {}, False)
    assert {episode.outcome for episode in api.log.episodes} <= {Outcome.ERRORED, Outcome.CANCELLED}
    assert len(api.log.episodes) == fields.get("n", 1)
    assert await settle() == set()


@pytest.mark.parametrize("line", ["4", EngineBroken("no answer")])
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "verifiers": FOUR}])
async def test_a_client_that_left_an_earlier_answer_unread_holds_no_room_for_the_next(line, fields, monkeypatch):
    monkeypatch.setattr(wire, "STALLED_S", 0.05)
    api = make_api(line)
    connection = api.connect({**BODY, **fields})
    stalled = asyncio.Event()

    async def stall(_message):
        stalled.set()
        await asyncio.Event().wait()  # the connection's buffers are full with the answer before

    connection._send = stall
    await asyncio.wait_for(connection.run(), 10)
    assert stalled.is_set()
    assert (api.traffic.running, api.traffic.in_flight(), connection.answer.status) == (0, {}, 0)
    assert "ClientGone" not in api.logged.error
    assert await settle() == set()


async def test_a_client_that_reads_no_signs_of_life_holds_no_room(monkeypatch):
    monkeypatch.setattr(wire, "STALLED_S", 0.05)
    api = make_api(HANG)
    body = {**BODY, "stream": True, "verifiers": FOUR}
    connection = api.connect(body, headers={"x-stainless-read-timeout": "0.02"})
    send = connection._send

    async def stall(message):
        if b"still" in message.get("body", b""):
            await asyncio.Event().wait()
        await send(message)

    connection._send = stall
    await asyncio.wait_for(connection.run(), 10)
    assert (api.traffic.running, api.engine.cancelled, api.logged.outcome) == (0, 1, Outcome.CANCELLED)
    assert await settle() == set()


@pytest.mark.parametrize("fields", [{}, {"tools": [{"type": "function", "function": {"name": "add"}}]}])
async def test_what_a_stream_gave_before_its_client_left_is_not_free(fields, watched_at_once):
    answer = reply(calls=[{"name": "add", "arguments": "1" * 400}]) if fields else "one two three four five six"
    api = make_api(answer)
    connection = api.connect({**BODY, "messages": [{"role": "user", "content": "q" * 80}], "stream": True, **fields})
    send, mark = connection._send, b"1111" if fields else b"five"

    async def leave_late(message):
        await send(message)
        if mark in connection.answer.body:
            connection.leave()
            await asyncio.Event().wait()

    connection._send = leave_late
    await asyncio.wait_for(connection.run(), 10)
    assert api.logged.outcome is Outcome.CANCELLED
    assert api.logged.usage.prompt_tokens == 20
    assert api.logged.usage.completion_tokens >= (50 if fields else 5)


async def test_a_client_that_leaves_the_queue_runs_nothing(watched_at_once):
    api = make_api(HANG, limits={"max_concurrent": 1})
    first = asyncio.create_task(api.chat())
    while not api.engine.running:
        await asyncio.sleep(0)
    connection = api.connect(BODY)
    waiting = asyncio.create_task(connection.run())
    while not api.traffic.queued:
        await asyncio.sleep(0)
    connection.leave()
    answer = await asyncio.wait_for(waiting, 5)
    assert (answer.status, api.traffic.queued, len(api.engine.calls)) == (0, 0, 1)
    first.cancel()
    await asyncio.wait([first])
    assert [episode.outcome for episode in api.log.episodes] == [Outcome.CANCELLED]  # only what had begun is logged


class TestDeadline:
    @pytest.mark.parametrize("header", ["x-stainless-read-timeout", "x-stainless-timeout"])
    async def test_the_sdks_say_how_long_they_wait(self, header):
        assert (await make_api(HANG).chat(headers={header: "0.06"})).status == 504

    async def test_the_shorter_of_the_clients_and_the_servers_deadline_counts(self):
        api = make_api(HANG, limits={"deadline_s": 0.05})
        assert (await api.chat(headers={"x-stainless-read-timeout": "600"})).status == 504

    @pytest.mark.parametrize(
        ("of_task", "asked", "given"), [(None, 9, 9), (5, 9, 5), (9, 5, 5), (5, None, 5), (None, None, None)]
    )
    async def test_a_request_may_shorten_its_tasks_limits_but_not_lengthen_them(self, of_task, asked, given):
        api = make_api("4")
        api.tasks.put(Task("sums", retry=RetryPolicy(max_seconds=of_task, max_total_tokens=of_task and of_task * 100)))
        overrides = {} if asked is None else {"retry": {"max_seconds": asked, "max_total_tokens": asked * 100}}
        await api.chat("sums", **overrides)
        policy = api.logged.retry
        assert (policy.max_seconds, policy.max_total_tokens) == (given, given and given * 100)

    async def test_nobody_waits_for_room_beyond_the_deadline(self):
        api = make_api(HANG, limits={"max_concurrent": 1})
        first = asyncio.create_task(api.chat())
        while not api.engine.running:
            await asyncio.sleep(0)
        started = time.monotonic()
        answer = await api.chat(headers={"x-stainless-read-timeout": "0.06"})
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert time.monotonic() - started < 10
        first.cancel()
        await asyncio.wait([first])

    @pytest.mark.parametrize(("took_s", "begun"), [(1, True), (9, False)])
    async def test_after_the_reflection_a_retry_is_begun_only_if_it_fits(self, took_s, begun):
        """The reflection took most of what was left: another attempt like the first one would be cut off."""
        failed = await judge(1, BODY, reply("5"), verify=NONE, started_at=0, engine_ms=took_s * 1000)
        reflection = Reflection(1, "Hm.", reply("Hm.").usage)
        budget = Budget(RetryPolicy(max_seconds=20), Prompts(), started_at=time.time() - 14)
        assert budget.allows_attempt(failed, reflection, reply("5").usage, BODY) is begun
        assert budget.allows_retry(failed, reply("5").usage, BODY) is begun

    async def test_an_answer_whose_verdict_comes_too_late_is_returned_and_marked(self, monkeypatch):
        """At the deadline the client gets what there is: an answer that nobody judged."""

        async def never(_self, _request, _answer, _args):
            await asyncio.Event().wait()

        monkeypatch.setattr(RegexVerifier, "verify", never)
        verify = bind((Binding("regex", {"pattern": "4"}),))
        past = time.time() - 1
        judged = await judge(1, BODY, reply("4"), verify=verify, started_at=0, engine_ms=0, deadline_at=past)
        assert (judged.status, judged.answer["content"]) == ("abstained", "4")
        assert judged.reason.startswith("no verdict within")
