"""The limits of keys in one process, over a shared count in memory whose clock stands still unless it is moved."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.api.limit_account import render_duration
from server.api.limits import KeyLimiter
from server.domain import ApiKey, KeyLimits
from server.errors import InsufficientQuota, TooManyRequests
from server.store.key_limits import Claim, Usage, name_period, settle
from tests.fixtures.stores import MemoryKeyLimits

NOON = 1_900_000_000.0 - 1_900_000_000.0 % 86400 + 43200


class Clock:
    """One clock for the process and the database; the two do not begin at the same number."""

    def __init__(self) -> None:
        self.now = 0.0

    def process(self) -> float:
        return self.now

    def database(self) -> float:
        return NOON + self.now


def limited(**limits) -> ApiKey:
    return ApiKey("key_1", "app", "", limits=KeyLimits(**limits))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared(clock) -> MemoryKeyLimits:
    return MemoryKeyLimits(clock.database)


@pytest.fixture
def limiter(shared, clock) -> KeyLimiter:
    return KeyLimiter(shared, "api-1", clock=clock.process)


async def admit_all(limiter, key, most=10_000):
    """Admit until refused: the admissions and the refusal."""
    admitted = []
    for _ in range(most):
        try:
            admitted.append(await limiter.admit(key))
        except (TooManyRequests, InsufficientQuota) as error:
            return admitted, error
    return admitted, None


async def test_a_key_without_limits_asks_nobody(limiter, shared):
    key = limited()
    assert limiter.unlimited(key)
    admission = await limiter.admit(key)
    admission.finish(1000)
    await limiter.tick()
    assert (admission.headers, shared.asked) == ([], 0)


async def test_requests_are_taken_in_chunks_and_no_more_than_the_limit(limiter, shared):
    key = limited(requests_per_minute=100)
    assert not limiter.unlimited(key)
    admitted, refusal = await admit_all(limiter, key)
    assert len(admitted) == 100
    assert shared.asked == 51  # two a time, and the refusal
    assert (refusal.code, refusal.status) == ("rate_limit_exceeded", 429)
    assert "100 requests a minute" in str(refusal)
    assert refusal.retry_after_s == 61
    assert refusal.headers["x-ratelimit-reset-requests"] == "1m1s"


async def test_a_flood_of_refused_requests_hardly_asks(limiter, shared):
    key = limited(requests_per_minute=1)
    await limiter.admit(key)
    before = shared.asked
    for _ in range(100):
        with pytest.raises(TooManyRequests):
            await limiter.admit(key)
    assert shared.asked - before == 1


async def test_after_a_minute_there_is_room_again(limiter, clock):
    key = limited(requests_per_minute=3)
    assert len((await admit_all(limiter, key))[0]) == 3
    clock.now = 60.0
    assert len((await admit_all(limiter, key))[0]) == 0
    clock.now = 61.0
    assert len((await admit_all(limiter, key))[0]) == 3


async def test_headers_say_what_is_left(limiter):
    key = limited(requests_per_minute=60, tokens_per_minute=500)
    first = dict((await limiter.admit(key)).headers)
    second_admission = await limiter.admit(key)
    second = dict(second_admission.headers)
    assert first[b"x-ratelimit-limit-requests"] == b"60"
    assert (first[b"x-ratelimit-remaining-requests"], second[b"x-ratelimit-remaining-requests"]) == (b"59", b"58")
    assert first[b"x-ratelimit-remaining-tokens"] == b"500"
    second_admission.finish(120)
    third = dict((await limiter.admit(key)).headers)
    assert third[b"x-ratelimit-remaining-tokens"] == b"380"
    assert third[b"x-ratelimit-limit-tokens"] == b"500"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-1, "0s"), (0.25, "250ms"), (12, "12s"), (60, "1m0s"), (60.2, "1m1s")]
)
def test_durations_read_as_openai_writes_them(seconds, text):
    assert render_duration(seconds) == text


async def test_quota_that_was_not_spent_goes_back(limiter, shared, clock):
    key = limited(requests_per_minute=1000)
    await limiter.admit(key)
    assert sum(shared.usage["key_1"].requests.values()) == 20
    clock.now = 1.5
    await limiter.tick()
    assert sum(shared.usage["key_1"].requests.values()) == 1


async def test_tokens_are_refused_past_the_limit_and_count_when_they_are_told(limiter, shared, clock):
    key = limited(tokens_per_minute=100)
    (await limiter.admit(key)).finish(99)
    (await limiter.admit(key)).finish(1)  # may overshoot by what was in flight
    with pytest.raises(TooManyRequests, match="100 tokens a minute"):
        await limiter.admit(key)
    clock.now = 0.3
    await limiter.tick()
    assert shared.usage["key_1"].tokens == {int(NOON): 100}
    clock.now = 61.0
    await limiter.admit(key)


async def test_what_others_used_is_read_before_a_request_is_let_in(limiter, shared, clock):
    key = limited(tokens_per_minute=100)
    other = KeyLimiter(shared, "api-2", clock=clock.process)
    await limiter.admit(key)
    (await other.admit(key)).finish(100)
    clock.now = 0.3
    await other.tick()
    clock.now = 2.0
    with pytest.raises(TooManyRequests):
        await limiter.admit(key)


@pytest.mark.parametrize(("period", "retry_after_s"), [("total", None), ("day", 43200), ("month", None)])
async def test_a_used_up_budget_is_no_quota(limiter, clock, period, retry_after_s):
    key = limited(token_budget=10, budget_period=period)
    (await limiter.admit(key)).finish(10)
    await limiter.stop()
    with pytest.raises(InsufficientQuota) as caught:
        await limiter.admit(key)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.headers == {"x-should-retry": "false"}
    if period == "month":
        assert 86400 < caught.value.retry_after_s <= 31 * 86400
    else:
        assert caught.value.retry_after_s == retry_after_s
    clock.now = 43201.0
    if period == "day":
        await limiter.admit(key)
    else:
        with pytest.raises(InsufficientQuota):
            await limiter.admit(key)


def test_periods_are_utc():
    assert name_period("day", 0) == "1970-01-01"
    assert name_period("month", 86400 * 31) == "1970-02"
    assert name_period("total", 1e9) == ""


async def test_slots_are_freed_by_finish_once(limiter, shared):
    key = limited(max_concurrent=2)
    first, second = await limiter.admit(key), await limiter.admit(key)
    first.finish(0)
    first.finish(0)
    third = await limiter.admit(key)
    assert shared.usage["key_1"].slots["api-1"][0] == 2
    for admission in (second, third):
        admission.finish(0)
    await limiter.tick()
    await limiter.tick()
    assert shared.usage["key_1"].slots == {}


async def test_many_who_wait_at_once_all_get_their_turn(shared):
    limiter = KeyLimiter(shared, "api-1")
    shared.clock = lambda: NOON
    key = limited(max_concurrent=4, requests_per_minute=1000)
    running = most = 0

    async def work():
        nonlocal running, most
        admission = await limiter.admit(key)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        admission.finish(3)

    await asyncio.gather(*(work() for _ in range(8)))
    assert most == 4


async def test_one_that_leaves_while_it_waits_takes_nothing_along(limiter, shared):
    key = limited(requests_per_minute=10, max_concurrent=2)
    leaving = asyncio.create_task(limiter.admit(key))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    admissions = [await limiter.admit(key) for _ in range(2)]
    for admission in admissions:
        admission.finish(0)
    await limiter.stop()
    assert shared.usage["key_1"].slots == {}
    assert sum(shared.usage["key_1"].requests.values()) == 2


async def test_while_the_database_is_away_a_process_counts_for_itself(limiter, shared, clock):
    key = limited(requests_per_minute=5, max_concurrent=3, token_budget=100)
    shared.away = True
    first, *others = [await limiter.admit(key) for _ in range(3)]
    with pytest.raises(TooManyRequests, match="3 requests at the same time"):
        await limiter.admit(key)
    first.finish(40)
    for admission in others:
        admission.finish(0)
    for _ in range(2):
        (await limiter.admit(key)).finish(0)
    with pytest.raises(TooManyRequests, match="5 requests a minute"):
        await limiter.admit(key)
    assert shared.asked == 1  # no request waits for a database that is known to be away
    await limiter.tick()  # what was used is kept
    shared.away = False
    clock.now = 62.0
    await limiter.tick()
    assert shared.usage["key_1"].spent == 40
    assert len((await admit_all(limiter, limited(requests_per_minute=5)))[0]) == 5


async def test_a_budget_holds_while_the_database_is_away(limiter, shared):
    key = limited(token_budget=100)
    (await limiter.admit(key)).finish(60)
    shared.away = True
    await limiter.stop()
    (await limiter.admit(key)).finish(40)
    with pytest.raises(InsufficientQuota):
        await limiter.admit(key)


async def test_a_stop_tells_everything_and_gives_everything_back(limiter, shared):
    key = limited(requests_per_minute=500, tokens_per_minute=1000, max_concurrent=5, token_budget=10_000)
    (await limiter.admit(key)).finish(77)
    await limiter.stop()
    usage = shared.usage["key_1"]
    assert (sum(usage.requests.values()), sum(usage.tokens.values()), usage.spent, usage.slots) == (1, 77, 77, {})


async def test_a_key_that_is_no_longer_used_is_forgotten(limiter, clock):
    key = limited(requests_per_minute=50)
    await limiter.admit(key)
    (await limiter.admit(limited())).finish(0)
    for now in (1.5, 30.0):
        clock.now = now
        await limiter.tick()
    (account,) = limiter._accounts.values()
    account.finish(0)
    clock.now = 100.0
    await limiter.tick()
    assert limiter._accounts == {}


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 9), st.floats(0, 30), st.integers(0, 9)), min_size=1, max_size=60
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 20))
def test_never_more_than_the_limit_in_any_minute(steps, limit):
    """Whatever is asked when and by whom, no 60 seconds have more than the limit."""
    usage, now, given_at = Usage(), NOON, []
    for process, wanted, later_s, _ in steps:
        now += later_s
        ledger = settle(usage, Claim("k", KeyLimits(requests_per_minute=limit), requests=wanted), f"p{process}", now)
        assert 0 < ledger.second_left_s <= 1
        last_moment = math.nextafter(ledger.second + 1, 0)
        given_at += [(now, last_moment)] * ledger.requests
        if not ledger.requests:
            assert ledger.requests_free_in_s > 0
    for earliest, _ in given_at:  # each spent as late as it may be, against those spent as early as they may be
        assert sum(earliest <= first and last < earliest + 60 for first, last in given_at) <= limit


@hypothesis_settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 10))
def test_slots_never_add_up_to_more_than_the_limit(steps, limit):
    usage, now = Usage(), NOON
    held = [0, 0, 0]
    for process, wanted, _, used in steps:
        claim = Claim("k", KeyLimits(max_concurrent=limit), slots_used=min(used, held[process]), slots_wanted=wanted)
        held[process] = settle(usage, claim, f"p{process}", now).slots
        assert sum(held) <= limit
        assert held[process] >= claim.slots_used
