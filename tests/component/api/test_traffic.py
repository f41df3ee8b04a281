"""Room for episodes: how many run, who waits, who goes first, and that no room is ever lost."""

import asyncio
import random
import time

import pytest

from server.api import wire
from server.api.traffic import Traffic
from server.api.wire import ClientGone
from server.errors import InvalidRequest, TooManyRequests


async def stay():
    """A client that stays for ever, as `receive` tells it."""
    await asyncio.Event().wait()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Visitor:
    """One request: enters as a task of its own, and stays until it is told to leave."""

    def __init__(self, traffic, count=1, receive=stay, admitted=None):
        self.count, self.let_in = count, False
        self._traffic, self._admitted = traffic, admitted if admitted is not None else []
        self._ends = asyncio.Event()
        self.task = asyncio.create_task(self._visit(receive))

    async def _visit(self, receive):
        await self._traffic.enter(self.count, receive)
        self.let_in = True
        self._admitted.append(self)
        try:
            await self._ends.wait()
        finally:
            self._traffic.leave(self.count)

    async def leave(self):
        self._ends.set()
        await self.task


async def arrive(traffic, *counts, admitted=None):
    """Let requests arrive one after the other."""
    visitors = []
    for count in counts:
        visitors.append(Visitor(traffic, count, admitted=admitted))
        await settle()
    return visitors


async def end(*visitors):
    for visitor in visitors:
        visitor.task.cancel()
    await asyncio.gather(*(visitor.task for visitor in visitors), return_exceptions=True)


async def test_up_to_the_limit_nobody_waits():
    traffic = Traffic(3)
    await traffic.enter(2, stay)
    await traffic.enter(1, stay)
    assert (traffic.running, traffic.queued) == (3, 0)
    with pytest.raises(TooManyRequests) as refused:
        await traffic.enter(1, stay)
    assert refused.value.retry_after_s == 1
    traffic.leave(1)
    await traffic.enter(1, stay)
    assert traffic.running == 3


async def test_first_come_first_served():
    traffic, admitted = Traffic(1, max_queued=9), []
    visitors = await arrive(traffic, 1, 1, 1, 1, admitted=admitted)
    assert (admitted, traffic.queued) == (visitors[:1], 3)
    for visitor in visitors:
        await visitor.leave()
        await settle()
    assert admitted == visitors
    assert (traffic.running, traffic.queued) == (0, 0)


async def test_whoever_comes_later_waits_behind_the_queue_even_where_it_would_fit():
    traffic, admitted = Traffic(4, max_queued=9), []
    three, four, one = await arrive(traffic, 3, 4, 1, admitted=admitted)
    assert (admitted, traffic.running, traffic.queued) == ([three], 3, 2)
    await three.leave()
    await settle()
    assert (admitted, traffic.running) == ([three, four], 4)
    await four.leave()
    await settle()
    assert admitted == [three, four, one]
    await end(one)


async def test_several_are_let_in_at_once_where_they_fit():
    traffic, admitted = Traffic(4, max_queued=9), []
    four, *small = await arrive(traffic, 4, 1, 2, 1, 1, admitted=admitted)
    await four.leave()
    await settle()
    assert admitted == [four, *small[:3]]
    assert (traffic.running, traffic.queued) == (4, 1)
    await end(*small)


async def test_past_the_queue_it_is_refused_at_once():
    traffic = Traffic(1, max_queued=2)
    visitors = await arrive(traffic, 1, 1, 1)
    with pytest.raises(TooManyRequests, match="1 answers are under way here and 2 wait"):
        await traffic.enter(1, stay)
    assert (traffic.running, traffic.queued) == (1, 2)
    await end(*visitors)


async def test_what_never_fits_is_the_clients_mistake():
    traffic = Traffic(2, max_queued=9)
    with pytest.raises(InvalidRequest) as refused:
        await traffic.enter(3, stay)
    assert (refused.value.param, traffic.running, traffic.queued) == ("n", 0, 0)


async def test_whoever_waits_too_long_is_refused_and_forgotten():
    traffic = Traffic(1, max_queued=9, queue_timeout_s=0.02)
    (first,) = await arrive(traffic, 1)
    with pytest.raises(TooManyRequests, match="No room within"):
        await traffic.enter(1, stay)
    assert (traffic.running, traffic.queued) == (1, 0)
    await first.leave()
    assert traffic.running == 0


async def test_nobody_waits_beyond_the_deadline():
    traffic = Traffic(1, max_queued=9, queue_timeout_s=60)
    await traffic.enter(1, stay)
    for deadline_at in (time.time() + 0.02, time.time() - 5):
        with pytest.raises(TooManyRequests, match="No room within"):
            await traffic.enter(1, stay, deadline_at)
    assert (traffic.running, traffic.queued) == (1, 0)


async def test_a_big_one_that_gives_up_lets_smaller_ones_behind_it_in():
    traffic, admitted = Traffic(2, max_queued=9), []
    one, two, small = await arrive(traffic, 1, 2, 1, admitted=admitted)
    await end(two)
    await settle()
    assert (admitted, traffic.running, traffic.queued) == ([one, small], 2, 0)
    await end(one, small)
    assert traffic.running == 0


async def test_who_is_cancelled_in_the_turn_in_which_room_is_given_takes_none():
    for order in ("cancel first", "leave first"):
        traffic = Traffic(1, max_queued=9)
        first, second, third = await arrive(traffic, 1, 1, 1)
        if order == "cancel first":
            second.task.cancel()
            first._ends.set()
        else:
            first._ends.set()
            await asyncio.sleep(0)  # the first one leaves, and lets the second one in ...
            second.task.cancel()  # ... which is cancelled before it runs
        await settle()
        assert (second.let_in, second.task.cancelled()) == (False, True)
        assert (third.let_in, traffic.running, traffic.queued) == (True, 1, 0)
        await third.leave()
        assert traffic.running == 0


async def test_room_that_is_given_between_a_cancellation_and_its_delivery_goes_to_the_next():
    """The cancelled one still stands in the queue when somebody leaves: it is passed over, and ends as cancelled."""
    traffic = Traffic(1, max_queued=9)
    await traffic.enter(1, stay)
    second, third = await arrive(traffic, 1, 1)
    second.task.cancel()
    traffic.leave(1)
    await settle()
    assert (second.task.cancelled(), third.let_in, traffic.running, traffic.queued) == (True, True, 1, 0)
    await third.leave()


async def test_a_client_that_leaves_the_queue_is_forgotten(monkeypatch):
    monkeypatch.setattr(wire, "UNWATCHED_S", 0)
    traffic, gone = Traffic(1, max_queued=9), asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    await traffic.enter(1, stay)
    waiting = Visitor(traffic, receive=receive)
    await settle()
    assert traffic.queued == 1
    gone.set()
    with pytest.raises(ClientGone):
        await waiting.task
    assert (traffic.running, traffic.queued) == (1, 0)
    traffic.leave(1)
    assert traffic.running == 0


@pytest.mark.parametrize("seed", range(20))
async def test_in_any_order_of_events_no_room_is_lost_and_never_too_much_given(seed, monkeypatch):
    monkeypatch.setattr(wire, "UNWATCHED_S", 0)
    dice = random.Random(seed)
    most = dice.randint(1, 5)
    traffic = Traffic(most, max_queued=dice.randint(0, 8), queue_timeout_s=dice.choice([0.001, 60]))
    visitors, clients = [], []

    def make_client():
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        clients.append(gone)
        return receive

    for _ in range(300):
        match dice.randrange(6):
            case 0 | 1:
                visitors.append(Visitor(traffic, dice.randint(1, most), make_client()))
            case 2 if visitors:
                dice.choice(visitors)._ends.set()
            case 3 if visitors:
                dice.choice(visitors).task.cancel()
            case 4 if clients:
                dice.choice(clients).set()
            case _:
                await asyncio.sleep(0)
        assert 0 <= traffic.running <= most
    for visitor in visitors:
        visitor._ends.set()
    ended = await asyncio.gather(*(visitor.task for visitor in visitors), return_exceptions=True)
    assert {type(one) for one in ended} <= {type(None), asyncio.CancelledError, TooManyRequests, ClientGone}
    assert (traffic.running, traffic.queued) == (0, 0)


async def test_episodes_in_flight_are_counted_by_adapter():
    traffic = Traffic(9)
    with traffic.counted("sums@1", 2), traffic.counted("", 1), traffic.counted("sums@1", 1):
        assert traffic.in_flight() == {"sums@1": 3, "": 1}
    assert traffic.in_flight() == {}
