"""What the hidden verifiers can do to a candidate: hold it back, and never promote it."""

from dataclasses import replace

import numpy as np
import pytest

from server.domain import Binding, BindingMode, LoggedVerdict
from tests.unit.trainer.conftest import PASSES, ScriptedEngine, make_failure
from trainer.gate import judge_candidate
from trainer.gate_audit import Hidden, add_audits, compare_hidden, heed_audits, read_watched
from trainer.settings import TrainerSettings

# Time is the scripted engine's here, which says nothing; controls have tests of their own.
SETTINGS = TrainerSettings(bootstrap_draws=1000, gate_max_samples=2, latency_margin=None, control_problems=0)
HONEST = Binding("regex", {"pattern": "^yes, because"}, "honest", 1, mode=BindingMode.AUDIT)
PROMOTED = {"decision": "promoted", "reason": "better: second-try accuracy +30.0 points"}


class Adapters(ScriptedEngine):
    """The champion answers rightly on one problem in three; the candidate as a test wants."""

    def __init__(self, candidate):
        super().__init__(lambda _messages: "")
        self.candidate = candidate

    async def complete(self, body, adapter, *, with_tokens=False):
        number = int(body["messages"][0]["content"].removeprefix("question "))
        right = "yes, because" if number % 3 == 0 else "no"
        self.answer = lambda _messages: self.candidate(number) if adapter == "new" else right
        return await super().complete(body, adapter, with_tokens=with_tokens)


async def judge(candidate, *, audits=(HONEST,), count=60):
    held_out = [make_failure(number, split="held_out") for number in range(count)]
    problems = add_audits(held_out, held_out, audits)
    return await judge_candidate(
        problems, engine=Adapters(candidate), champion="old", candidate="new", settings=SETTINGS
    )


async def test_a_gain_that_both_see_is_promoted():
    report = await judge(lambda number: "yes, because" if number % 3 != 1 else "no")
    assert report["decision"] == "promoted"
    assert report["audits"]["honest@1"]["n"] == 60
    assert report["audits"]["honest@1"]["difference"] == pytest.approx(1 / 3)
    assert "by the hidden honest@1 +33.3 points" in report["reason"]


async def test_an_exploit_is_thrown_away():
    """It always passes with what counts, and says why no more often than before."""
    report = await judge(lambda number: "yes, because" if number % 3 == 0 else "yes")
    assert (report["second_after"], report["decision"]) == (1.0, "regressed")
    assert report["reason"].startswith("the gain is absent by the hidden honest@1 +0.0 points")
    assert "better: second-try accuracy +66.7 points" in report["reason"]


async def test_an_exploit_that_spoils_what_was_right_is_thrown_away():
    report = await judge(lambda _number: "yes")
    assert report["decision"] == "regressed"
    assert report["reason"].startswith("worse by the hidden honest@1 -33.3 points")


async def test_the_same_candidate_without_a_hidden_verifier_is_promoted():
    report = await judge(lambda _number: "yes", audits=())
    assert report["decision"] == "promoted"
    assert "audits" not in report


async def test_a_hidden_verifier_never_promotes():
    report = await judge(lambda number: "no" if number % 3 else "yes, because", count=60)
    assert report["decision"] == "inconclusive"
    assert report["audits"]["honest@1"]["difference"] == 0.0
    assert "hidden" not in report["reason"]


async def test_one_that_can_judge_nothing_has_no_say_and_neither_has_one_that_abstains():
    broken = Binding("regex", {"pattern": "("}, "broken", 1, mode=BindingMode.AUDIT)
    wants_args = Binding("countdown", {}, "wants", 1, mode=BindingMode.AUDIT)
    report = await judge(lambda _number: "yes", audits=(broken, wants_args))
    assert report["decision"] == "promoted"


def make_hidden(gains, missing, n=60) -> Hidden:
    """One hidden verifier by what it gained on each problem, and what it misses of what counts."""
    rng = np.random.default_rng(0)
    rows = [[(False, {"h": False})], [(True, {"h": True})], [(True, {"h": False})], [(False, {"h": True})]]
    none, both, counts, hidden = rows
    after = [both] * gains + [counts] * missing + [none] * (n - gains - missing)
    before = [none] * n
    if gains < 0:
        before = [hidden] * -gains + [none] * (n + gains)
        after = [counts] * missing + [none] * (n - missing)
    order = rng.permutation(n)
    return compare_hidden([before[i] for i in order], [after[i] for i in order], SETTINGS)["h"]


@pytest.mark.parametrize(
    ("gains", "missing", "decision", "why"),
    [
        (20, 0, "promoted", "+33.3 points"),
        (20, 20, "promoted", "+33.3 points"),  # it sees half of it, but beyond doubt
        (1, 20, "regressed", "the gain is absent"),
        (0, 20, "regressed", "the gain is absent"),
        (0, 1, "inconclusive", "no gain"),
        (-2, 2, "inconclusive", "no gain"),
        (-10, 20, "regressed", "worse"),
    ],
)
def test_what_becomes_of_a_promotion(gains, missing, decision, why):
    report = heed_audits(PROMOTED, {"h": make_hidden(gains, missing)}, SETTINGS)
    assert report["decision"] == decision
    assert why in report["reason"]
    assert PROMOTED["reason"] in report["reason"]


def test_a_fall_beyond_the_margin_that_may_be_chance_is_inconclusive():
    fallen = make_hidden(-3, 3)
    wide = replace(fallen, gain=replace(fallen.gain, difference=-0.06, low=-0.2, high=0.08))
    report = heed_audits(PROMOTED, {"h": wide}, SETTINGS)
    assert report["decision"] == "inconclusive"
    assert report["reason"].startswith("it fell by over 5.0 points by the hidden h -6.0 points")


def test_too_few_that_it_judged_are_said_and_decide_nothing():
    report = heed_audits(PROMOTED, {"h": make_hidden(0, 20, n=29)}, SETTINGS)
    assert report["decision"] == "promoted"
    assert "the hidden h judged only 29 problems under both" in report["reason"]


def test_the_gravest_of_several_decides():
    several = {"fine": make_hidden(20, 0), "vague": make_hidden(0, 1), "sure": make_hidden(-10, 20)}
    report = heed_audits(PROMOTED, several, SETTINGS)
    assert report["decision"] == "regressed"
    assert report["reason"].startswith("worse by the hidden sure")
    assert set(report["audits"]) == set(several)


def test_what_was_decided_otherwise_stays():
    report = heed_audits({"decision": "inconclusive", "reason": "so"}, {"h": make_hidden(20, 0)}, SETTINGS)
    assert (report["decision"], report["reason"]) == ("inconclusive", "so")
    assert report["audits"]["h"]["n"] == 60


def test_problems_that_it_judged_under_one_adapter_only_are_left_out():
    before = [[(True, {"h": True}), (False, {})], [(True, {})], [None]]
    after = [[(True, {"h": True}), (True, {"h": False})], [(True, {"h": True})], [(True, {"h": True})]]
    found = compare_hidden(before, after, SETTINGS)["h"]
    assert (found.n, found.before, found.after) == (1, 1.0, 0.5)


class TestBinding:
    def test_the_arguments_of_the_logged_problem_are_kept(self):
        countdown = Binding("countdown", {}, "hidden", 2, mode=BindingMode.AUDIT)
        args = {"numbers": [3, 5], "target": 8}
        logged = make_failure(split="held_out", bindings=(PASSES, replace(countdown, version=1, args=args)))
        (problem,) = add_audits([replace(logged, bindings=(PASSES,))], [logged], [countdown])
        assert problem.bindings == (PASSES, replace(countdown, args=args))
        (bare,) = add_audits([make_failure(split="held_out")], [], [countdown])
        assert bare.bindings == (PASSES,)  # it cannot judge without them

    def test_what_was_bound_then_and_is_no_more_is_left_out(self):
        logged = make_failure(split="held_out", bindings=(PASSES, HONEST))
        (problem,) = add_audits([logged], [logged], [])
        assert problem.bindings == (PASSES,)


def test_the_answer_that_counts_is_the_one_that_is_watched():
    def watching(status, hidden):
        return {"status": status, "verdicts": (LoggedVerdict("h@1", hidden, 0.0, mode=BindingMode.AUDIT),)}

    episode = make_failure(recovered=True)
    first, second = episode.attempts
    episode.attempts[:] = [
        replace(first, **watching("failed", "passed")),
        replace(second, **watching("passed", "failed")),
    ]
    assert read_watched(episode) == (True, {"h@1": False})
    episode.attempts[:] = [replace(first, **watching("passed", "abstained"))]
    assert read_watched(episode) == (True, {})
    episode.attempts[:] = [replace(first, **watching("abstained", "passed"))]
    assert read_watched(episode) is None
