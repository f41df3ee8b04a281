"""Verifiers under watch: what is counted, what a stopped one says, what the watch keeps."""

import asyncio

import pytest

from server.domain import Binding, BindingMode, VerdictCount
from server.orchestration import verdict_watch
from server.orchestration.breaker import StopRule
from server.orchestration.verdict_watch import VerdictWatch, merge_counts
from server.orchestration.verification import BoundVerifier, VerifierSet
from tests.unit.orchestration.stubs import StubVerifier, bound
from trainer.samples import read_reward
from verifiers.base import Cause, Status, Verdict

REQUEST = {"messages": [{"role": "user", "content": "hi"}], "tools": []}
TEXT = {"role": "assistant", "content": "right"}
HOUR = 472_222
BREAKS = Verdict.abstained("boom", Cause.CRASHED)


class Clock:
    at = HOUR * 3600.0 + 12

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> VerdictWatch:
    return VerdictWatch(StopRule(0.5, 4, 30.0), clock=clock, now=clock)


def says(*verdicts: Verdict) -> StubVerifier:
    """Give these verdicts in turn, then the last one for ever."""
    left = list(verdicts)
    return StubVerifier(lambda _: left.pop(0) if len(left) > 1 else left[0])


async def judge(verify: VerifierSet, times: int = 1, answer=TEXT, **more):
    for _ in range(times - 1):
        await verify.judge(REQUEST, answer, **more)
    return await verify.judge(REQUEST, answer, **more)


async def test_verdicts_are_counted_by_pin_status_and_cause(watch):
    verify = bound(says(Verdict.passed(), Verdict.failed("no"), BREAKS, Verdict.passed())).watched(watch)
    await judge(verify, 4)
    counts = {(one.verifier, one.hour, one.status, one.cause): one for one in watch.take_counts()}
    assert {key: one.count for key, one in counts.items()} == {
        ("v0@1", HOUR, "passed", ""): 2,
        ("v0@1", HOUR, "failed", ""): 1,
        ("v0@1", HOUR, "abstained", "crashed"): 1,
    }
    assert all(0 < one.slowest_ms <= one.total_ms for one in counts.values())
    assert watch.take_counts() == []


async def test_what_is_skipped_is_counted_apart_and_never_stops(watch):
    verify = bound(says(BREAKS), when={"answer": "tool_call"}).watched(watch)
    await judge(verify, 20)
    (count,) = watch.take_counts()
    assert (count.status, count.cause, count.count, count.total_ms) == ("skipped", "", 20, 0.0)
    assert watch.stops() == []


async def test_inline_verifiers_are_not_counted_and_are_stopped_by_what_they_are(watch):
    def inline(pattern):
        binding = Binding("regex", {"pattern": pattern})
        return VerifierSet((BoundVerifier(binding, says(BREAKS)),)).watched(watch)

    for _ in range(4):  # every request brings its own
        await judge(inline("a"))
    assert watch.take_counts() == []
    assert (await judge(inline("a")))[3][0].cause == "stopped"
    assert (await judge(inline("b")))[3][0].cause == "crashed"
    (stop,) = watch.stops()
    assert stop.verifier.startswith("regex ")


async def test_a_stopped_verifier_abstains_at_once_and_says_until_when(watch):
    stub = says(BREAKS)
    verify = bound(stub).watched(watch)
    await judge(verify, 4)
    status, score, reason, (verdict,) = await judge(verify)
    assert len(stub.seen) == 4
    assert (status, score, verdict.cause) == (Status.ABSTAINED, 0.0, "stopped")
    assert reason.startswith("the verifier is stopped until 2023-11-14T")
    assert "4 of its latest 4 verdicts broke, most often by crashed" in reason
    counted = {one.cause: one.count for one in watch.take_counts()}
    assert counted == {"crashed": 4, "stopped": 1}
    assert [stop.verifier for stop in watch.stops("v0")] == ["v0@1"]
    assert watch.stops("v1") == []


async def test_the_others_of_a_request_are_asked_all_the_same(watch):
    broken, fine = says(BREAKS), says(Verdict.failed("no"))
    verify = bound(broken, fine).watched(watch)
    status, *_ = await judge(verify, 6)
    assert status is Status.FAILED
    assert (len(broken.seen), len(fine.seen)) == (4, 6)


async def test_a_stopped_verifier_skips_what_it_does_not_apply_to(watch):
    verify = bound(says(BREAKS), when={"answer": "text"}).watched(watch)
    await judge(verify, 4)
    call = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert (await judge(verify, answer=call))[0] is Status.SKIPPED
    assert (await judge(verify))[0] is Status.ABSTAINED


async def test_a_good_trial_lets_it_judge_again(watch, clock):
    stub = says(*[BREAKS] * 4, Verdict.passed())
    verify = bound(stub).watched(watch)
    await judge(verify, 5)
    clock.at += 31
    assert (await judge(verify))[0] is Status.PASSED
    assert watch.stops() == []
    assert [change.stopped for change in watch.changes] == [True, False]


async def test_while_a_trial_runs_nobody_else_is_judged(watch, clock):
    stub = says(*[BREAKS] * 4, Verdict.passed())
    verify = bound(stub).watched(watch)
    await judge(verify, 4)
    clock.at += 31
    stub.delay_s = 0.01
    judged = await asyncio.gather(*(judge(verify) for _ in range(5)))
    assert sorted(status for status, *_ in judged) == ["abstained"] * 4 + ["passed"]


async def test_a_trial_that_is_cancelled_leaves_the_next_one_its_turn(watch, clock):
    begun = asyncio.Event()

    class Hangs(StubVerifier):
        async def verify(self, request, answer, args):
            if len(self.seen) >= 4:
                begun.set()
            return await super().verify(request, answer, args)

    stub = Hangs(lambda _: BREAKS)
    verify = bound(stub).watched(watch)
    await judge(verify, 4)
    clock.at += 31
    stub.delay_s = 600.0
    trial = asyncio.create_task(judge(verify))
    await begun.wait()
    trial.cancel()
    await asyncio.wait([trial])
    stub.delay_s, stub.judge = 0.0, lambda _: Verdict.passed()
    assert (await judge(verify))[0] is Status.PASSED


async def test_a_client_in_a_hurry_stops_nothing(watch):
    stub = says(Verdict.passed())
    stub.delay_s = 600.0
    verify = bound(stub).watched(watch)
    *_, (verdict,) = await judge(verify, 6, most_s=0.001)
    assert verdict.cause == "timeout"
    assert watch.stops() == []
    *_, (verdict,) = await judge(bound(stub, timeout_s=0.001).watched(watch), 5)
    assert verdict.cause == "stopped"


async def test_a_client_in_a_hurry_stops_nothing_that_observes_either(watch):
    stub = says(Verdict.passed())
    stub.delay_s = 600.0
    binding = Binding("stub", {}, name="v", version=1, mode=BindingMode.OBSERVE)
    hurried = VerifierSet((BoundVerifier(binding, stub),), observe_timeout_s=60.0).watched(watch)
    await judge(hurried, 6, most_s=0.001)
    assert watch.stops() == []
    late = VerifierSet((BoundVerifier(binding, stub),), observe_timeout_s=0.001).watched(watch)
    await judge(late, 6, most_s=10.0)
    assert [stop.verifier for stop in watch.stops()] == ["v@1"]


async def test_who_is_not_watched_neither_counts_nor_stops(watch):
    await judge(bound(says(BREAKS)), 50)
    assert (watch.take_counts(), watch.stops(), list(watch.changes)) == ([], [], [])


async def test_one_breaker_is_shared_by_all_who_bind_a_version(watch):
    for _ in range(4):
        await judge(bound(says(BREAKS)).watched(watch))
    assert (await judge(bound(says(Verdict.passed())).watched(watch)))[0] is Status.ABSTAINED


@pytest.mark.parametrize("name", ["v", ""])
def test_the_watch_is_bounded(watch, monkeypatch, name):
    monkeypatch.setattr(verdict_watch, "MOST_REGISTERED", 3)
    monkeypatch.setattr(verdict_watch, "MOST_INLINE", 3)

    def over(number):
        return watch.over(Binding("regex", {"pattern": str(number)}, name, number))

    first = over(0)
    assert [over(number) for number in (1, 2, 0)][-1] is first
    over(3)  # 1 was used longest ago
    assert over(0) is first
    assert len(watch._registered) + len(watch._inline) == 3


async def test_what_an_evicted_verifier_still_says_is_counted(watch, monkeypatch):
    monkeypatch.setattr(verdict_watch, "MOST_REGISTERED", 1)
    verify = bound(says(Verdict.passed()), says(Verdict.passed())).watched(watch)
    await judge(verify)
    assert {one.verifier for one in watch.take_counts()} == {"v0@1", "v1@1"}


def test_counts_are_added_up():
    one = VerdictCount("v@1", 5, "passed", "", 2, 3.0, 2.0)
    other = VerdictCount("v@1", 6, "passed", "", 1, 1.0, 1.0)
    more = VerdictCount("v@1", 5, "passed", "", 1, 4.0, 4.0)
    assert merge_counts([one, other, more]) == [VerdictCount("v@1", 5, "passed", "", 3, 7.0, 4.0), other]


def test_an_abstention_is_no_reward():
    assert {status: read_reward(status) for status in Status} == {
        Status.PASSED: 1.0,
        Status.FAILED: 0.0,
        Status.ABSTAINED: None,
        Status.SKIPPED: None,
    }
