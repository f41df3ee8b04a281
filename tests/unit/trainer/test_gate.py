"""The gate's statistics and its decision."""

import numpy as np
import pytest

from server.domain import Attempt, Binding, Episode, Outcome, RetryPolicy, Usage, VerifyMode
from server.errors import EngineBroken
from tests.unit.trainer.conftest import ScriptedEngine, make_failure
from trainer.gate import Verdicts, decide, judge_candidate, measure_difference, pair_up, read_checked
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(bootstrap_draws=2000)


def make_verdicts(first: float, second: float, n: int) -> Verdicts:
    """Shares over n problems, mixed so that resampling has something to resample."""
    order = np.random.default_rng(0).permutation(n)
    return Verdicts((order < first * n).astype(float), (order < second * n).astype(float))


def decide_on(before: tuple[float, float], after: tuple[float, float], n: int = 200):
    return decide(make_verdicts(*before, n), make_verdicts(*after, n), SETTINGS)


def test_a_better_candidate_is_promoted():
    report = decide_on((0.25, 0.35), (0.25, 0.6))
    assert report["decision"] == "promoted"
    assert report["difference"] == pytest.approx(0.25)
    low, high = report["ci95"]
    assert 0 < low < 0.25 < high
    assert "better: second-try accuracy +25.0 points" in report["reason"]
    assert (report["first_before"], report["second_after"], report["n"]) == (0.25, 0.6, 200)


def test_a_worse_candidate_has_regressed():
    report = decide_on((0.25, 0.6), (0.25, 0.4))
    assert report["decision"] == "regressed"
    assert report["ci95"][1] < 0


def test_no_difference_is_inconclusive():
    assert decide_on((0.25, 0.5), (0.25, 0.5))["decision"] == "inconclusive"


def test_a_first_try_that_fell_holds_a_candidate_back():
    report = decide_on((0.3, 0.4), (0.2, 0.7))
    assert report["decision"] == "inconclusive"
    assert "the first try fell by over 5.0 points" in report["reason"]


def test_too_few_problems_promote_nothing():
    report = decide_on((0.0, 0.0), (1.0, 1.0), n=12)
    assert report["decision"] == "inconclusive"
    assert report["reason"].startswith("12 of 30 held-out problems; too few")


def test_no_problem_at_all_is_said():
    report = decide(Verdicts(np.zeros(0), np.zeros(0)), Verdicts(np.zeros(0), np.zeros(0)), SETTINGS)
    assert report["reason"] == "0 of 30 held-out problems; too few to promote anything by itself"
    assert report["n"] == 0


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(3)
    after = rng.normal(0.2, 1.0, 400)
    interval = measure_difference(np.zeros(400), after, SETTINGS)
    half = 1.96 * after.std() / 20
    assert interval.low == pytest.approx(after.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(after.mean() + half, abs=0.02)
    assert interval == measure_difference(np.zeros(400), after, SETTINGS)  # seeded


def test_an_equal_candidate_is_rarely_promoted():
    rng = np.random.default_rng(0)
    settings = TrainerSettings(bootstrap_draws=400)
    promoted = 0
    for _ in range(200):
        before, after = (rng.binomial(2, 0.5, (2, 60)) / 2).astype(float)
        promoted += decide(Verdicts(before, before), Verdicts(after, after), settings)["decision"] == "promoted"
    assert promoted <= 12  # one in forty, and its spread


def test_pairs_leave_out_what_was_not_judged():
    before = [[(True, True), None], [None, None], [(False, True), (False, False)]]
    after = [[(False, False), (False, True)], [(True, True), (True, True)], [(True, True), (False, False)]]
    old, new = pair_up(before, after)
    assert old.first.tolist() == [1.0, 0.0]
    assert old.second.tolist() == [1.0, 0.5]
    assert new.first.tolist() == [0.0, 0.5]
    assert new.second.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("statuses", "checked"),
    [
        (["passed"], (True, True)),
        (["failed", "passed"], (False, True)),
        (["failed", "failed"], (False, False)),
        (["failed"], (False, False)),
        (["failed", "abstained"], (False, False)),
        (["abstained"], None),
        (["skipped"], None),
        ([], None),
    ],
)
def test_what_an_episode_says(statuses, checked):
    attempts = [Attempt(n, {}, "stop", Usage(), status) for n, status in enumerate(statuses, start=1)]
    episode = Episode(
        "ep", "t", "t", "base", "", "", {}, (), VerifyMode.ENFORCE, RetryPolicy(), outcome=Outcome.PASSED,
        attempts=attempts,
    )  # fmt: skip
    assert read_checked(episode) == checked


class Adapters(ScriptedEngine):
    """The candidate answers `yes`; the champion only on its retry. Every seventh call may break off."""

    def __init__(self, *, stumbling: bool = False):
        super().__init__(lambda _messages: "")
        self.stumbling, self.calls = stumbling, 0

    async def complete(self, body, adapter, *, with_tokens=False):
        self.calls += 1
        if self.stumbling and self.calls % 7 == 0:
            raise EngineBroken("it answered 500")
        right = adapter == "new" or len(body["messages"]) > 1
        self.answer = lambda _messages: "yes" if right else "no"
        return await super().complete(body, adapter, with_tokens=with_tokens)


async def judge(engine, count=4, **options):
    held_out = [make_failure(number, split="held_out") for number in range(count)]
    settings = SETTINGS.override({"gate_samples": 3, "gate_min_problems": 2, "concurrency": 1, **options})
    return await judge_candidate(held_out, engine=engine, champion="old", candidate="new", settings=settings)


async def test_both_adapters_answer_the_same_problems_through_the_loop_that_serves():
    report = await judge(Adapters())
    assert (report["first_before"], report["second_before"]) == (0.0, 1.0)
    assert (report["first_after"], report["second_after"]) == (1.0, 1.0)
    assert (report["n"], report["samples"], report["decision"]) == (4, 3, "inconclusive")
    assert report["tokens"] > 0


async def test_what_the_engine_breaks_off_once_is_asked_again():
    steady, stumbling = await judge(Adapters()), await judge(Adapters(stumbling=True))
    assert {name: stumbling[name] for name in ("first_before", "second_before", "first_after")} == {
        name: steady[name] for name in ("first_before", "second_before", "first_after")
    }


async def test_problems_that_cannot_be_judged_again_are_not_counted():
    engine = Adapters()
    unusable = [
        make_failure(1), make_failure(2, split="held_out", request=None),
        make_failure(3, split="held_out", bindings=()),
        make_failure(4, split="held_out", bindings=(Binding("no such kind", {}),)),
    ]  # fmt: skip
    report = await judge_candidate(unusable, engine=engine, champion="", candidate="new", settings=SETTINGS)
    assert (report["n"], report["decision"], engine.calls) == (0, "inconclusive", 0)


async def test_only_so_many_problems_are_asked():
    report = await judge(Adapters(), count=9, gate_problems=5)
    assert report["n"] == 5
