"""The circuit breaker, by a clock that a test sets."""

import pytest

from server.orchestration.breaker import Breaker, Change, StopRule
from verifiers.base import Cause


class Clock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[Change]:
    return []


def make(clock: Clock, told: list[Change], *, share: float = 0.5, after: int = 4) -> Breaker:
    return Breaker("sql@1", StopRule(share, after, 30.0), told.append, clock=clock, now=clock)


def feed(breaker: Breaker, *causes: str) -> None:
    for cause in causes:
        breaker.note(cause, trial=False)


@pytest.mark.parametrize(
    ("causes", "stopped"),
    [
        (["timeout"] * 3, False),  # too few to tell
        (["timeout"] * 4, True),
        (["timeout", "", "timeout", ""], False),  # the share is reached by a verdict that broke, not by a good one
        (["", "timeout", "", "timeout"], True),
        (["", "", "", "timeout"], False),
        ([""] * 50 + ["crashed", "broke"], True),
        (["broke"] + [""] * 50 + ["broke"], False),
        (["undecided", "bad_args", "too_costly", "stopped", "revoked"] * 4, False),
        (["busy", "undecided", "unreachable", "bad_args", "bad_return"], True),
    ],
)
def test_a_share_of_the_latest_verdicts_that_broke_stops_it(clock, told, causes, stopped):
    breaker = make(clock, told)
    feed(breaker, *causes)
    assert (breaker.stop is not None, len(told)) == (stopped, int(stopped))


def test_the_share_may_be_all_of_them(clock, told):
    breaker = make(clock, told, share=1.0, after=3)
    feed(breaker, "broke", "broke", "", "broke", "broke")
    assert breaker.stop is None
    feed(breaker, "broke")
    assert breaker.stop is not None


def test_a_stop_says_why_and_until_when(clock, told):
    breaker = make(clock, told)
    feed(breaker, "timeout", "crashed", "timeout", "timeout")
    stop = breaker.stop
    assert stop is not None
    assert (stop.verifier, stop.cause, stop.since, stop.until) == ("sql@1", "timeout", clock.at, clock.at + 30)
    assert stop.reason == (
        "stopped until 2023-11-14T22:13:50Z: 4 of its latest 4 verdicts broke, most often by timeout"
    )
    assert told == [Change(stop, stopped=True)]


def test_one_is_let_through_when_the_time_is_over_and_no_other_beside_it(clock, told):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4)
    clock.at += 29.9
    assert not breaker.try_again()
    clock.at += 0.2
    assert [breaker.try_again() for _ in range(3)] == [True, False, False]


def test_a_good_trial_resumes_and_forgets_what_was(clock, told):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4)
    clock.at += 31
    assert breaker.try_again()
    breaker.note("", trial=True)
    assert breaker.stop is None
    assert [change.stopped for change in told] == [True, False]
    feed(breaker, *["broke"] * 3)
    assert breaker.stop is None
    feed(breaker, "broke")
    assert breaker.stop is not None


@pytest.mark.parametrize("cause", ["undecided", "too_costly"])
def test_a_trial_that_abstained_without_breaking_is_good(clock, told, cause):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4)
    clock.at += 31
    assert breaker.try_again()
    breaker.note(cause, trial=True)
    assert breaker.stop is None


def test_a_bad_trial_stops_it_again_and_tells_no_second_time(clock, told):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4)
    began = clock.at
    clock.at += 31
    assert breaker.try_again()
    breaker.note("unreachable", trial=True)
    assert breaker.stop is not None
    assert (breaker.stop.cause, breaker.stop.since, breaker.stop.until) == ("unreachable", began, clock.at + 30)
    assert not breaker.try_again()
    clock.at += 31
    assert breaker.try_again()
    assert len(told) == 1


def test_a_trial_whose_client_left_is_given_to_another(clock, told):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4)
    clock.at += 31
    assert breaker.try_again()
    breaker.forgo()
    assert breaker.try_again()


def test_verdicts_that_were_begun_before_the_stop_change_nothing(clock, told):
    breaker = make(clock, told)
    feed(breaker, *["broke"] * 4, "", "", "", "", "broke")
    assert breaker.stop is not None
    assert len(told) == 1


def test_every_cause_that_stops_does(clock, told):
    for cause in Cause:
        breaker = make(clock, [])
        feed(breaker, *[cause.value] * 4)
        assert (breaker.stop is not None) == cause.stops
