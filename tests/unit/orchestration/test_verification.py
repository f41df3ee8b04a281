import asyncio
import time

import pytest

from server.domain import Binding
from server.orchestration.verification import BoundVerifier, VerifierSet, applies, bind
from tests.unit.orchestration.stubs import StubVerifier, bound, expects
from verifiers.base import InvalidVerifier, Status, Verdict

REQUEST = {"messages": [{"role": "user", "content": "hi"}], "tools": []}
TEXT = {"role": "assistant", "content": "right"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}

passing = lambda: StubVerifier(lambda _: Verdict.passed())  # noqa: E731
failing = lambda: StubVerifier(lambda _: Verdict.failed("wrong", score=0.5))  # noqa: E731
abstaining = lambda: StubVerifier(lambda _: Verdict.abstained("broke"))  # noqa: E731


@pytest.mark.parametrize(
    ("makers", "status", "score", "reason"),
    [
        ([], "skipped", 0.0, ""),
        ([passing], "passed", 1.0, ""),
        ([passing, passing], "passed", 1.0, ""),
        ([failing], "failed", 0.5, "wrong"),
        ([passing, failing], "failed", 0.75, "v1@1: wrong"),
        ([abstaining, failing], "failed", 0.5, "v1@1: wrong"),
        ([passing, abstaining], "abstained", 0.0, "v1@1: broke"),
        ([failing, failing], "failed", 0.5, "v0@1: wrong; v1@1: wrong"),
    ],
)
async def test_all_verifiers_have_to_pass(makers, status, score, reason):
    judged = await bound(*(make() for make in makers)).judge(REQUEST, TEXT)
    assert judged[:3] == (status, score, reason)
    assert len(judged[3]) == len(makers)


async def test_all_skipped_is_skipped_and_some_skipped_are_left_out():
    skipped = bound(passing(), failing(), when={"answer": "tool_call"})
    status, score, _, verdicts = await skipped.judge(REQUEST, TEXT)
    assert (status, score, [verdict.status for verdict in verdicts]) == ("skipped", 0.0, ["skipped", "skipped"])
    mixed = type(skipped)((*skipped.bound, *bound(passing()).bound))
    assert (await mixed.judge(REQUEST, TEXT))[0] is Status.PASSED


@pytest.mark.parametrize(
    ("when", "answer", "last_role", "expected"),
    [
        ({}, TEXT, "user", True),
        ({"answer": "text"}, TEXT, "user", True),
        ({"answer": "text"}, CALL, "user", False),
        ({"answer": "tool_call"}, CALL, "user", True),
        ({"last_role": "tool"}, TEXT, "user", False),
        ({"last_role": "tool"}, TEXT, "tool", True),
        ({"last_role": "user", "answer": "tool_call"}, TEXT, "user", False),
    ],
)
def test_when(when, answer, last_role, expected):
    assert applies(when, {"messages": [{"role": last_role}]}, answer) is expected


async def test_a_verifier_that_breaks_abstains_and_says_why():
    def explode(_):
        raise ZeroDivisionError("division by zero")

    status, _, reason, (verdict,) = await bound(StubVerifier(explode)).judge(REQUEST, TEXT)
    assert (status, verdict.status) == ("abstained", "abstained")
    assert reason == "the verifier broke: ZeroDivisionError: division by zero"


async def test_a_late_verifier_abstains_and_the_others_still_count():
    late = StubVerifier(lambda _: Verdict.passed(), delay_s=5)
    started = time.perf_counter()
    status, _, _, verdicts = await bound(late, failing(), timeout_s=0.02).judge(REQUEST, TEXT)
    assert time.perf_counter() - started < 4
    assert (status, [verdict.status for verdict in verdicts]) == ("failed", ["abstained", "failed"])
    assert verdicts[0].reason == "no verdict within 0.02 s"
    assert verdicts[0].duration_ms >= 20


async def test_verifiers_run_side_by_side():
    begun = asyncio.Barrier(5)

    class Meets:
        async def verify(self, request, answer, args):
            await begun.wait()  # for ever, were they asked one after the other
            return Verdict.passed()

    five = [BoundVerifier(Binding("regex", {}), Meets()) for _ in range(5)]
    async with asyncio.timeout(10):
        assert (await VerifierSet(tuple(five)).judge(REQUEST, TEXT))[0] == "passed"


async def test_cancelling_is_not_a_verdict():
    task = asyncio.create_task(bound(StubVerifier(lambda _: Verdict.passed(), delay_s=5)).judge(REQUEST, TEXT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_args_and_request_reach_the_verifier():
    verifier = expects("right")
    await bound(verifier).judge(REQUEST, TEXT)
    assert verifier.seen == [(REQUEST, TEXT, {"n": 0})]


async def test_binding_compiles_real_kinds_once():
    config = {"pattern": "^right$"}
    first = bind([Binding("regex", config, name="r", version=1)])
    again = bind([Binding("regex", dict(config), name="other", version=2)])
    assert first.bound[0].verifier is again.bound[0].verifier
    status, _, _, (verdict,) = await again.judge(REQUEST, TEXT)
    assert (status, verdict.verifier) == ("passed", "other@2")


def test_an_unknown_kind_does_not_bind():
    with pytest.raises(InvalidVerifier):
        bind([Binding("astrology", {})])
