"""Verifiers that only observe or audit: asked, logged, and never heard."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from server.domain import Binding, BindingMode
from server.orchestration.verification import BoundVerifier, VerifierSet, combine_verdicts
from verifiers.base import Cause, Status, Verdict

REQUEST: Mapping[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": []}
ANSWER: Mapping[str, Any] = {"role": "assistant", "content": "y"}


class Says:
    """A verifier that says one thing, after a while."""

    def __init__(self, verdict: Verdict, after_s: float = 0.0) -> None:
        self.verdict, self.after_s = verdict, after_s

    async def verify(self, request: Any, answer: Any, args: Any) -> Verdict:
        await asyncio.sleep(self.after_s)
        return self.verdict


def bound(mode: BindingMode, verdict: Verdict, after_s: float = 0.0) -> BoundVerifier:
    return BoundVerifier(Binding("regex", {}, f"{mode}r", 1, mode=mode), Says(verdict, after_s))


@pytest.mark.parametrize("mode", [BindingMode.OBSERVE, BindingMode.AUDIT])
@pytest.mark.parametrize("watching", [Verdict.passed(), Verdict.failed("no"), Verdict.abstained("broke")])
@pytest.mark.parametrize("counts", [Verdict.passed(), Verdict.failed("wrong"), Verdict.abstained("late")])
async def test_who_only_watches_changes_nothing(mode, watching, counts):
    alone = await VerifierSet((bound(BindingMode.ENFORCE, counts),)).judge(REQUEST, ANSWER)
    watched = await VerifierSet((bound(BindingMode.ENFORCE, counts), bound(mode, watching))).judge(REQUEST, ANSWER)
    assert watched[:3] == alone[:3]
    assert [one.mode for one in watched[3]] == [BindingMode.ENFORCE, mode]
    assert watched[3][1].status == watching.status


async def test_with_only_watchers_nothing_is_verified():
    status, score, reason, verdicts = await VerifierSet((bound(BindingMode.OBSERVE, Verdict.failed("no")),)).judge(
        REQUEST, ANSWER
    )
    assert (status, score, reason) == (Status.SKIPPED, 0.0, "")
    assert verdicts[0].status == Status.FAILED


async def test_a_slow_watcher_abstains_while_the_others_may_take_their_time():
    both = (bound(BindingMode.ENFORCE, Verdict.passed(), 0.2), bound(BindingMode.OBSERVE, Verdict.passed(), 5.0))
    status, _, _, verdicts = await VerifierSet(both, observe_timeout_s=0.05).judge(REQUEST, ANSWER)
    assert status == Status.PASSED
    assert (verdicts[1].status, verdicts[1].cause) == (Status.ABSTAINED, Cause.TIMEOUT)


def test_the_reason_names_who_failed_only_among_several_that_count():
    failed = Verdict.failed("wrong")
    verdicts = asyncio.run(
        VerifierSet((bound(BindingMode.ENFORCE, failed), bound(BindingMode.AUDIT, failed))).judge(REQUEST, ANSWER)
    )[3]
    assert combine_verdicts(verdicts)[2] == "wrong"


def test_every_cause_is_sorted():
    assert {cause for cause in Cause if cause.stops} == {
        Cause.TIMEOUT, Cause.CRASHED, Cause.BROKE, Cause.BAD_RETURN, Cause.UNREACHABLE, Cause.BUSY,
    }  # fmt: skip
